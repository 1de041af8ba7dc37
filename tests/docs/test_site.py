"""The built site: whole, without anything from elsewhere, and with a search that ranks as `penstock search` does."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from penstock.core.catalogue import search

ROOT = Path(__file__).resolve().parents[2]
QUERIES = [
    "forget gate",
    "linear attention",
    "gated linear attention",
    "sigmoid attention sink",
    "gating",
    "SwiGLU",
    "straight through",
    "sigma odot",
    "recurrent",
    "Yang 2024",
    "zyzzyva",
]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(docs, tmp_path_factory):
    pytest.importorskip("material", reason="the site needs the extra `docs`")
    root = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", root / "docs", ignore=shutil.ignore_patterns("catalogue"))
    shutil.copy(ROOT / "mkdocs.yml", root)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(docs, "PAGES", root / "docs/catalogue")
    monkeypatch.setattr(docs, "MEASURED", root / "docs/catalogue/.measured.json")
    docs.write_pages(measured=False)
    monkeypatch.undo()
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return root / "site"


class Resources(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        if tag != "a":
            self.found += [value for key, value in attrs if key in ("src", "href", "srcset", "poster", "data") and value]


def test_nothing_is_fetched_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        parser = Resources()
        parser.feed(page.read_text("utf-8"))
        assert parser.found
        assert not [value for value in parser.found if re.match(r"(\w+:)?//", value)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(\w+:)?//", sheet.read_text("utf-8")), sheet


@pytest.mark.browser
def test_the_search_in_the_browser_ranks_as_the_command_does(site):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (browser and driver):
        pytest.skip("no Chromium and driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as page:
        page.get((site / "catalogue/index.html").as_uri())
        box = page.find_element("id", "catalogue-search")
        for query in QUERIES:
            box.clear()
            box.send_keys(query)
            links = page.find_elements("css selector", "#catalogue-found li a")
            assert [link.text for link in links] == [card.name for card in search(query)], query
            assert not page.find_element("id", "catalogue-all").is_displayed()
        assert page.find_element("id", "catalogue-found").text == "Nothing fits."
        box.send_keys("\b" * len(QUERIES[-1]))
        assert page.find_element("id", "catalogue-all").is_displayed()
        assert page.get_log("browser") == []
