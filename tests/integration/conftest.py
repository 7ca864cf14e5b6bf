"""What tests of the command line share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from reid.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def reid(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process and return (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def fails(reid: Run) -> Callable[..., str]:
    """Run a command that must fail with exit code 1 and one line of error after the progress; return that line."""

    def run(*arguments: object) -> str:
        code, out, err = reid(*arguments)
        assert code == 1, err
        assert out == ""
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert err.rstrip().endswith(lines[0])
        assert "Traceback" not in err
        return lines[0]

    return run


@pytest.fixture
def manifest(tiny_street: Path) -> Path:
    """The site whose cameras the fixture ``camera_weights`` knows."""
    return tiny_street / "street-a" / "manifest.csv"


@pytest.fixture
def other_manifest(tiny_street: Path) -> Path:
    """A site with other cameras."""
    return tiny_street / "street-b" / "manifest.csv"
