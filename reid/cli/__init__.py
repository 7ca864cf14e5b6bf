"""The command line: ``reid COMMAND``, the same as ``python -m reid.cli COMMAND``.

Results go to stdout, progress and complaints to stderr.  Exit code 0: done; 1: the data or the run is
wrong, told in one line (``--debug`` shows the traceback); 2: the command was not understood.

Each module of this package holds a group of commands in a ``commands`` table that is joined here.
"""

from __future__ import annotations

import sys

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


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        app([argument for argument in given if argument != "--debug"], prog_name="reid")
    except (ReidError, OSError) as error:
        if debug:
            raise
        where = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        typer.echo(f"error: {' '.join(where.split())}", err=True)
        sys.exit(1)
