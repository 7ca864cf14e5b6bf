"""The steps of ``reid start``: each is a command of its own, is written down when it is done, and is not repeated.

The list of finished steps lies in the output folder.  A step is done where the same command finished before, with the
same input files, and what it made is still there.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from reid.errors import DataError, ReidError
from reid.files import locked, make_output_folder, write_whole
from reid.structured_text import one_line, read_json

if TYPE_CHECKING:
    from reid.models.checkpoint import Checkpoint

RECORD, FORMAT = "start.json", "reid-start-1"
LOCK = ".start.lock"
OF_THE_MACHINE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE,
)  # fmt: skip
_OS_ERROR = re.compile(r"os error (\d+)")
BLOCK = 2**20  # bytes that are hashed at a time


@dataclass(frozen=True)
class Step:
    """One command.

    Args:
        name: The name of the step in the list.
        words: The command, without the word "reid" before it.
        makes: What it makes; None where it only looks.
        reads: The files that its result depends on.
        may_fail: Whether exit code 1 does not end the start.
        is_optional: Whether the start goes on without it where it is impossible.
    """

    name: str
    words: tuple[str, ...]
    makes: Path | None = None
    reads: tuple[Path, ...] = ()
    may_fail: bool = False
    is_optional: bool = False

    @property
    def command(self) -> str:
        """The command as a user types it.

        Example:
            >>> Step("manifest", ("init", "my crops")).command
            "reid init 'my crops'"
        """
        return shlex.join(["reid", *self.words])


@dataclass(frozen=True)
class StartNetwork:
    """The network of the steps; without weights the shipped one.

    Example:
        >>> StartNetwork(Path("a.pth"), "osnet_x0_25", (256, 128)).words
        ('--weights', 'a.pth', '--backbone', 'osnet_x0_25', '--size', '256', '128')
    """

    weights: Path | None = None
    backbone: str | None = None
    size: tuple[int, int] | None = None
    profiles: Path | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """The options of a command that name it."""
        words = ["--weights", str(self.weights)] if self.weights else []
        words += ["--backbone", self.backbone] if self.backbone else []
        words += ["--size", *map(str, self.size)] if self.size else []
        words += ["--profiles", str(self.profiles)] if self.profiles else []
        return tuple(words)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it is read from."""
        return tuple(path for path in (self.weights, self.profiles) if path)

    def load(self) -> Checkpoint:
        """Load it."""
        from reid.pipeline import load_checkpoint

        return load_checkpoint(self.weights, self.backbone, self.size, [self.profiles] if self.profiles else ())


class StartRecord:
    """The list of finished steps and of answers, in a folder that one start uses at a time.

    Args:
        folder: The output folder; it is made where it is missing.

    Raises:
        DataError: The list is damaged, or is none.
        ConfigError: The folder cannot be written.
    """

    def __init__(self, folder: Path):
        self.folder = make_output_folder(folder)
        self._path = folder / RECORD
        self._data: dict[str, Any] = {"format": FORMAT, "answers": {}, "steps": {}}
        if self._path.exists():
            data = read_json(self._path)
            if not (
                isinstance(data, dict)
                and data.get("format") == FORMAT
                and all(isinstance(data.get(key), dict) for key in ("answers", "steps"))
            ):
                raise DataError(f'{self._path}: expected the list of "reid start"; delete it to begin anew')
            self._data = data

    @property
    def answers(self) -> dict[str, Any]:
        """The answers to questions of an earlier start, by their names."""
        return dict(self._data["answers"])

    def remember(self, name: str, answer: object) -> None:
        """Write an answer down, so that the next start does not ask again."""
        self._data["answers"][name] = answer
        self._write()

    def is_done(self, step: Step) -> bool:
        """Return whether a step finished before with the same command and files, and its result is there."""
        known = self._data["steps"].get(step.name)
        if known is None or (step.makes is not None and not step.makes.exists()):
            return False
        return bool(known == {"words": list(step.words), "reads": _hash_files(step.reads)})

    def may_have_ended_within(self, step: Step) -> bool:
        """Return whether a start may have ended before it wrote down that a step is done."""
        return bool(step.words) and step.name not in self._data["steps"]

    def finish(self, step: Step) -> None:
        """Write down that a step is done."""
        self._data["steps"][step.name] = {"words": list(step.words), "reads": _hash_files(step.reads)}
        self._write()

    def _write(self) -> None:
        write_whole(self._path, lambda part: part.write_text(json.dumps(self._data, indent=2), encoding="utf-8"))


def hold_start(folder: Path) -> Any:
    """Return a context in which no other start uses an output folder; BlockingIOError where one does."""
    return locked(make_output_folder(folder) / LOCK, wait=False)


def run_steps(record: StartRecord, steps: Sequence[Step]) -> None:
    """Run the steps that are not done, and print each as a command.

    Args:
        record: The list of finished steps.
        steps: The steps, in order.

    Raises:
        ReidError: A step failed; those before it are written down.
        Exit: A step ended with another exit code than 0.
    """
    for step in steps:
        typer.echo(f"step: {step.name}", err=True)
        if record.is_done(step):
            typer.echo(f"# done before: {step.command}")
            continue
        typer.echo(step.command)
        if _run(step):
            record.finish(step)


def _run(step: Step) -> bool:
    """Run the command of a step in this process; return whether it is done."""
    from reid.cli import all_commands

    try:
        code = all_commands()(list(step.words), prog_name="reid", standalone_mode=False)
    except (ReidError, OSError) as error:
        if step.is_optional and isinstance(error, ReidError) and not is_of_the_machine(error):
            typer.echo(f"hint: the {step.name} is left out: {one_line(str(error))}", err=True)
            return False
        typer.echo(f'hint: the step "{step.name}" failed; mend what the error says, and start again', err=True)
        raise
    if isinstance(code, int) and code and not (code == 1 and step.may_fail):
        raise typer.Exit(code)
    return True


def is_of_the_machine(error: BaseException | None) -> bool:
    """Return whether a full or read-only disk, a limit or missing rights are behind an error, and not the data.

    Example:
        >>> is_of_the_machine(OSError(errno.ENOSPC, "No space left on device")), is_of_the_machine(DataError("too few"))
        (True, False)
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        number = error.errno if isinstance(error, OSError) else None
        found = _OS_ERROR.search(str(error))  # as safetensors says it
        if number in OF_THE_MACHINE or (found and int(found[1]) in OF_THE_MACHINE):
            return True
        error = error.__cause__ or error.__context__
    return False


def _hash_files(paths: Sequence[Path]) -> str:
    """Hash the content of files; a missing one counts as empty, and a folder by its name."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0")
        if path.is_file():
            with path.open("rb") as file:
                while block := file.read(BLOCK):
                    digest.update(block)
    return digest.hexdigest()[:32]
