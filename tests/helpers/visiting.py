"""What a visit of the demo needs: the running program's facts, and the browser's program."""

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
    """A running demo: its address, its data, where its temporary files go and what it has said on stderr."""

    process: subprocess.Popen[str]
    address: str
    data: Path
    temporary: Path
    errors: Path


def chromium() -> str:
    """The browser's program, or a failure that says what to do."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
    if shutil.which(path) is None:
        pytest.fail(
            f"{path}: no Chromium; install the package 'chromium' or set CHROMIUM to the program", pytrace=False
        )
    return path
