"""Every command that writes is killed at its steps on the disk: old or new files remain, and the next run cleans up.

The steps are those of ``helpers.kill_server``: each change of a folder, each wait for the disk, and the writers of
libraries when half of a file is written. The suite takes some steps of each command; ``REID_EVERY_STEP=1`` takes all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGKILL
from typing import Any

import numpy as np
import pytest
from typer.main import get_command

from helpers.kill_cases import (
    BEFORE_READERS,
    CASES,
    USERS_FILES,
    WRITE_AS_OTHERS,
    WRITE_NOTHING,
    add_users,
    make_template,
)
from helpers.kill_server import KILLED
from helpers.kill_states import Case
from reid.cli import app

EVERY_STEP = bool(os.environ.get("REID_EVERY_STEP"))
TESTS = Path(__file__).parents[1]

Ask = Callable[..., dict[str, Any]]


@contextmanager
def asking() -> Iterator[Ask]:
    """Run commands in forks, killed at a step, after some seconds, or not at all."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, TESTS / "helpers" / "kill_server.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        stdin, stdout = server.stdin, server.stdout

        def request(
            arguments: list[str], folder: Path, step: int | None, after: float | None = None, typed: str = ""
        ) -> dict[str, Any]:
            asked = {"arguments": arguments, "folder": str(folder), "step": step, "after": after, "typed": typed}
            stdin.write(json.dumps(asked) + "\n")
            stdin.flush()
            answer: dict[str, Any] = json.loads(stdout.readline())
            return answer

        yield request
        stdin.close()


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    with asking() as request:
        yield request


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, plain_weights: Path) -> Path:
    folder = tmp_path_factory.mktemp("template")
    make_template(folder, plain_weights)
    return folder


def names(folder: Path) -> list[str]:
    """All files and folders; the random part of the names of a gallery's files is left out."""
    return sorted(
        re.sub("data-[0-9a-f]{16}", "data-*", str(path.relative_to(folder)))
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    )


def chosen(steps: list[str], count: int) -> list[int]:
    """All steps, or about ``count`` of them: before and after the last file is replaced, and others spread evenly."""
    if EVERY_STEP or len(steps) <= count:
        return list(range(len(steps)))
    last = max(number for number, step in enumerate(steps) if step == "replace")
    spread = np.linspace(0, len(steps) - 1, max(count - 2, 1)).astype(int).tolist()
    return sorted({last, last + 1, *spread})


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_killed_command_leaves_old_or_new_files_and_the_next_run_cleans_up(
    case: Case, ask: Ask, template: Path, tmp_path: Path
) -> None:
    trial = Trial(case, ask, template, tmp_path)
    for step in chosen(trial.steps, case.steps):
        trial.kill(step)


class Trial:
    """A command that is killed again and again, each time in a copy of the same folder.

    Args:
        case: The command.
        ask: Runs it.
        template: The folder that the case begins with.
        place: An empty folder for copies.
    """

    def __init__(self, case: Case, ask: Ask, template: Path, place: Path):
        self.case, self.ask, self.place = case, ask, place
        self.start = Path(shutil.copytree(template, place / "start"))
        for arguments in case.before:
            assert ask(list(arguments), self.start, None)["code"] == 0
        case.prepare(self.start)
        self.whole = Path(shutil.copytree(self.start, place / "whole"))
        full = ask(list(case.arguments), self.whole, None, typed=case.typed)
        assert full["code"] == 0, full["err"]
        self.steps: list[str] = full["steps"]
        self.seconds: float = full["seconds"]
        self.old, self.new = case.state(self.start), case.state(self.whole)
        assert self.old != self.new or case.before

    def kill(self, step: int | None, after: float | None = None) -> bool:
        """Kill the command at a step or after some seconds; return whether it had not ended before."""
        what = f"killed at step {step}, {self.steps[step]}" if step is not None else f"killed after {after} s"
        folder = Path(shutil.copytree(self.start, self.place / "killed"))
        killed = self.ask(list(self.case.arguments), folder, step, after, self.case.typed)
        assert killed["code"] == KILLED or (after is not None and killed["code"] in (0, -SIGKILL)), (what, killed)
        assert self.case.state(folder) in (self.old, self.new, *self.case.between), what
        again = self.ask(list(self.case.arguments), folder, None, typed=self.case.typed)
        # An erasure that was killed at its very end leaves nothing to do, which is told with exit code 1.
        done = (
            "erased before",
            "not erased here",
            "no row fulfils",
            "holds a gallery already",
            "no decision",
            "would leave",
            "unknown user",
        )
        finished = self.case.state(folder) == self.new and any(words in again["err"] for words in done)
        assert again["code"] == 0 or finished, (what, again["err"])
        assert "Traceback" not in again["err"]
        assert self.case.state(folder) == self.new, what
        assert names(folder) == names(self.whole), what
        for name in USERS_FILES:
            assert (folder / name).read_text() == "years of work"
        shutil.rmtree(folder)
        return bool(killed["code"] != 0)


def commands_of(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command; a group that does something by itself is one."""
    if command.commands if hasattr(command, "commands") else ():
        for name, part in command.commands.items():
            yield from commands_of(part, (*words, name))
    if words and (not hasattr(command, "commands") or command.invoke_without_command):
        yield words


def test_every_command_is_killed_or_writes_nothing() -> None:
    known = set(commands_of(get_command(app)))
    killed = {
        next(words for words in (case.arguments[:2], case.arguments[:1]) if words in known) for case in CASES.values()
    }
    assert killed | set(WRITE_NOTHING) | set(WRITE_AS_OTHERS) == known
    assert not killed & set(WRITE_NOTHING)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_commands_that_read_change_no_file(ask: Ask, template: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(template, tmp_path / "readers"))
    head, *rows = (folder / "all.csv").read_text().splitlines()
    timed = [f"{row},2026-03-02T10:00:{number:02}" for number, row in enumerate(rows)]
    (folder / "all.csv").write_text("\n".join([f"{head},time", *timed]) + "\n")
    for arguments in BEFORE_READERS:
        assert ask(list(arguments), folder, None)["code"] == 0
    add_users(folder)
    before = contents(folder)
    for words, options in WRITE_NOTHING.items():
        answer = ask([*words, *options], folder, None)
        assert answer["code"] == 0, (words, answer["err"])
        assert answer["steps"] == [], words
        assert contents(folder) == before, words
