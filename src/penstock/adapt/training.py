"""A plain loop that trains what was put into a model, with checkpoints from which it goes on.

A Trainer of `transformers` or a loop of one's own does as well: only the adapter's parameters want gradients, and the loss
that the model gives has the penalties in it.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from penstock.adapt.adapter import Adapter
from penstock.adapt.data import stream
from penstock.adapt.method import BudgetPart
from penstock.adapt.running import call
from penstock.core import ConfigError, DataError
from penstock.models.files import replace

CHECKPOINT = "checkpoint.pt"
Progress = Callable[[int, int, float], None]
Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Schedule:
    """How an adapter is trained.

    Args:
        steps: of the optimizer.
        rate: the highest learning rate; it rises over the first twentieth of the steps and falls along a cosine to a tenth.
        batch: windows of a text in a step.
        length: tokens of a window.
        ramp: share of the steps over which a budget falls from 1 to what was asked for.
        seed: of the windows.
        decay: of the parameters.
        clip: the longest gradient.
    """

    steps: int = 500
    rate: float = 3e-3
    batch: int = 8
    length: int = 128
    ramp: float = 0.5
    seed: int = 0
    decay: float = 0.0
    clip: float = 1.0

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step."""
        warm = max(1, self.steps // 20)
        along = min(1.0, step / max(1, self.steps))
        return self.rate * min(1.0, (step + 1) / warm) * (0.1 + 0.45 * (1 + math.cos(math.pi * along)))


def train(
    adapter: Adapter,
    data: Any,
    schedule: Schedule | None = None,
    *,
    tokenizer: Any = None,
    out: str | Path | None = None,
    every: int = 100,
    loss: Loss | None = None,
    on_progress: Progress | None = None,
    **changes: Any,
) -> list[float]:
    """Train the parameters of an adapter; the same call goes on from the last checkpoint in `out`.

    Args:
        adapter: what was put into the model.
        data: a text file, a data set with `text` or `input_ids`, or batches that the model is called with, such as a loader.
        schedule: how to train.
        tokenizer: of the model; by default the bytes of a text are its tokens.
        out: a folder for checkpoints; none are written without it.
        every: steps between checkpoints.
        loss: gives the loss of the model on a batch; by default the model gives it itself, penalties included.
        on_progress: called with the steps done, the steps in all and the loss.
        changes: fields of the schedule, such as `steps=200`.

    Returns:
        The loss of every step that was made.

    Raises:
        DataError: where the data do not serve, or a checkpoint is of another run.
        ConfigError: where nothing can be trained, or the loss is not finite.
    """
    schedule = replace_fields(schedule or Schedule(), **changes)
    model = adapter.model
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ConfigError(f"{adapter.what.name}: nothing of the model wants a gradient")
    optimizer = torch.optim.AdamW(trained, schedule.rate, weight_decay=schedule.decay)
    start = _resume(adapter, optimizer, schedule, out)
    budgets = [part for part in adapter.parts.values() if isinstance(part, BudgetPart)]
    wanted = [part.budget for part in budgets]
    device = trained[0].device
    training, losses = model.training, []
    model.train()
    try:
        batches = stream(data, tokenizer, schedule.length, schedule.batch, schedule.seed, start)
        for step in range(start, schedule.steps):
            along = min(1.0, (step + 1) / max(1.0, schedule.ramp * schedule.steps))
            for part, share in zip(budgets, wanted, strict=True):
                part.budget = 1 - (1 - share) * along
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate_at(step)
            found = _loss(model, _to(next(batches), device), loss)
            if not bool(found.isfinite()):
                raise ConfigError(f"{adapter.what.name}: the loss at step {step} is {float(found)}: a lower rate may help")
            optimizer.zero_grad()
            found.backward()
            nn.utils.clip_grad_norm_(trained, schedule.clip)
            optimizer.step()
            losses.append(float(found.detach()))
            if on_progress:
                on_progress(step + 1, schedule.steps, losses[-1])
            if out and ((step + 1) % every == 0 or step + 1 == schedule.steps):
                _keep(adapter, optimizer, schedule, step + 1, Path(out))
    finally:
        model.train(training)
        for part, share in zip(budgets, wanted, strict=True):
            part.budget = share
    return losses


def _loss(model: nn.Module, batch: Any, loss: Loss | None) -> Tensor:
    if loss is not None:
        return loss(model, batch)
    found = getattr(call(model, batch), "loss", None)
    if found is None:
        raise DataError("adapt: the model gives no loss for these batches: they need labels, or pass loss=")
    return found


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: _to(value, device) for key, value in batch.items()}
    return type(batch)(_to(value, device) for value in batch) if isinstance(batch, tuple | list) else batch


def _run(adapter: Adapter, schedule: Schedule) -> str:
    return json.dumps({"method": adapter.what.name, "options": dict(adapter.what.arguments), **asdict(schedule)})


def _keep(adapter: Adapter, optimizer: torch.optim.Optimizer, schedule: Schedule, step: int, out: Path) -> None:
    model = {name: p.detach() for name, p in adapter.model.named_parameters() if p.requires_grad}
    kept = {"run": _run(adapter, schedule), "step": step, "trained": model, "optimizer": optimizer.state_dict()}
    kept["parts"] = adapter.state_dict()  # what parts note in training is in their buffers
    out.mkdir(parents=True, exist_ok=True)
    replace(out / CHECKPOINT, lambda path: torch.save(kept, path))


def _resume(adapter: Adapter, optimizer: torch.optim.Optimizer, schedule: Schedule, out: str | Path | None) -> int:
    path = Path(out) / CHECKPOINT if out else None
    if path is None or not path.is_file():
        return 0
    kept = torch.load(path, weights_only=True)
    if kept["run"] != _run(adapter, schedule):
        raise DataError(f"{path} is of another run: choose another folder, or remove it")
    with torch.no_grad():
        for name, parameter in adapter.model.named_parameters():
            if name in kept["trained"]:
                parameter.copy_(kept["trained"][name])
    adapter.load_state_dict(kept["parts"])
    optimizer.load_state_dict(kept["optimizer"])
    return kept["step"]
