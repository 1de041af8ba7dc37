"""What the figures show, gathered from the rows of the runs."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from penstock.bench.report.figures import Curve, Line
from penstock.bench.report.records import Records, Run, number

POINTS = 80
GATE_POINTS = 40


class GatePanel(NamedTuple):
    """One gate of one mechanism: for each layer the steps and the mean openness over the seeds."""

    mechanism: str
    gate: str
    owner: str
    layers: Mapping[int, tuple[list[float], list[float]]]


class GateRow(NamedTuple):
    """A gate at the end of training: each number is given by seed."""

    mechanism: str
    gate: str
    owner: str
    mean: Sequence[float]
    closed: Sequence[float]
    open: Sequence[float]
    entropy: Sequence[float]


def judged(records: Records, task: str, mechanism: str) -> list[Run]:
    """Return the finished judged runs of a mechanism on a task."""
    return [run for run in chosen(records, task, mechanism, "seed") if run.status == "finished"]


def chosen(records: Records, task: str, mechanism: str, kind: str) -> list[Run]:
    """Return the runs of a kind of a mechanism on a task."""
    return [run for run in records.runs if (run.task, run.mechanism, run.kind) == (task, mechanism, kind)]


def curve(runs: Iterable[Run], place: int, name: str, scale: float = 1) -> Curve | None:
    """Return the mean over runs of a value in `metrics.jsonl`, with the lowest and the highest; None where it is nowhere."""
    groups: dict[float, list[float]] = defaultdict(list)
    for run in runs:
        points = [
            (row["tokens"], value) for row in run.metrics if (value := number(row, name)) is not None and "tokens" in row
        ]
        for tokens, value in thinned(points, POINTS):
            groups[tokens].append(value * scale)
    x = sorted(groups)
    if not x:
        return None
    return Curve(place, x, *([word(groups[tokens]) for tokens in x] for word in (fmean, min, max)))


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Return at most `most` points, each the mean of as many neighbours, placed at the last of them."""
    stride = -(-len(points) // most)
    if stride <= 1:
        return list(points)
    starts = range(len(points) - 1, -1, -stride)
    groups = [points[max(0, end - stride + 1) : end + 1] for end in starts]
    return [(group[-1][0], fmean(y for _, y in group)) for group in reversed(groups)]


def searched(records: Records, task: str, mechanism: str, place: int, scale: float) -> Line | None:
    """Return the learning-rate search of a mechanism on a task, or None where there was none."""
    trials = [run for run in chosen(records, task, mechanism, "trial") if run.number("learning_rate")]
    if not trials:
        return None
    rated = [(run.record["learning_rate"], run.score) for run in trials]
    found = sorted((rate, score * scale) for rate, score in rated if score is not None)
    lost = sorted(rate for rate, score in rated if score is None)
    return Line(place, [rate for rate, _ in found], [score for _, score in found], lost, taken(records, task, mechanism))


def taken(records: Records, task: str, mechanism: str) -> float | None:
    """Return the learning rate of the judged runs."""
    rates = (run.number("learning_rate") for run in chosen(records, task, mechanism, "seed"))
    return next((rate for rate in rates if rate is not None), None)


def gate_panels(records: Records, task: str, mechanism: str) -> list[GatePanel]:
    """Return the gates of a mechanism over training, a panel for each path below the layer."""
    found: dict[tuple[str, str], dict[int, dict[float, list[float]]]] = {}
    for run in judged(records, task, mechanism):
        for row in run.gates:
            if (mean := number(row, "mean")) is not None:
                layers = found.setdefault((below_layer(row["gate"]), str(row.get("mechanism", ""))), {})
                layers.setdefault(int(row.get("layer") or 0), {}).setdefault(row["step"], []).append(mean)
    return [
        GatePanel(mechanism, gate, owner, {layer: _mean_line(steps) for layer, steps in sorted(layers.items())})
        for (gate, owner), layers in sorted(found.items())
    ]


def gate_rows(records: Records, task: str, mechanism: str) -> list[GateRow]:
    """Return the state of every gate of a mechanism at the end of training."""
    names = ("mean", "closed", "open", "entropy")
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for run in judged(records, task, mechanism):
        last = {row["gate"]: row for row in run.gates}
        for gate, row in last.items():
            values = found.setdefault((gate, str(row.get("mechanism", ""))), {name: [] for name in names})
            for name in names:
                if (value := number(row, name)) is not None:
                    values[name].append(value)
    return [GateRow(mechanism, gate, owner, *(values[name] for name in names)) for (gate, owner), values in found.items()]


def shared(panels: Mapping[str, Sequence[GatePanel]]) -> set[tuple[str, str]]:
    """Return the gates that every mechanism of a task has alike: they belong to the parts all models share."""
    having = [{(panel.gate, panel.owner) for panel in found} for found in panels.values() if found]
    return set.intersection(*having) if len(having) > 1 and len(having) == len(panels) else set()


def below_layer(gate: str) -> str:
    """Return the path of a gate below its layer: `mixer.gate` for `layers.0.mixer.gate`."""
    parts = gate.split(".")
    places = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[places[0] + 1 :]) if places and places[0] + 1 < len(parts) else gate


def _mean_line(steps: Mapping[float, list[float]]) -> tuple[list[float], list[float]]:
    points = thinned([(step, fmean(steps[step])) for step in sorted(steps)], GATE_POINTS)
    return [step for step, _ in points], [value for _, value in points]
