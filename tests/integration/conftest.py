"""What tests of the command line share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from reid.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def reid(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return run
