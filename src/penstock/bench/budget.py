"""What a mechanism that skips is worth at each budget: quality, share computed, operations and wall-clock, over seeds."""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from penstock.bench.plan.choice import MODELS, Choice
from penstock.bench.plan.match import model_spec
from penstock.bench.plan.study import Study, build_task, resolve
from penstock.bench.task import Task
from penstock.bench.training.evaluate import evaluate, measuring
from penstock.bench.training.recipe import Recipe
from penstock.bench.training.train import train
from penstock.core import ConfigError
from penstock.core.arguments import signature
from penstock.core.catalogue import cards, get
from penstock.core.errors import unknown
from penstock.gates import Budget
from penstock.inspect.work import counting
from penstock.models import JEIDNN, Classifier, build_model, calibrate, set_budget, shares

BUDGETS = (0.25, 0.5, 0.75, 1.0)
SEEN = 1024
"""At most as many held-out sequences set the levels."""
HOLDS = 0.05
"""How fast the losses of skip-middle follow its gates: the paper's rate is for runs of many more steps."""


class Row(NamedTuple):
    """One model at one budget on the test split; `flops` and `speed` are relative to the full model of the same seed."""

    mechanism: str
    seed: int
    budget: float
    realised: float
    value: float
    flops: float
    speed: float


@dataclass(frozen=True)
class Curve:
    """What a study of budgets found: the full models' values by seed, and a row for each model at each budget."""

    task: str
    metric: str
    full: Sequence[float]
    rows: Sequence[Row]

    def plain(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self) | {"rows": [row._asdict() for row in self.rows]}

    def at(self, mechanism: str, budget: float) -> list[Row]:
        """Return the rows of a mechanism at a budget, one for each seed."""
        return [row for row in self.rows if (row.mechanism, row.budget) == (mechanism, budget)]


def skipping() -> list[str]:
    """Return the names of what can be asked for: skips with a budget, and models that skip."""
    skips = [card.name for card in cards().values() if card.contract == "Skip"]
    return [*(name for name in skips if "budget" in signature(get(name)).parameters), *MODELS]


def study_of(mechanisms: Sequence[str], task: str, budgets: Iterable[float], **values: Any) -> tuple[Study, list[float]]:
    """Return the checked study, whose mechanisms are those with a socket, and the budgets, lowest first."""
    asked = sorted(set(budgets))
    for budget in asked:
        Budget(budget)
    for name in mechanisms:
        if name not in skipping():
            raise ConfigError(f"budget: {unknown('mechanism', name, skipping())}")
    if not mechanisms or not asked:
        raise ConfigError("budget: at least one mechanism and one budget are needed")
    study = resolve(["attention"], [task], **values)
    on = build_task(study.tasks[0])
    for name in mechanisms:
        model_of(study, on, name, 0)
    return study, asked


def measure(
    mechanisms: Sequence[str],
    task: str = "digits",
    budgets: Iterable[float] = BUDGETS,
    *,
    on_progress: Callable[[str], None] = lambda _: None,
    rate: float = 2e-3,
    **values: Any,
) -> Curve:
    """Train what skips, and measure it at each budget on held-out data, beside the full model.

    Levels are set on the validation split for each budget; what is measured is the test split. Where whole sequences are
    judged, no level is needed to skip tokens, and the top of each is computed. A mechanism whose paper trains for a budget
    is trained for each; the others are trained once, while the budget falls to the lowest. A budget that a model cannot
    keep, since its first layers cost more, is left out.

    Args:
        mechanisms: of `skipping()`.
        task: a task, with options as in `digits,scan=rows`.
        budgets: shares of the layers or tokens to be computed, above 0 and at most 1.
        on_progress: called with what is being trained.
        rate: the highest learning rate.
        values: any field of a comparison's `Study`, such as `seeds`, `steps`, `dim` or `layers`.
    """
    study, asked = study_of(mechanisms, task, budgets, **values)
    on = build_task(study.tasks[0])
    full, rows = [], []
    for seed in study.judged:
        recipe = Recipe(study.steps, study.batch, rate, evaluations=1, checkpoint_every=0, seed=seed, device=study.device)
        on_progress(f"seed {seed}, attention in full")
        dense = trained(model_of(study, on, None, seed), on, recipe)
        full.append(evaluate(dense, on, "test", recipe)[1])
        for name in mechanisms:
            for budget, model in models(name, study, on, recipe, asked, dense, on_progress):
                rows.append(judged(name, budget, model, dense, on, recipe))
    return Curve(study.tasks[0].label, on.metric, full, rows)


def models(
    name: str,
    study: Study,
    task: Task,
    recipe: Recipe,
    budgets: Sequence[float],
    dense: nn.Module,
    on_progress: Callable[[str], None],
) -> Iterator[tuple[float, nn.Module]]:
    """Yield a mechanism's trained model at each budget, calibrated on the validation split."""
    inputs = held_out(task).to(recipe.device)
    one: nn.Module | None = None
    for budget in budgets:
        model: Any = model_of(study, task, name, recipe.seed, budget)
        if name in MODELS and budget < model.least:
            continue
        if one is None or per_budget(name):
            on_progress(f"seed {recipe.seed}, {name}" + (f", budget {budget:g}" if per_budget(name) else ""))
            if isinstance(model, JEIDNN):
                model.backbone.load_state_dict(dense.state_dict())
            one = trained(model, task, recipe, lowering(model, name, budget, budgets[0]))
        if name in MODELS:
            cast("Any", one).calibrate(inputs, budget)
        else:
            set_budget(one, budget)
            if task.per_position:
                calibrate(one, inputs)
        yield budget, one


def per_budget(name: str) -> bool:
    """Tell whether a mechanism is trained for each budget, as in its paper."""
    return name in ("evit", "skip-middle") if name in MODELS else get(name).trained_for_budget


def lowering(model: Any, name: str, budget: float, lowest: float) -> Callable[[float], None]:
    """Return what sets how much is computed, when it is told which share of the training is done.

    The share of the patches that EViT keeps falls along a cosine, as in its paper, and stays in the second half.
    """
    if name == "evit":
        model.calibrate(torch.empty(0), budget)
        keep = model.keep

        def shrink(done: float) -> None:
            model.keep = keep + (1 - keep) * (1 + math.cos(math.pi * min(1.0, 2 * done))) / 2

        return shrink
    if name in MODELS:
        return lambda _done: None
    if per_budget(name):
        return lambda _done: set_budget(model, budget)
    return lambda done: set_budget(model, 1 - (1 - lowest) * done)


def model_of(study: Study, task: Task, skip: str | None, seed: int, budget: float = 1.0) -> nn.Module:
    """Return an untrained model with attention and SwiGLU, which skips by `skip`, or the model of that name.

    Where every position is judged it does not look ahead: tokens are chosen by a level, and else the top of each sequence.
    Skip-middle is to close its gates in the middle as far as the budget asks for.
    """
    if skip in MODELS:
        arguments = {"end": max(0.0, 2 * budget - 1), "rate": HOLDS} if skip == "skip-middle" else {}
        spec = model_spec(study, task, Choice(skip, skip, arguments), study.dim, None)
    else:
        spec = model_spec(study, task, Choice("attention", "attention"), study.dim, None)
        if skip is not None:
            spec["skip"] = {"mechanism": skip, "budget": 1.0, "select": "level" if task.per_position else "top"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(spec)
    if isinstance(model, JEIDNN):
        return JEIDNN(cast("Classifier", model.backbone))
    return model


def trained(model: nn.Module, task: Task, recipe: Recipe, lower: Callable[[float], None] = lambda _done: None) -> nn.Module:
    """Return the model, trained while `lower` is told which share of the steps is done."""
    lower(0.0)
    with tempfile.TemporaryDirectory() as folder:
        train(model, task, recipe, Path(folder), lambda done, steps, _loss: lower(done / steps))
    return model.eval()


def held_out(task: Task) -> Tensor:
    """Return inputs of the validation split."""
    return torch.cat([batch.inputs for batch in task.evaluation("valid", SEEN)])[:SEEN]


def judged(name: str, budget: float, model: nn.Module, dense: nn.Module, task: Task, recipe: Recipe) -> Row:
    """Return what a calibrated model comes to on the test split."""
    value = evaluate(model, task, "test", recipe)[1]
    spent, count = 0.0, 0
    with measuring(model):
        for batch in task.evaluation("test", recipe.batch):
            x = batch.inputs.to(recipe.device)
            if name in MODELS:
                part = cast("Any", model).share(x)
            else:
                with shares(model) as each:
                    model(x)
                part = statistics.fmean(each)
            spent, count = spent + part * len(x), count + len(x)
    x = next(iter(task.evaluation("test", recipe.batch))).inputs.to(recipe.device)
    flops = operations(model, x) / operations(dense, x)
    return Row(name, recipe.seed, budget, spent / count, value, flops, faster(model, dense, x))


def operations(model: nn.Module, x: Tensor) -> int:
    """Return the operations of a forward pass."""
    with counting() as work:
        model(x)
    return work.total


@torch.no_grad()
def faster(model: nn.Module, dense: nn.Module, x: Tensor, rounds: int = 7) -> float:
    """Return how many times faster than the full model it is, timed by turns; the fewest seconds count."""
    spent: dict[int, list[float]] = {0: [], 1: []}
    for turn in range(rounds + 1):
        for n, one in enumerate((model, dense)):
            start = time.perf_counter()
            one(x)
            if x.is_cuda:
                torch.cuda.synchronize()
            if turn:
                spent[n].append(time.perf_counter() - start)
    return min(spent[1]) / min(spent[0])
