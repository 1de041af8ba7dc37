"""Studies of budgets: what is asked is kept, what is measured is shown."""

import json
from xml.etree import ElementTree as ET

import pytest

from penstock.bench import budget
from penstock.bench.report import budget as report
from penstock.cli.app import main
from penstock.core import ConfigError

SMALL = {"seeds": 1, "steps": 4, "dim": 16, "layers": 2}


def test_the_command_writes_a_table_and_a_picture(tmp_path, capsys):
    flags = [f"--{key}={value}" for key, value in SMALL.items()]
    asked = ["gateskip", "early-exit", "--task", "digits,scan=rows", "--budget", "0.5", "--budget", "1", f"--out={tmp_path}"]
    assert main(["budget", *asked, *flags]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[:2] for line in shown.splitlines() if line.startswith(("gateskip", "early-exit"))] == [
        ["gateskip", "50%"],
        ["gateskip", "100%"],
        ["early-exit", "50%"],
        ["early-exit", "100%"],
    ]
    rows = json.loads((tmp_path / "budget.json").read_text())["rows"]
    assert {row["mechanism"] for row in rows} == {"gateskip", "early-exit"}
    assert all(row["flops"] > 0 and row["speed"] > 0 for row in rows)
    page = (tmp_path / "budget.html").read_text()
    svg = ET.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    assert svg.get("role") == "img"
    assert "gateskip" in svg.get("aria-label")
    assert "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "task", "asked"),
    [
        (["gateskip", "mixture-of-depths"], "text,length=32", (0.3, 0.6)),
        (["skip-middle"], "text,length=32", (0.6, 0.85)),
        (["evit"], "digits", (0.5, 0.7)),
    ],
)
def test_realised_budgets_are_within_two_points_of_the_asked_ones_on_held_out_data(names, task, asked):
    curve = budget.measure(names, task, asked, seeds=1, steps=60, dim=32, layers=4)
    assert len(curve.rows) == 2 * len(names)
    for row in curve.rows:
        assert abs(row.realised - row.budget) < 0.02, row
    for name in names:
        low, high = (curve.at(name, share)[0].flops for share in asked)
        assert low < high


@pytest.mark.parametrize(
    ("names", "task", "budgets", "message"),
    [
        (["gateskip"], "digits", [0.5, 0.0], "target must be a share above 0 and at most 1, got 0.0"),
        (["gateskip"], "digits", [1.5], "target must be a share above 0"),
        (["gateskipp"], "digits", [0.5], "did you mean 'gateskip'"),
        (["swiglu"], "digits", [0.5], "unknown mechanism 'swiglu'"),
        (["jei-dnn"], "mqar", [0.5], "jei-dnn: needs a task that classifies whole sequences"),
        (["evit"], "text", [0.5], "evit: needs a task that classifies sequences of features"),
        (["skip-middle"], "digits", [0.5], "skip-middle: needs a task that predicts the next token"),
        ([], "digits", [0.5], "at least one mechanism and one budget"),
        (["gateskip"], "digitss", [0.5], "did you mean 'digits'"),
    ],
)
def test_what_cannot_be_studied_is_said_before_any_work(names, task, budgets, message):
    with pytest.raises(ConfigError, match=message):
        budget.study_of(names, task, budgets)


def test_a_budget_below_what_the_first_layers_cost_is_left_out(tmp_path):
    curve = budget.measure(["evit", "early-exit"], "digits,scan=rows", (0.2, 1.0), seeds=1, steps=2, dim=16, layers=4)
    assert [(row.mechanism, row.budget) for row in curve.rows] == [("evit", 1.0), ("early-exit", 1.0)]
    report.write(curve, tmp_path)
    svg = (tmp_path / "budget.html").read_text()
    assert "of evit, early-exit" in svg[svg.index("<svg") :]


def test_the_patches_that_evit_keeps_become_fewer_until_the_middle_of_its_training():
    study, _ = budget.study_of(["evit"], "digits", [0.5], seeds=1, dim=16, layers=4)
    model = budget.model_of(study, budget.build_task(study.tasks[0]), "evit", 0)
    lower, keeps = budget.lowering(model, "evit", 0.5, 0.5), []
    for done in (0.0, 0.25, 0.5, 1.0):
        lower(done)
        keeps.append(model.keep)
    assert keeps[0] == 1.0
    assert keeps[1] == pytest.approx((1 + keeps[3]) / 2)
    assert keeps[2] == keeps[3]
    assert abs(model.share(None) - 0.5) < 0.02


def test_the_table_has_means_and_spread_over_seeds():
    rows = [budget.Row("a", seed, 0.5, 0.49 + 0.02 * seed, 0.8 + 0.1 * seed, 0.55, 1.5 + seed) for seed in (0, 1)]
    shown = report.table(budget.Curve("t", "accuracy", [0.9, 1.0], rows))
    assert shown[1][3] == "0.950 (0.900 to 1.000)"
    assert shown[2] == ("a", "50%", "50.0%", "0.850 (0.800 to 0.900)", "2", "55%", "2.00x")
