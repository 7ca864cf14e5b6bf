"""A running application and the browser that visits it."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

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


def chromium() -> str:
    """Return the path of Chromium; without Chromium the test fails with a line that says what to install."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
    if shutil.which(path) is None:
        pytest.fail(
            f"{path}: no Chromium; install the package 'chromium' or set CHROMIUM to the program", pytrace=False
        )
    return path
