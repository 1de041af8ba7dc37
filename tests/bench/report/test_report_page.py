"""The page: what must be on it, whatever the records hold."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic_study import FAULT, MECHANISMS, TASKS, write_run, write_study

from penstock.bench import report
from penstock.bench.report.numbers import Metric
from penstock.bench.report.records import read
from penstock.core import DataError

VOID = {"meta", "link", "br", "path", "line", "use", "rect"}


class Page(HTMLParser):
    """Collects what the tests ask about, and checks that tags close in order."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.refs, self.loaded, self.headings, self.pictures, self.open = [], [], [], [], [], []
        self.rows, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.refs += re.findall(r"^#(.+)", found.get("href", "")) + re.findall(r"url\(#(.+?)\)", found.get("clip-path", ""))
        self.loaded += [value for key, value in attributes if key in ("src", "href", "xlink:href") and value[0] != "#"]
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "svg":
            self.pictures.append(found)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open or "script" in self.open:
            return
        self.text.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())

    def row(self, *starts):
        """Return the cells of the rows that start so."""
        return [
            [cell.strip() for cell in row]
            for row in self.rows
            if [cell.strip() for cell in row[: len(starts)]] == list(starts)
        ]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A study of three mechanisms on one task; only to be read."""
    return write_study(
        tmp_path_factory.mktemp("studies") / "small", mechanisms=("attention", "gla", "hgrn"), tasks=("mqar",)
    )


@pytest.fixture
def own(small, tmp_path):
    """A copy of the small study that a test may spoil."""
    return Path(shutil.copytree(small, tmp_path / "small"))


def written(out):
    return Page(report.write(out).read_text("utf-8"))


def test_the_page_is_sound(page):
    found = Page(page)
    assert found.open == []
    assert len(set(found.ids)) == len(found.ids)
    assert set(found.refs) <= set(found.ids)
    assert found.headings[0] == 1
    assert found.headings.count(1) == 1
    assert all(below <= above + 1 for above, below in zip(found.headings, found.headings[1:], strict=False))
    for picture in found.pictures:
        assert picture.get("aria-hidden") == "true" or (picture["role"] == "img" and picture["aria-label"])


def test_nothing_is_loaded_from_elsewhere(page):
    assert set(Page(page).loaded) == {"data:,"}
    assert not re.search(r"https?://|@import|url\((?!#)", page)


def test_the_page_is_small_and_the_same_each_time(study, page):
    assert len(page.encode()) < 600_000
    assert report.write(study).read_text("utf-8") == page


def test_figures_take_their_colors_from_the_page(page):
    figures = "".join(re.findall(r'<svg viewBox="0 0 (?:400|200).*?</svg>', page, re.DOTALL))
    assert figures.count("<text") > 100
    assert len(re.findall(r"<text [^>]*fill:var", figures)) == figures.count("<text")
    assert set(re.findall(r"(?:fill|stroke):([^;\"]+)", figures)) <= {"none"} | {
        f"var(--{name})" for name in ("ink", "muted", "line", "m0", "m1", "m2", "m3", "m4")
    }
    assert "font-family" not in figures


def test_the_leaderboard_is_that_of_the_results(study, page):
    found = Page(page)
    rows = json.loads((study / "results.json").read_text("utf-8"))["leaderboard"]
    for row in rows:
        if row["mean"] is None:
            continue
        metric = Metric(TASKS[row["task"]][0])
        cells = [str(row["rank"]), metric.text(row["mean"]), metric.interval(row["ci95"])]
        assert any(line[1:4] == cells and line[6] == "3" for line in found.row(row["mechanism"])), row


def test_floors_are_rows_in_their_place(page):
    rows = [row[0].split()[0] for row in Page(page).rows if len(row) == 8]
    mqar = rows[1 : 1 + len(MECHANISMS) + 2]
    assert mqar == ["gated-attention", "attention", "gla", "gam,chunk=16", "last", "hgrn", "chance"]


def test_what_does_not_beat_the_floor_is_marked(page):
    (row,) = [row for row in Page(page).row("hgrn", "5") if len(row) == 8]
    assert row[-1] == "not beaten"
    assert "hgrn does not" in page
    assert "below the floor" in page


def test_failures_are_rows_with_their_error(page):
    found = Page(page)
    assert found.row("gam,chunk=16", "–", f"no result: {FAULT}")
    assert found.row("text", "gam,chunk=16", "judged run, seed 0, 1 and 2", "failed", FAULT)
    assert len([row for row in found.row("mqar", "gla") if row[3] == "diverged"]) == 1
    assert "<steps>" not in page


def test_the_search_warns_of_a_best_rate_at_the_edge(page):
    assert "At the edge of what was tried: hgrn (0.0126, the highest of 4)." in page


def test_gates_of_shared_parts_are_apart(page):
    shown, shared = page.split('id="task-2"')[0].split("Gates of the parts that all models share")
    assert "mixer.output_gate" in shown.split("Gates over training")[1]
    assert "<b>hgrn</b> channel.gate" not in shown
    assert shared.count("channel.gate</span>") == len(MECHANISMS)


def test_what_repeats_it_is_there(page):
    words = Page(page).words
    assert f"penstock compare {' '.join(MECHANISMS)} --task mqar --task text --out runs/first" in words
    assert "40 trials, 30 judged runs and 10 measurements of speed" in words
    assert "lowest rate 0.0005" in words
    assert "torch" in words


def test_one_seed(tmp_path):
    found = written(write_study(tmp_path / "s", seeds=1, mechanisms=("attention", "gla"), tasks=("mqar",), failing=""))
    assert "With 1 seed there are no intervals" in found.words
    assert found.row("gla", "2")[0][3] == "one seed"
    assert "All tasks side by side" not in found.words


def test_two_seeds(tmp_path):
    found = written(write_study(tmp_path / "s", seeds=2, mechanisms=("attention", "gla"), tasks=("mqar",), failing=""))
    assert found.row("gla", "2")[0][3].endswith("(range)")


def test_no_trials(tmp_path):
    found = written(write_study(tmp_path / "s", trials=0, mechanisms=("attention",), tasks=("mqar",), failing=""))
    assert "Search for a learning rate" not in found.words
    assert "attention stands alone" in found.words


def test_no_speed_runs(own):
    for folder in own.glob("runs/*/*/speed"):
        shutil.rmtree(folder)
    found = written(own)
    assert "Quality against size" in found.words
    assert "Quality against decoding speed" not in found.words


def test_no_gates(tmp_path):
    out = write_study(tmp_path / "s", mechanisms=("attention", "gla"), tasks=("mqar",), failing="", layers=0)
    assert "No gate was recorded on this task." in written(out).words


def test_everything_failed(tmp_path):
    found = written(write_study(tmp_path / "s", mechanisms=("gla",), tasks=("text",), failing="gla"))
    assert "No judged run has finished yet." in found.words
    assert found.row("gla", "–", f"no result: {FAULT}")


def test_a_mechanism_without_a_model(own):
    for number in range(3):
        place = own / f"runs/mqar/gla/seed-{number}"
        shutil.rmtree(place)
        ending = {"metric": None, "value": None, "status": "failed", "error": "ConfigError: no width fits", "wall_s": 0.0}
        write_run(own, "mqar", "gla", 2, "seed", number, None, ending)
    found = written(own)
    assert found.row("gla", "–", "no result: ConfigError: no width fits")


def test_a_result_that_is_not_a_number_is_a_failure(own):
    shutil.rmtree(own / "runs/mqar/gla/seed-1")
    ending = {"metric": "accuracy", "value": float("nan"), "status": "finished", "error": None, "wall_s": 1.0}
    write_run(own, "mqar", "gla", 2, "seed", 1, 1e-3, ending)
    found = written(own)
    assert found.row("mqar", "gla", "judged run, seed 1", "finished", "its result is not a number")
    assert [row for row in found.row("gla", "2") if row[6] == "2 of 3"]


def test_odd_characters_are_text(tmp_path):
    odd = 'x_$y^2$:<b>Gate</b>,a="&%\u95a8'
    out = write_study(tmp_path / "s&<i>", mechanisms=("attention", odd), tasks=("<u>t</u> $y$",), failing="")
    text = report.write(out).read_text("utf-8")
    found = Page(text)
    assert found.row(odd)
    assert "s&<i>" in found.words
    assert "x_$y^2$:&lt;b&gt;Gate&lt;/…</text>" in text
    for tag in ("<b>Gate", "<i>", "<u>"):
        assert tag not in text


def test_a_study_without_runs(tmp_path):
    (tmp_path / "study.json").write_text('{"study": "new", "mechanisms": ["gla"], "tasks": [], "seeds": [0]}', "utf-8")
    assert "no run yet" in written(tmp_path).words


def test_an_unfinished_study_says_so(own):
    shutil.rmtree(own / "runs/mqar/gla/seed-2")
    (own / "runs/mqar/gla/.seed-2.partial").mkdir()
    found = written(own)
    assert "Not complete: 8 of 9 judged runs are here." in found.words
    assert found.row("mqar", "gla", "1 judged run", "missing")
    assert "Records left out" not in found.words


def test_a_corrupt_record_is_named_and_left_out(own):
    (own / "runs/mqar/gla/seed-1/run.json").write_text('{"task": "mq', "utf-8")
    (own / "results.json").write_text("{", "utf-8")
    found = written(own)
    assert "runs/mqar/gla/seed-1 cannot be read" in found.words
    assert "results.json cannot be read" in found.words
    assert str(own) not in found.words
    assert [row for row in found.row("gla", "2") if row[6] == "2 of 3"]
    assert "No floor is on record" in found.words


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("run.json", '{"task": "mq', "cannot be read"),
        ("run.json", "[]", "cannot be read"),
        ("run.json", None, "cannot be read"),
        ("metrics.jsonl", '{"step": 10}\n{"st', "is not what was written"),
        ("gates.jsonl", None, "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_record_is_said(own, name, text, says):
    place = "runs/mqar/gla/seed-1"
    spoil(own / place / name, text)
    found = read(own)
    assert len(found.runs) == 3 * (4 + 3 + 1) - 1
    assert [(where, says in reason) for where, reason in found.problems] == [(place, True)]


@pytest.mark.parametrize("text", ["{", "[1]", "\udcff", None])
@pytest.mark.parametrize("name", ["study.json", "results.json"])
def test_a_corrupt_table_is_named(own, name, text):
    spoil(own / name, text)
    found = read(own)
    assert [where for where, _ in found.problems] == [name]
    assert len(found.runs) == 3 * (4 + 3 + 1)


def spoil(path, text):
    path.unlink()
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))


def test_a_lost_study_is_drawn_from_its_runs(own):
    (own / "study.json").unlink()
    found = written(own)
    assert found.row("gla", "2")
    assert "study.json is not there" in found.words


def test_records_set_aside_are_named(own):
    (own / "set-aside/mqar-gla-seed-1.0").mkdir(parents=True)
    assert "set-aside/mqar-gla-seed-1.0 set aside by the comparison" in written(own).words


@pytest.mark.parametrize("make", [None, Path.touch, Path.mkdir])
def test_what_is_no_study_is_refused(tmp_path, make):
    place = tmp_path / "none"
    if make:
        make(place)
    with pytest.raises(DataError, match=re.escape(str(place))):
        report.write(place)
    assert not list(tmp_path.rglob("*report*"))


def test_a_report_that_cannot_be_written_leaves_the_old_one(own, monkeypatch):
    (own / "report.html").write_text("old", "utf-8")

    def full(path, text, *_):
        path.write_bytes(text[:100].encode())
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DataError, match=rf"{own}/report\.html: No space left on device"):
        report.write(own)
    assert (own / "report.html").read_text("utf-8") == "old"
    assert not (own / ".report.html.partial").exists()


def test_the_command_writes_the_report_and_names_it(own, capsys):
    from penstock.cli import main

    assert main(["report", str(own)]) == 0
    assert capsys.readouterr().out == f"{own / 'report.html'}\n"
    assert main(["report", str(own / "runs")]) == 2
    assert "holds no comparison" in capsys.readouterr().err


@pytest.mark.slow
def test_a_large_study_stays_small(tmp_path):
    names = tuple(f"mechanism-{place}" for place in range(12))
    tasks = ("mqar", "text", "third", "fourth")
    out = write_study(tmp_path / "large", mechanisms=names, tasks=tasks, seeds=5, trials=8, layers=12, failing="")
    assert report.write(out).stat().st_size < 2_000_000
