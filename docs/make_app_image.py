"""Draws the README's image of the search page from one that runs, in the Chromium that is on the machine.

tpas app outputs/demo/pab/test --model outputs/demo/fine_tuned/best
python docs/make_app_image.py http://127.0.0.1:7860/
"""

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import sync_playwright

TEXT, WORD = "A woman in a turquoise dress is falling to the ground", "dress"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("page", help="its address")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("app.jpg"))
    arguments = parser.parse_args(argv)
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []  # with it Chromium does not start for root
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=as_root)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(arguments.page)
        page.fill("#tpas-texts textarea", TEXT)
        page.press("#tpas-texts textarea", "Enter")
        page.wait_for_selector(".tpas-cards")
        page.wait_for_selector(".tpas-reading", state="detached")
        page.locator(".tpas-card").first.click()
        page.locator(".tpas-words label", has_text=WORD).click()
        page.screenshot(path=arguments.output, type="jpeg", quality=85)
        browser.close()


if __name__ == "__main__":
    main()
