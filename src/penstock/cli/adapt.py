"""`penstock adapt`: fit gates to a trained model."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from penstock.core.arguments import Positive, Size


def adapt(  # noqa: PLR0913 - each is a flag
    model: str,
    *,
    text: Path,
    method: str = "gateskip",
    budget: list[float] | None = None,
    steps: Size = 500,
    batch: Size = 8,
    length: Size = 128,
    rate: Positive = 3e-3,
    whole: bool = False,
    tokens: Size = 64,
    device: str = "cpu",
    out: Path = Path("runs/adapt"),
    values: Annotated[list[str] | None, Parameter(name="--set")] = None,
) -> None:
    """Train gates in a trained causal language model, calibrate their budget, and tell what each budget costs and saves.

    It ends with the adapter in the folder, to be read by penstock.adapt.load, and a table: quality on text that was held out
    and milliseconds for each decoded token, beside the model without gates and random skipping at equal cost. The same
    command goes on where it was stopped.

    Args:
        model: a folder, or a name that transformers knows.
        text: a UTF-8 file; its last tenth is held out.
        method: what is put in.
        budget: a share to compute, once for each; the first is trained for. By default 0.75, 0.6, 0.9 and 1.
        steps: of training.
        batch: windows of text in a step.
        length: tokens of a window.
        rate: the highest learning rate.
        whole: train the model's own weights too, which the adapter does not hold: the model is saved instead. The model
            without gates is trained as long, to compare with.
        tokens: to decode for a timing.
        device: cpu or cuda.
        out: a folder for checkpoints, the adapter and adapt.json.
        values: an argument of the method, key=value, such as grain=token.
    """
    from penstock.adapt import save_pretrained
    from penstock.adapt.training import Schedule
    from penstock.bench import adapt as bench
    from penstock.bench.plan.choice import assignment
    from penstock.bench.records.record import versions, write_json
    from penstock.cli.text import table

    budgets = budget or [0.75, 0.6, 0.9, 1.0]
    options: dict[str, Any] = dict(map(assignment, values or []))
    loaded, tokenizer = bench.load_model(model, device)
    schedule = Schedule(steps=steps, batch=batch, length=length, rate=rate)
    how = {"tokenizer": tokenizer, "out": out, "freeze": not whole, "tokens": tokens, "on_progress": _progress}
    adapter, rows = bench.study(loaded, text, method, {"budget": budgets[0], **options}, budgets, schedule, **how)
    adapter.budget = budgets[0]
    if whole:
        save_pretrained(loaded, out / "model")
    else:
        adapter.save(out)
    print(table(_cells(rows)))
    plain = {"model": model, "method": method, "options": options, "rows": [row._asdict() for row in rows]}
    write_json(out / "adapt.json", plain | {"versions": versions()})
    print(f"\nadapter: {out / 'model' if whole else out}")


def _cells(rows: list[Any]) -> list[list[str]]:
    plain, tuned = rows[0], next((row for row in rows if row.tuned), None)
    cells = [["budget", "computed", "loss", "change", "random", "random, no gates", "ms a token", "of the model's"]]
    if tuned:
        cells[0].insert(4, "to tuned")
    for row in rows:
        others = [f"{row.random:.4f}", f"{row.ungated:.4f}"] if row.budget else ["", ""]
        name = f"{row.budget:.0%}" if row.budget else "no gates, tuned" if row.tuned else "no gates"
        times = [f"{row.decode:.2f}", f"{row.decode / plain.decode:.0%}"]
        changes = [f"{row.loss / other.loss - 1:+.1%}" for other in (plain, tuned) if other]
        cells.append([name, f"{row.spent:.0%}", f"{row.loss:.4f}", *changes, *others, *times])
    return cells


def _progress(done: int, steps: int, loss: float) -> None:
    """Print about twenty lines."""
    if done * 20 // steps > (done - 1) * 20 // steps:
        print(f"step {done} of {steps}: loss {loss:.4f}", flush=True)
