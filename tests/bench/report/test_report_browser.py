"""The page in a browser: it sorts, it fits a phone, it can be read in the dark."""

import shutil

import pytest

pytestmark = pytest.mark.browser

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
CONTRASTS = """
const channels = (text) => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
  .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
  .reduce((sum, c, place) => sum + c * [0.2126, 0.7152, 0.0722][place], 0);
const ground = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const found = channels(getComputedStyle(at).backgroundColor);
    if (found.length === 3 || found[3] > 0) return found;
  }
};
const found = [];
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!own || element.closest("script, style, [aria-hidden]") || !element.getClientRects().length) continue;
  const style = getComputedStyle(element);
  const pair = [light(channels(element.closest("svg") ? style.fill : style.color)), light(ground(element))];
  found.push([(Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), element.tagName, element.textContent.trim()]);
}
return found;
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, helper = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and helper):
        pytest.skip("chromium or chromedriver is not installed")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = selenium.Chrome(options=options, service=selenium.ChromeService(helper))
    yield found
    found.quit()


@pytest.fixture
def opened(driver, study, page):
    """Return a function that opens the report at a width, in a theme."""
    path = study / "report.html"
    assert path.read_text("utf-8") == page

    def open_(width=1180, theme="light", *, scripts=True):
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        driver.get(path.as_uri())
        return driver

    return open_


def names(driver):
    rows = driver.find_elements("css selector", "#task-1 table.leaders tbody th")
    return [row.text.removesuffix(" floor").strip() for row in rows]


def test_the_console_is_silent(opened):
    assert opened().get_log("browser") == []


def test_a_table_sorts_by_mouse_and_by_keyboard(opened):
    driver = opened()
    before = names(driver)
    assert before[0] == "gated-attention"
    header = driver.find_element("css selector", "#task-1 table.leaders thead th")
    button = header.find_element("css selector", "button")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", button)
    button.click()
    assert names(driver) == sorted(before)
    assert header.get_attribute("aria-sort") == "ascending"
    button.send_keys("\n")
    assert names(driver) == sorted(before, reverse=True)
    assert header.get_attribute("aria-sort") == "descending"
    value = driver.find_elements("css selector", "#task-1 table.leaders thead th")[2]
    value.find_element("css selector", "button").send_keys(" ")
    assert names(driver)[0] == "chance"
    assert names(driver)[-1] == "gated-attention"
    value.find_element("css selector", "button").send_keys(" ")
    assert names(driver) == before
    assert header.get_attribute("aria-sort") is None


def test_rows_without_a_value_sort_last(opened):
    driver = opened()
    for _ in range(2):
        header = driver.find_elements("css selector", "#task-2 table.leaders thead th")[1]
        header.find_element("css selector", "button").send_keys("\n")
        ranks = driver.find_elements("css selector", "#task-2 table.leaders tbody td:nth-child(2)")
        shown = [rank.text for rank in ranks]
        assert shown[-4:] == ["–"] * 4
        assert sorted(shown[:-4]) == ["1", "2", "3", "4"]


@pytest.mark.parametrize("width", [390, 768, 1180])
def test_nothing_sticks_out(opened, width):
    driver = opened(width)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    driver.execute_script("document.querySelectorAll('details').forEach((box) => box.open = true)")
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1180])
def test_text_stands_out_from_what_is_behind_it(opened, theme, width):
    driver = opened(width, theme)
    driver.execute_script("document.querySelectorAll('details').forEach((box) => box.open = true)")
    found = driver.execute_script(CONTRASTS)
    assert len(found) > 500
    assert sum(tag == "text" for _, tag, _ in found) > 100
    assert [entry for entry in found if entry[0] < 4.5] == []


def test_the_themes_differ(opened):
    grounds = [
        opened(theme=theme).find_element("css selector", "body").value_of_css_property("background-color")
        for theme in ("light", "dark")
    ]
    assert grounds[0] != grounds[1]


def test_it_can_be_read_without_scripts(opened):
    driver = opened(scripts=False)
    assert driver.find_elements("css selector", "th button") == []
    assert "gated-attention reaches" in driver.find_element("css selector", ".answers").text
    assert names(driver)[0] == "gated-attention"
    opened()
