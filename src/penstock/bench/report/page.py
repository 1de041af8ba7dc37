"""The page: what it shows of each task and of all, and the template that lays it out."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

import penstock
from penstock.bench.report import circumstances, rows
from penstock.bench.report.answer import Answer, answer, overall
from penstock.bench.report.board import Board, board
from penstock.bench.report.palette import THEMES, color, marker
from penstock.bench.report.pictures import Panel, Picture, panels, pictures
from penstock.bench.report.records import Records

PATHS: Mapping[str, str] = {
    "o": "M8 3a5 5 0 1 0 0 10a5 5 0 1 0 0-10z",
    "s": "M3.5 3.5h9v9h-9z",
    "^": "M8 2.5L13.5 12.5h-11z",
    "D": "M8 1.5L14.5 8L8 14.5L1.5 8z",
    "v": "M8 13.5L2.5 3.5h11z",
    "P": "M6 2.5h4V6h3.5v4H10v3.5H6V10H2.5V6H6z",
    "X": "M5 2.5L8 5.5L11 2.5L13.5 5L10.5 8L13.5 11L11 13.5L8 10.5L5 13.5L2.5 11L5.5 8L2.5 5z",
    "p": "M8 2L14 6.4L11.7 13.4H4.3L2 6.4z",
    "h": "M8 1.8L13.4 4.9V11.1L8 14.2L2.6 11.1V4.9z",
    "<": "M2.5 8L12.5 2.5v11z",
    ">": "M13.5 8L3.5 2.5v11z",
}
"""The markers of the figures, to be drawn beside a name."""


class TaskView(NamedTuple):
    """What the page shows of a task."""

    anchor: str
    board: Board
    about: Sequence[str]
    answer: Answer
    leaders: Sequence[rows.LeaderRow]
    ends: tuple[str, str]
    pictures: Sequence[Picture]
    costs: Sequence[rows.CostRow]
    matched: str
    trials: Sequence[rows.TrialRow]
    edges: str
    gates: Sequence[Panel]
    common: Sequence[Panel]
    gate_rows: Sequence[rows.GateEnd]


def render(records: Records) -> str:
    """Return the page."""
    mechanisms = named(records, "mechanism")
    tasks = named(records, "task")
    boards = [board(records, task, mechanisms) for task in tasks]
    environment = Environment(
        loader=PackageLoader("penstock.bench.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    template = environment.get_template("report.html.j2")
    return template.render(
        version=penstock.__version__,
        title=str(records.study.get("study") or records.results.get("study") or "comparison"),
        lede=overall(boards),
        progress=circumstances.progress(boards),
        caution=circumstances.caution(boards),
        facts=circumstances.facts(records, boards),
        views=[view(records, found, place) for place, found in enumerate(boards)],
        overall=rows.overall_rows(boards) if len(boards) > 1 else [],
        failures=rows.failure_rows(records, boards),
        machines=circumstances.machines(records),
        settings=circumstances.settings(records),
        command=records.study.get("command"),
        wall=circumstances.wall(records),
        problems=records.problems,
        costs=rows.COSTS,
        themes=THEMES,
        color=color,
        shape=lambda place: PATHS[marker(place)],
    )


def named(records: Records, kind: str) -> list[str]:
    """Return the labels of the tasks or mechanisms in the study's order, then those only the records know."""
    listed = records.study.get(f"{kind}s") or []
    labels = [item.get(kind) if isinstance(item, Mapping) else item for item in listed]
    known = [str(label) for label in labels if label is not None]
    found = sorted({run.task if kind == "task" else run.mechanism for run in records.runs})
    return list(dict.fromkeys([*known, *found]))


def view(records: Records, found: Board, place: int) -> TaskView:
    """Return what the page shows of a task."""
    scale = rows.scale_of(found)
    gates = panels(records, found, f"t{place}")
    return TaskView(
        anchor=f"task-{place + 1}",
        board=found,
        about=list(filter(None, (circumstances.options(records, found.task), circumstances.sizes(records, found)))),
        answer=answer(found),
        leaders=rows.leader_rows(found, scale),
        ends=(found.metric.text(scale.low), found.metric.text(scale.high)),
        pictures=pictures(records, found, f"t{place}"),
        costs=rows.cost_rows(records, found),
        matched=circumstances.matched(records, found),
        trials=rows.trial_rows(records, found),
        edges="; ".join(rows.edges(records, found)),
        gates=[panel for panel in gates if not panel.shared],
        common=[panel for panel in gates if panel.shared],
        gate_rows=rows.gate_ends(records, found),
    )
