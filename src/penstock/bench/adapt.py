"""What gates are worth in a trained model: quality and wall-clock at several budgets, beside random skipping."""

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from penstock.adapt import Adapter, BudgetPart, find, insert, remove
from penstock.adapt.data import stretches, tokens_of
from penstock.adapt.running import evaluating
from penstock.adapt.training import Schedule, train
from penstock.core import ConfigError, DataError

NONE = float("nan")
HELD, CALIBRATION = 0.1, 4
"""Share of the text that is held out, and how many batches set the levels."""


class Row(NamedTuple):
    """What a budget comes to on held-out text.

    Args:
        budget: that was asked for; 0 for the model without gates.
        spent: share of the cost of the branches that was computed.
        loss: in nats per token.
        random: loss of the gated model that skips at random at this cost.
        ungated: loss of the model without gates that skips at random at this cost.
        decode: milliseconds for each token in decoding one sequence.
        tuned: whether the model without gates was trained as the one with gates was, where all weights were.
    """

    budget: float
    spent: float
    loss: float
    random: float
    ungated: float
    decode: float
    tuned: bool = False


def load_model(folder: str | Path, device: str = "cpu") -> tuple[Any, Any]:
    """Return the causal language model in a folder, or of a name that `transformers` knows, and its tokenizer or None."""
    import transformers

    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(str(folder)).to(device)
    except (OSError, ValueError) as error:
        raise DataError(f"adapt: cannot load {folder}: {str(error).splitlines()[0]}") from error
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, TypeError):
        tokenizer = None
    if tokenizer is None and model.config.vocab_size < 256:
        raise DataError(
            f"adapt: {folder} has no tokenizer, and a vocabulary of {model.config.vocab_size}, which is no bytes"
        )
    return model, tokenizer


def study(  # noqa: PLR0913 - each is a flag
    model: Any,
    text: str | Path,
    method: str,
    options: dict[str, Any],
    budgets: Sequence[float],
    schedule: Schedule,
    *,
    tokenizer: Any = None,
    out: Path | None = None,
    freeze: bool = True,
    tokens: int = 64,
    on_progress: Callable[[int, int, float], None] | None = None,
) -> tuple[Adapter, list[Row]]:
    """Train gates on a text, calibrate them, and measure every budget on the end of the text, which is held out.

    Args:
        model: a causal language model; the adapter stays in it.
        text: a UTF-8 file.
        method: the name of a method with a budget.
        options: its arguments.
        budgets: to measure.
        schedule: how to train.
        tokenizer: of the model; by default bytes are tokens.
        out: a folder for checkpoints.
        freeze: train the gates alone; otherwise all weights, and those of the model without gates as long, to compare with.
        tokens: to decode for a timing.
        on_progress: called in training.
    """
    every = tokens_of(text, tokenizer)
    if every is None:
        raise DataError(f"adapt: text must be a file, got {text!r}")
    cut = int(len(every) * (1 - HELD))
    held = stretches(every[cut:], schedule.length, schedule.batch, 16)
    rows = [Row(0, 1.0, loss_of(model, held), NONE, NONE, NONE)]
    plain = copy.deepcopy(model, {id(p): p for p in model.parameters()} if freeze else None)
    adapter = insert(model, find(method)(**options), freeze=freeze)
    if not any(isinstance(part, BudgetPart) for part in adapter.parts.values()):
        raise ConfigError(f"adapt: {method} has no budget: train it by penstock.adapt.train")
    if not freeze:
        switched = insert(plain, find(method)(**options), freeze=False)
        with switched.off():
            train(switched, every[:cut], schedule, out=out and out / "tuned", on_progress=on_progress)
        rows.append(Row(0, 1.0, loss_of(remove(plain), held), NONE, NONE, NONE, tuned=True))
    if list(adapter.parameters()) or not freeze:
        train(adapter, every[:cut], schedule, out=out, on_progress=on_progress)
    spread = every[:cut][-(cut // 2) :]
    adapter.calibrate(stretches(spread, schedule.length, schedule.batch, CALIBRATION), budgets)
    rows += [_row(adapter, share, held) for share in budgets]
    times = decode_times(plain, adapter, [row.budget for row in rows], held[0]["input_ids"][:1, :16], tokens)
    return adapter, [row._replace(decode=ms) for row, ms in zip(rows, times, strict=True)]


def _row(adapter: Adapter, share: float, held: list[dict[str, Tensor]]) -> Row:
    parts = [part for part in adapter.parts.values() if isinstance(part, BudgetPart)]
    adapter.budget = share
    adapter.spent()
    loss = loss_of(adapter.model, held)
    spent = adapter.spent()
    fixed = sum(part.cost for part in parts if not part.free)
    total = sum(part.cost for part in parts)
    before = [part.budget for part in parts]
    for part in parts:
        part.random, part.budget = True, (spent * total - fixed) / max(1e-9, total - fixed)
    try:
        random = loss_of(adapter.model, held)
        for part in parts:
            part.ungated = True
        ungated = loss_of(adapter.model, held)
    finally:
        for part, was in zip(parts, before, strict=True):
            part.random, part.ungated, part.budget = False, False, was
    adapter.spent()
    return Row(share, spent, loss, random, ungated, NONE)


@torch.no_grad()
def loss_of(model: nn.Module, held: list[dict[str, Tensor]]) -> float:
    """Return the mean loss of a language model, the same windows and the same draws each time."""
    with evaluating(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        losses = [float(model(**batch, use_cache=False).loss) * len(batch["input_ids"]) for batch in held]
    return sum(losses) / sum(len(batch["input_ids"]) for batch in held)


@torch.no_grad()
def decode_times(
    plain: Any, adapter: Adapter, budgets: Sequence[float], prompt: Tensor, tokens: int, rounds: int = 5
) -> list[float]:
    """Return the milliseconds for each token at each budget, 0 for the `plain` model: the least of rounds by turns."""
    gated: Any = adapter.model
    before, best = adapter.budget, [float("inf")] * len(budgets)
    words = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "min_new_tokens": tokens, "max_new_tokens": tokens}
    with evaluating(plain), evaluating(gated):
        for _ in range(rounds):
            for index, share in enumerate(budgets):
                if share:
                    adapter.budget = share
                start = time.perf_counter()
                (gated if share else plain).generate(prompt, **words)
                best[index] = min(best[index], 1e3 * (time.perf_counter() - start) / tokens)
    adapter.budget = before
    return best
