"""The command line: ``reid COMMAND``, the same as ``python -m reid.cli COMMAND``.

Results go to stdout, progress and complaints to stderr.  Exit code 0: done; 1: the data or the run is
wrong, told in one line (``--debug`` shows the traceback); 2: the command was not understood; 3: ``cameras watch``
found a camera that drifted; 130: interrupted.

Each module of this package holds a group of commands in a ``commands`` table that is joined here.
"""

from __future__ import annotations

import os
import sys
from typing import Any, cast

import typer

from reid.cli import bringing, cameras, comparing, gallery, ingest, making, scoring
from reid.errors import ReidError

app = typer.Typer(
    help="Person re-identification with camera-, modality- and domain-specific normalization.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="--debug with any command shows the traceback of an error.",
)
for group in (bringing, ingest, making, cameras, comparing, gallery, scoring):
    app.add_typer(group.commands)


# The kind of every wrong usage, which typer has but does not name.
UsageError = cast(type[Exception], typer.BadParameter.__mro__[1])


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        words = [argument for argument in given if argument != "--debug"]
        code = app(words, prog_name="reid", standalone_mode=False)
    except UsageError as error:
        _complain(_misuse(error))
        code = 2
    except BrokenPipeError:  # whoever read the output has gone; nothing more can be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except (ReidError, OSError) as error:
        if debug:
            raise
        _complain(
            f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        )
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _misuse(error: Any) -> str:
    """What is wrong with a command, and where its help is; "" where its help was shown instead."""
    message: str = error.format_message().rstrip(". ")
    return f"{message}; see {f'{error.ctx.command_path} ' if error.ctx else ''}--help" if message else ""


def _complain(message: str) -> None:
    """One line on stderr, if there is anything to say."""
    if message:
        typer.echo(f"error: {' '.join(message.split())}", err=True)
