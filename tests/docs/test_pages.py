"""What scripts/docs.py writes from the catalogue."""

from pathlib import Path

import pytest

from penstock.core.catalogue import CONTRACTS, cards

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", list(cards()))
def test_a_page_shows_what_the_card_says(docs, name):
    card = cards()[name]
    page = docs.page(card, {"compile": True, "export": "x < y"} if card.contract in CONTRACTS else None)
    assert page.startswith(f"# {name}\n")
    assert docs.prose(card.description) in page
    assert ('<div class="equation"><math' in page) == bool(card.equation)
    assert "$$" not in page.partition("## Code")[0]
    assert f"@misc{{{card.paper}," in page
    assert f"import {card.symbol.rpartition('.')[2]}" in page
    for gate in card.gates:
        assert f"| `{gate}` |" in page
    if card.contract in CONTRACTS:
        assert "Parameters: " in page
        assert "| compile | yes |" in page
        assert "| export | no: x &lt; y |" in page


def test_an_unknown_latex_command_is_an_error(docs):
    with pytest.raises(ValueError, match=r"\\nonesuch"):
        docs.mathml(r"x + \nonesuch y")


def test_an_equation_is_broken_between_its_parts_only(docs):
    assert docs.displayed(r"a = b, \qquad c = d").count("<math") == 2
    assert docs.displayed(r"a = \begin{cases} b & c \qquad d \end{cases}").count("<math") == 1


def test_inline_code_and_prices_are_no_equations(docs):
    text = r"costs $5, and `$x$` is code"
    assert docs.prose(text) == text
    assert "<math" in docs.prose("the gate $g$ opens")


def test_the_sections_of_a_docstring_do_not_follow_its_text(docs):
    assert docs.prose("What it is.\n\nMore.\n\nArgs:\n    x: what.\n") == "What it is.\n\nMore."


def test_relatives_are_nearest_first(docs):
    near = [card.name for card in docs.relatives(cards()["swiglu"])]
    assert "swiglu" not in near
    assert set(near[:4]) == {"bilinear", "geglu", "glu", "reglu"}


def test_the_catalogue_page_has_every_entry_and_the_search(docs):
    page = docs.catalogue()
    for name in cards():
        assert f"[{name}]({name}.md)" in page
    assert 'id="catalogue-search"' in page
    assert page.count("</script>") == 1


def test_measurements_are_made_once_for_a_file(docs, tmp_path, monkeypatch):
    monkeypatch.setattr(docs, "PAGES", tmp_path)
    monkeypatch.setattr(docs, "MEASURED", tmp_path / "measured.json")
    calls = []

    class Pool:
        def __init__(self, **_): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def map(self, _, names):
            calls.extend(names)
            return [{"compile": True} for _ in names]

    monkeypatch.setattr(docs, "ProcessPoolExecutor", Pool)
    assert docs.measure(["swiglu"]) == {"swiglu": {"compile": True}}
    assert docs.measure(["swiglu", "gla"]) == {"swiglu": {"compile": True}, "gla": {"compile": True}}
    assert calls == ["swiglu", "gla"]
    monkeypatch.setattr(docs, "version", lambda _: "another torch")
    docs.measure(["swiglu"])
    assert calls == ["swiglu", "gla", "swiglu"]


def test_the_table_in_the_readme_is_current(docs):
    text = (ROOT / "README.md").read_text("utf-8")
    assert docs.MARKERS[0] in text
    assert docs.readme(text) == text, "run: python scripts/docs.py --readme"
