"""The rows of the tables, as text, and what each cell is sorted by."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from penstock.bench.report.board import Board, Standing
from penstock.bench.report.figures import near_enough
from penstock.bench.report.numbers import (
    NONE,
    Metric,
    count,
    joined,
    learning_rate,
    plural,
    size,
    spread,
    time_spent,
)
from penstock.bench.report.records import Records, Run
from penstock.bench.report.series import chosen, gate_rows, judged, taken

AGAINST = {"above": "beaten", "unclear": "unclear", "below": "not beaten", "unknown": NONE}


class Cell(NamedTuple):
    """What a cell says, and what it is sorted by."""

    text: str
    key: float | str | None = None


class Scale(NamedTuple):
    """The scale of the small graphics of a table: places are in percent of the width, a little inside of both ends."""

    low: float
    high: float

    def __call__(self, value: float) -> float:
        """Return the place of a value."""
        wide = self.high - self.low
        return 50.0 if wide <= 0 else round(4 + 92 * (value - self.low) / wide, 2)

    def holds(self, value: float) -> bool:
        """Tell whether a value lies on the scale."""
        return self.low <= value <= self.high


class Whisker(NamedTuple):
    """A mean with its interval, or a floor, on the scale of its table; a floor beyond the scale is at 0 or 100."""

    mean: float
    low: float
    high: float
    seeds: Sequence[float]
    floor: float | None


class LeaderRow(NamedTuple):
    """A row of the leaderboard: a mechanism, a floor, or a mechanism without a result."""

    kind: str
    name: str
    place: int
    rank: Cell
    value: Cell
    interval: Cell
    whisker: Whisker | None
    behind: Cell
    seeds: Cell
    against: Cell


def leader_rows(board: Board, scale: Scale) -> list[LeaderRow]:
    """Return the leaderboard with the floors between the mechanisms, the best first, and those without a result last."""
    placed = [(standing.mean or 0.0, 1, _leader_row(board, standing, scale)) for standing in board.ranked]
    placed += [(value, 0, _floor_row(board.metric, name, value, scale)) for name, value in board.floors]
    placed.sort(key=lambda entry: (-entry[0] if board.metric.higher_is_better else entry[0], entry[1]))
    return [row for _, _, row in placed] + [_failed_row(s) for s in board.standings if s.mean is None]


def scale_of(board: Board) -> Scale:
    """Return the scale of a task's results, with the best floor where that leaves the results room."""
    shown = [value for standing in board.ranked for value in (*standing.values.values(), *(standing.ends or ()))]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    if board.floors and near_enough(low, high, floor := board.floors[0][1]):
        low, high = min(low, floor), max(high, floor)
    return Scale(low, high)


def _floor_row(metric: Metric, name: str, value: float, scale: Scale) -> LeaderRow:
    none = Cell(NONE)
    place = scale(value) if scale.holds(value) else 0.0 if value < scale.low else 100.0
    whisker = Whisker(place, place, place, (), place)
    return LeaderRow("floor", name, -1, none, Cell(metric.text(value), value), none, whisker, none, none, none)


def _failed_row(standing: Standing) -> LeaderRow:
    none = Cell(NONE)
    why = Cell(standing.trouble[0] if standing.trouble else "not run yet")
    seeds = Cell(f"0 of {standing.planned}", 0)
    return LeaderRow("failed", standing.mechanism, standing.place, none, why, none, None, none, seeds, none)


def _leader_row(board: Board, standing: Standing, scale: Scale) -> LeaderRow:
    metric, values = board.metric, list(standing.values.values())
    ends = standing.ends or (min(values), max(values))
    shown = metric.interval(ends)
    if standing.ends is None:
        shown = "one seed" if len(values) == 1 else f"{shown} (range)"
    behind = Cell(NONE, 0.0)
    if standing.behind:
        gap, span = standing.behind
        text = metric.difference(gap, *(span or ()), signed=True)
        behind = Cell(f"{text} ({metric.differences(span, gap)})" if span else text, gap)
    whole = len(values) == standing.planned
    return LeaderRow(
        "mechanism",
        standing.mechanism,
        standing.place,
        Cell(str(standing.rank), standing.rank),
        Cell(metric.text(standing.mean), standing.mean),
        Cell(shown, ends[0]),
        Whisker(
            scale(standing.mean or 0.0),
            scale(ends[0]),
            scale(ends[1]),
            [scale(value) for value in values],
            scale(board.floors[0][1]) if board.floors and scale.holds(board.floors[0][1]) else None,
        ),
        behind,
        Cell(str(len(values)) if whole else f"{len(values)} of {standing.planned}", len(values)),
        Cell(AGAINST[standing.floor], ("above", "unclear", "below", "unknown").index(standing.floor)),
    )


class CostRow(NamedTuple):
    """What a mechanism costs on a task: its size, its speed, its memory."""

    name: str
    place: int
    cells: Sequence[Cell]


COSTS = (
    ("Parameters", "of the whole model"),
    ("Operations / token", "forward, in floating-point operations"),
    ("Widths", "residual stream, hidden layer of the channel mixer"),
    ("Training", "tokens per second, optimizer included"),
    ("Decoding", "tokens per second, one sequence, a token at a time"),
    ("State", "carried from token to token for one sequence"),
    ("Peak memory", "of tensors in a training step"),
    ("Time of a run", "mean and standard deviation over the judged runs"),
)


def cost_rows(records: Records, board: Board) -> list[CostRow]:
    """Return size, speed and memory of each mechanism, in the order of the leaderboard."""
    rows = []
    for standing in board.standings:
        runs = chosen(records, board.task, standing.mechanism, "seed")
        speeds = [run for run in chosen(records, board.task, standing.mechanism, "speed") if run.status == "finished"]
        first = next(iter(runs or chosen(records, board.task, standing.mechanism, "trial")), None)
        speed = speeds[0].number if speeds else lambda _: None
        sized = first.number if first else lambda _: None
        walls = [wall for run in judged(records, board.task, standing.mechanism) if (wall := run.number("wall_s"))]
        cells = [
            *(Cell(count(value), value) for value in (sized("params"), sized("flops"))),
            Cell(_widths(first)),
            *(Cell(count(value), value) for value in (speed("tokens_per_s"), speed("decode_tokens_per_s"))),
            *(Cell(size(value), value) for value in (speed("state_bytes"), speed("peak_bytes"))),
            Cell(time_spent(walls), fmean(walls) if walls else None),
        ]
        rows.append(CostRow(standing.mechanism, standing.place, cells))
    return rows


def _widths(run: Run | None) -> str:
    spec = (run.record.get("spec") if run else None) or {}
    channel = spec.get("channel")
    hidden = channel.get("hidden") if isinstance(channel, Mapping) else None
    return ", ".join(str(width) for width in (spec.get("dim"), hidden) if width is not None) or NONE


class TrialRow(NamedTuple):
    """A trial of a learning rate."""

    name: str
    place: int
    rate: Cell
    value: Cell
    steps: Cell
    note: str


def trial_rows(records: Records, board: Board) -> list[TrialRow]:
    """Return every trial, by mechanism and rate."""
    rows = []
    for standing in sorted(board.standings, key=lambda s: s.place):
        best = taken(records, board.task, standing.mechanism)
        trials = chosen(records, board.task, standing.mechanism, "trial")
        for run in sorted(trials, key=lambda run: run.number("learning_rate") or 0):
            rate, score = run.number("learning_rate"), run.score
            note = "taken" if rate is not None and rate == best else ""
            rows.append(
                TrialRow(
                    standing.mechanism,
                    standing.place,
                    Cell(learning_rate(rate), rate),
                    Cell(board.metric.text(score) if score is not None else run.status, score),
                    Cell(count(run.number("steps")), run.number("steps")),
                    note if score is not None else run.error,
                )
            )
    return rows


def edges(records: Records, board: Board) -> list[str]:
    """Return the mechanisms whose best rate is the lowest or the highest tried: a better one may lie beyond."""
    found = []
    for standing in sorted(board.standings, key=lambda s: s.place):
        best = taken(records, board.task, standing.mechanism)
        trials = chosen(records, board.task, standing.mechanism, "trial")
        rates = [rate for run in trials if (rate := run.number("learning_rate")) is not None]
        if len(rates) > 1 and best in (min(rates), max(rates)):
            end = "lowest" if best == min(rates) else "highest"
            found.append(f"{standing.mechanism} ({learning_rate(best)}, the {end} of {len(rates)})")
    return found


class FailureRow(NamedTuple):
    """A run that did not finish, or that is not there."""

    task: str
    name: str
    run: str
    status: str
    error: str


def failure_rows(records: Records, boards: Iterable[Board]) -> list[FailureRow]:
    """Return the runs that failed or diverged, those alike in one row, then the judged runs that are missing."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for run in records.runs:
        if run.score is None and not (run.kind == "speed" and run.status == "finished"):
            error = run.error if run.status != "finished" else "its result is not a number"
            alike.setdefault((run.task, run.mechanism, run.status, error, run.kind), []).append(_which(run))
    found = [
        FailureRow(task, name, KINDS[kind].format(joined([which for which in runs if which])).strip(), status, error)
        for (task, name, status, error, kind), runs in alike.items()
    ]
    for board in boards:
        for standing in board.standings:
            absent = standing.planned - len(standing.values) - len(standing.trouble)
            if absent > 0:
                what = plural(absent, "judged run")
                found.append(
                    FailureRow(board.task, standing.mechanism, what, "missing", "not finished yet, or not readable")
                )
    return found


KINDS = {"seed": "judged run, seed {}", "trial": "trial of {}", "speed": "measurement of speed"}


def _which(run: Run) -> str:
    if run.kind == "trial":
        return learning_rate(run.number("learning_rate"))
    return count(run.number("seed")) if run.kind == "seed" else ""


class GateEnd(NamedTuple):
    """A gate at the end of training."""

    name: str
    place: int
    gate: str
    cells: Sequence[Cell]


def gate_ends(records: Records, board: Board) -> list[GateEnd]:
    """Return mean, shares and entropy of every gate at the end of training, each with its spread over the seeds."""
    found = []
    for standing in board.ranked:
        for row in gate_rows(records, board.task, standing.mechanism):
            forms = (row.mean, ".3f"), (row.closed, ".2f"), (row.open, ".2f"), (row.entropy, ".2f")
            cells = [Cell(spread(values, form), fmean(values)) if values else Cell(NONE) for values, form in forms]
            found.append(GateEnd(standing.mechanism, standing.place, row.gate, cells))
    return found


def overall_rows(boards: Sequence[Board]) -> list[tuple[str, int, Cell, list[Cell]]]:
    """Return for each mechanism its mean rank, and its value on each task; the best mean rank first."""
    rows = []
    for standing in sorted(boards[0].standings, key=lambda s: s.place):
        mine = [next(s for s in board.standings if s.place == standing.place) for board in boards]
        placed = [s.rank for s in mine if s.rank is not None]
        mean = sum(placed) / len(placed) if len(placed) == len(boards) else None
        cells = [_overall_cell(board.metric, s) for board, s in zip(boards, mine, strict=True)]
        rows.append((standing.mechanism, standing.place, Cell(NONE if mean is None else f"{mean:g}", mean), cells))
    return sorted(rows, key=lambda row: (row[2].key is None, row[2].key or 0, row[1]))


def _overall_cell(metric: Metric, standing: Standing) -> Cell:
    if standing.mean is None:
        return Cell("no result")
    values = standing.values.values()
    ends = standing.ends or (min(values), max(values))
    span = "one seed" if len(values) == 1 else metric.interval(ends)
    sunk = ", below the floor" if standing.floor == "below" else ""
    return Cell(f"{metric.text(standing.mean)} ({span}){sunk}", standing.mean)
