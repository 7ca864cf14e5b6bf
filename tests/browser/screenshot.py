"""Take screenshots of the running application.

Run from the root of the repository. One page, as for the README:
``PYTHONPATH=tests python tests/browser/screenshot.py OUT.png [--page people] [--address URL]``.
Every page on a desk and on a phone, light and dark:
``PYTHONPATH=tests python tests/browser/screenshot.py FOLDER --all``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from helpers.visiting import FLAGS, chromium, open_page, wait_until_idle

PAGES = ("Search", "People", "Cameras", "Gallery", "Evaluation", "Map")
SIZES = {"desk": (1440, 900), "phone": (390, 844)}
SCHEMES = ("light", "dark")


def visit(browser: Browser, address: str, size: tuple[int, int], scheme: str, scale: float) -> Page:
    """Open the application in a window of its own."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, device_scale_factor=scale
    )
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(address)
    wait_until_idle(page)
    return page


def take_all(browser: Browser, address: str, folder: Path) -> None:
    """Write a screenshot of every page, size and colour scheme."""
    folder.mkdir(parents=True, exist_ok=True)
    for size_name, size in SIZES.items():
        for scheme in SCHEMES:
            page = visit(browser, address, size, scheme, 1)
            for name in PAGES:
                open_page(page, name)
                page.screenshot(path=folder / f"{name.lower()}-{size_name}-{scheme}.png")
            page.context.close()


def main() -> None:
    """Open the page, choose a query and a page, and write the screenshots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="PNG file to write, or a folder with --all")
    parser.add_argument("--address", default="http://127.0.0.1:7860", help="address of the running application")
    parser.add_argument("--page", default="Search", choices=PAGES)
    parser.add_argument("--query", type=int, help="number of the query button to press, 0 to 11")
    parser.add_argument("--compare", action="store_true", help="show the networks that can be compared as well")
    parser.add_argument("--all", action="store_true", help="every page, on a desk and on a phone, light and dark")
    parser.add_argument("--scale", type=float, default=1.5, help="pixels of the screenshot for one pixel of the page")
    given = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        if given.all:
            take_all(browser, given.address, given.out)
        else:
            page = visit(browser, given.address, (1280, 800), "light", given.scale)
            if given.query is not None:
                page.locator("#reid-picker button").nth(given.query).click()
            if given.compare:
                page.locator("[name=compare]").check()
            wait_until_idle(page)
            open_page(page, given.page)
            page.screenshot(path=given.out)
        browser.close()


if __name__ == "__main__":
    main()
