"""Take a screenshot of the running application for the README.

Run from the root of the repository: ``PYTHONPATH=tests python tests/browser/screenshot.py OUT.png [--address URL]``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from helpers.visiting import FLAGS, chromium


def main() -> None:
    """Open the page, choose a query and a tab, and write the screenshot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="PNG file to write")
    parser.add_argument("--address", default="http://127.0.0.1:7860", help="address of the running application")
    parser.add_argument("--tab", default="Search", choices=["Search", "Scores", "Cameras"])
    parser.add_argument("--query", type=int, help="number of the query button to press, 0 to 11")
    parser.add_argument("--answers", default="both", choices=["both", "visible", "infrared"])
    parser.add_argument("--scale", type=float, default=1.5, help="pixels of the screenshot for one pixel of the page")
    given = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 800}, device_scale_factor=given.scale)
        page.goto(given.address)
        expect(page.locator(".reid-answer").first).to_be_visible()
        page.locator("#answers-modality").get_by_label(given.answers, exact=True).check()
        if given.query is not None:
            button = page.locator("#picker button").nth(given.query)
            words = button.locator("img").get_attribute("alt")
            button.click()
            expect(page.locator(f'.reid-query img[alt="Query: {words}"]')).to_be_visible()
        page.get_by_role("tab", name=given.tab).click()
        page.wait_for_timeout(1000)  # the page keeps a connection open, so it is never idle
        page.screenshot(path=given.out)
        browser.close()


if __name__ == "__main__":
    main()
