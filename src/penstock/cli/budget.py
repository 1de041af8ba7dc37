"""`penstock budget`: what skipping is worth at each budget."""

import sys
from pathlib import Path

from penstock.core.arguments import Positive, Size
from penstock.core.errors import DataError


def budget(
    *mechanisms: str,
    task: str = "digits",
    budget: list[float] | None = None,
    seeds: Size = 3,
    steps: Size = 600,
    dim: Size = 48,
    layers: Size = 4,
    rate: Positive = 2e-3,
    device: str = "cpu",
    out: Path = Path("runs/budget"),
) -> None:
    """Train what skips, set its levels for each budget, and show quality against cost in a table and a picture.

    Budgets are set on the validation split and kept on the test split, where quality, the share computed, operations and
    wall-clock are measured beside the same model in full.

    Args:
        mechanisms: skips with a budget, such as gateskip, or models that skip: early-exit, evit, jei-dnn, skip-middle.
        task: the task, with options as in digits,scan=rows.
        budget: a share of the layers or tokens to compute, once for each; by default 0.25, 0.5, 0.75 and 1.
        seeds: how often all is repeated.
        steps: of training.
        dim: width of the stream.
        layers: number of layers.
        rate: the highest learning rate.
        device: cpu, cuda or mps; auto takes an accelerator where there is one.
        out: the folder that budget.html and budget.json are written to.
    """
    from penstock.bench import budget as bench
    from penstock.bench.records.record import versions, write_json
    from penstock.bench.report import budget as report
    from penstock.cli.text import table

    asked = budget or bench.BUDGETS
    sizes = {"seeds": seeds, "steps": steps, "dim": dim, "layers": layers, "device": device}
    bench.study_of(mechanisms, task, asked, **sizes)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"budget: cannot write in {out}: {error.strerror or error}") from error
    curve = bench.measure(mechanisms, task, asked, rate=rate, on_progress=lambda line: print(line, file=sys.stderr), **sizes)
    print(f"{curve.metric} on {curve.task}, means over seeds and their range\n\n{table(report.table(curve))}")
    write_json(out / "budget.json", curve.plain() | {"versions": versions()})
    print(f"\npicture: {report.write(curve, out)}")
