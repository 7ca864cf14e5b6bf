"""A running application and the browser that visits it."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclass(frozen=True)
class Demo:
    """A running application.

    Args:
        process: Its process.
        address: The address of its page.
        data: The folder of its data.
        temporary: The folder of its temporary files.
        errors: The file with its stderr.
    """

    process: subprocess.Popen[str]
    address: str
    data: Path
    temporary: Path
    errors: Path


def axe_script() -> str:
    """Return the source of axe-core, which is installed beside the browser tests where it is missing."""
    folder = Path(__file__).parents[1] / "browser"
    script = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not script.exists() and shutil.which("npm"):
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--prefix", str(folder)], check=False, timeout=300)
    if not script.exists():
        pytest.fail(f"{script}: no axe-core; run: npm ci --prefix {folder}", pytrace=False)
    return script.read_text(encoding="utf-8")


def wait_until_idle(page: Page) -> None:
    """Wait until the page has shown the answer to its last question."""
    page.wait_for_selector("[data-ready=yes]", state="attached")
    page.wait_for_function("!document.querySelector('section[data-page][aria-busy=true]')")


def open_page(page: Page, name: str) -> Locator:
    """Open one page of the application by its link, and return it when it is filled."""
    page.get_by_role("navigation").get_by_role("link", name=name, exact=True).click()
    wait_until_idle(page)
    section = page.locator(f'section[data-title="{name}"]')
    expect(section).to_be_visible()
    return section


def chromium() -> str:
    """Return the path of Chromium; without Chromium the test fails with a line that says what to install."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
    if shutil.which(path) is None:
        pytest.fail(
            f"{path}: no Chromium; install the package 'chromium' or set CHROMIUM to the program", pytrace=False
        )
    return path
