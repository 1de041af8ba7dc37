"""Which figures a task gets, and what is said of them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from penstock.bench.report import figures, series
from penstock.bench.report.board import Board, Standing
from penstock.bench.report.records import Records

COSTS = (
    ("decode_tokens_per_s", "speed", "Quality against decoding speed", "decoded tokens per second"),
    ("tokens_per_s", "speed", "Quality against training speed", "training tokens per second"),
    ("params", "seed", "Quality against size", "parameters"),
)
"""What quality is drawn against: the number in a record, the kind of run it is of, the title, the axis."""


class Picture(NamedTuple):
    """A figure and what stands above it."""

    svg: Markup
    title: str
    caption: str


class Panel(NamedTuple):
    """A small figure of one gate of one mechanism."""

    mechanism: str
    place: int
    gate: str
    svg: Markup
    shared: bool


def pictures(records: Records, board: Board, name: str) -> list[Picture]:
    """Return the figures of a task, without those for which nothing was recorded; `name` begins their ids."""
    floor = board.floors[0][1] * board.metric.scale if board.floors else None
    return [*_learning(records, board, name, floor), *_costs(records, board, name, floor), *_search(records, board, name)]


def _learning(records: Records, board: Board, name: str, floor: float | None) -> Iterator[Picture]:
    metric = board.metric
    quality = "valid", f"{metric.name} while learning".capitalize(), metric.label, metric.scale, floor
    for key, title, axis, scale, level in (quality, ("train_loss", "Training loss", "loss, nats", 1, None)):
        found = [series.curve(series.judged(records, board.task, s.mechanism), s.place, key, scale) for s in board.ranked]
        if lines := [line for line in found if line]:
            falls = key == "train_loss" or not metric.higher_is_better
            svg = figures.curves(f"{name}-{key}", f"{title} on {board.task}", lines, axis, floor=level, falls=falls)
            caption = "On the validation split. " if key == "valid" else "On what is trained on. "
            caption += "Line: mean over the seeds; band: lowest to highest seed."
            yield Picture(svg, title, caption + (" The start may lie above the frame." if falls else ""))


def _costs(records: Records, board: Board, name: str, floor: float | None) -> Iterator[Picture]:
    for key, kind, title, axis in COSTS:
        found = [_point(records, board, standing, kind, key) for standing in board.ranked]
        if points := [point for point in found if point]:
            label = f"{title} on {board.task}"
            svg = figures.scatter(f"{name}-{key}", label, points, axis, board.metric.label, floor)
            caption = "Whiskers: 95% intervals over the seeds."
            yield Picture(
                svg, title, f"{caption} Speed is measured once, apart from training." if kind == "speed" else caption
            )


def _point(records: Records, board: Board, standing: Standing, kind: str, key: str) -> figures.Point | None:
    runs = series.chosen(records, board.task, standing.mechanism, kind)
    cost = next((cost for run in runs if run.status == "finished" and (cost := run.number(key))), None)
    if cost is None or standing.mean is None:
        return None
    scale = board.metric.scale
    ends = (standing.ends[0] * scale, standing.ends[1] * scale) if standing.ends else None
    return figures.Point(standing.place, standing.mechanism, cost, standing.mean * scale, ends)


def _search(records: Records, board: Board, name: str) -> Iterator[Picture]:
    found = [series.searched(records, board.task, s.mechanism, s.place, board.metric.scale) for s in board.standings]
    if lines := [line for line in found if line]:
        title = "Search for a learning rate"
        svg = figures.search(f"{name}-search", f"{title} on {board.task}", lines, board.metric.label)
        yield Picture(svg, title, "Ringed: the rate the judged runs took. Crosses: rates that came to nothing.")


def panels(records: Records, board: Board, name: str) -> list[Panel]:
    """Return the gates of a task over training; those that every mechanism has alike are marked as shared."""
    found: Mapping[str, Sequence[series.GatePanel]] = {
        standing.mechanism: series.gate_panels(records, board.task, standing.mechanism) for standing in board.ranked
    }
    common = series.shared(found)
    result: list[Panel] = []
    for standing in board.ranked:
        for panel in found[standing.mechanism]:
            label = f"Mean of {panel.gate} of {standing.mechanism} over training on {board.task}, a line for each layer"
            svg = figures.openness(f"{name}-gate{len(result)}", label, standing.place, panel.layers)
            shared = (panel.gate, panel.owner) in common
            result.append(Panel(standing.mechanism, standing.place, panel.gate, svg, shared))
    return result
