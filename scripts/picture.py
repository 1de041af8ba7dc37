"""Take the README's picture: the top of a comparison's report, as Chromium shows it.

python scripts/picture.py runs/demo/report.html
"""

import argparse
import shutil
from pathlib import Path

from selenium import webdriver

PICTURE = Path(__file__).resolve().parent.parent / "docs/assets/report.png"


def take(page: Path, width: int, height: int) -> None:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars", f"--window-size={width},{height}"):
        options.add_argument(argument)
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))) as browser:
        browser.get(page.resolve().as_uri())
        browser.save_screenshot(str(PICTURE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--width", type=int, default=1100)
    parser.add_argument("--height", type=int, default=1250)
    options = parser.parse_args()
    take(options.page, options.width, options.height)


if __name__ == "__main__":
    main()
