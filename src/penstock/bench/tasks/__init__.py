"""The tasks, a file each."""

from typing import Any

from penstock.bench.task import Task
from penstock.core.catalogue import cards, get
from penstock.core.errors import ConfigError, unknown


def names() -> list[str]:
    """Return the names of the tasks in the catalogue."""
    return [card.name for card in cards().values() if card.contract == "task"]


def get_task(name: str, **options: Any) -> Task:
    """Return the task called `name`, or `package.module:Name` of a user, built with `options`."""
    if ":" not in name and name not in names():
        raise ConfigError(unknown("task", name, names()))
    cls = get(name)
    if not (isinstance(cls, type) and issubclass(cls, Task)):
        raise ConfigError(f"{name!r} is not a task: it must be a subclass of penstock.bench.task.Task")
    return cls.create(**options)
