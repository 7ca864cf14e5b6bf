"""The command line: ``reid COMMAND``, the same as ``python -m reid.cli COMMAND``.

Results go to stdout, progress and errors to stderr.  The exit code is 0 when the command has done its work, 1 when the
data or the run are wrong (one line tells why, and ``--debug`` shows the traceback), 2 when the command was not
understood, 3 when ``reid cameras watch`` found a camera that drifted, and 130 after an interruption.

Each module holds the command that it is named after; the groups ``cameras``, ``index`` and ``weights`` hold several.
``camera_probe`` and ``camera_repair`` hold one each of the group ``cameras``.
"""

from __future__ import annotations

import functools
import io
import os
import sys
from typing import Annotated, Any, cast

import typer
from typer.main import get_command

from reid import __version__
from reid.cli import (
    adapt,
    attack,
    calibrate,
    camera_probe,
    camera_repair,
    cameras,
    complete,
    corrupt,
    diff,
    embed,
    evaluate,
    export,
    generate,
    identify,
    index,
    ingest,
    init,
    recipe,
    restyle,
    search,
    serve,
    slim,
    start,
    sweep,
    synth,
    train,
    users,
    validate,
    weights,
)
from reid.cli.old_usage import current_usage
from reid.cli.start_up import skip_last_collection
from reid.errors import ReidError
from reid.structured_text import one_line

app = typer.Typer(
    help="Person re-identification with camera-, modality- and category-specific normalization.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Every command accepts --debug, which shows the traceback of an error.",
)
for module in (
    init, ingest, synth, corrupt, attack, restyle, complete, generate, validate, train, recipe, sweep, calibrate, adapt,
    cameras, camera_probe, camera_repair, embed, index, identify, search, evaluate, diff, start, serve, users, weights,
    slim, export,
):  # fmt: skip
    app.add_typer(module.commands)

# The base class of all errors about usage; typer raises it but does not export it.
UsageError = cast(type[Exception], typer.BadParameter.__mro__[1])


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"reid {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Accept the options that stand before a command."""


@functools.cache
def all_commands() -> Any:
    """Build the commands, once for a process because it takes a tenth of a second."""
    return get_command(app)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Args:
        arguments: The words after "reid"; None takes them from ``sys.argv``.
    """
    skip_last_collection()
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the encoding of the terminal lacks ends no command
            stream.reconfigure(errors="backslashreplace")
    debug = "--debug" in words
    try:
        words, hints = current_usage([word for word in words if word != "--debug"])
        for hint in hints:
            typer.echo(f"hint: {hint}", err=True)
        code = all_commands()(words, prog_name="reid", standalone_mode=False)
    except UsageError as error:
        _show_error(_usage_message(error))
        code = 2
    except BrokenPipeError:  # the program that read the output has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except (ReidError, OSError) as error:
        if debug:
            raise
        _show_error(
            f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        )
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _usage_message(error: Any) -> str:
    """Return what is wrong with a command and where its help is; "" where the help was shown instead."""
    message: str = error.format_message().rstrip(". ")
    return f"{message}; see {f'{error.ctx.command_path} ' if error.ctx else ''}--help" if message else ""


def _show_error(message: str) -> None:
    """Write one line to stderr, if there is a message."""
    if message:
        typer.echo(f"error: {one_line(message)}", err=True)
