"""``reid sweep``: train variations of an experiment and compare them in one table."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from reid.cli.options import stopped
from reid.errors import ConfigError
from reid.files import prepare_output_folder, write_whole

commands = typer.Typer()


@commands.command(epilog="Example: reid sweep scripts/experiments/compare-norms.toml --report docs/results/norms.md")
def sweep(
    file: Annotated[Path, typer.Argument(help="TOML file such as scripts/experiments/compare-norms.toml.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the runs. Default: runs/<name of the file>.")] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of trainings of each variation, each with its own seed. Default: the number in the file.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Train this variation only. Can be repeated. Default: all.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Markdown file to write as well.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: the scores of every seed, as fractions.")
    ] = False,
) -> None:
    """Train the variations of one experiment, score them at every site and print one table.

    The same command continues after an interruption.  Two commands at the same time share the work.  The exit code is
    1 if a run is missing.
    """
    if not file.is_file():
        raise ConfigError(f"{file}: no such sweep file; see scripts/experiments/")
    from reid.training.sweep import page, run_sweep, tables
    from reid.training.sweep_file import load_sweep

    chosen = load_sweep(file, seeds).only(only or ())
    folder = out or Path("runs") / file.stem
    if report is not None:
        prepare_output_folder(report.parent, report)
    try:
        outcome = run_sweep(chosen, folder, progress=True, say=partial(typer.echo, err=True))
    except KeyboardInterrupt:
        typer.echo(f"interrupted; the same command continues {folder} with what is missing", err=True)
        raise typer.Exit(130) from None
    except OSError as error:
        raise ConfigError(stopped(folder, error)) from error
    if report is not None:
        text = page(chosen, outcome, _provenance())
        write_whole(report, lambda part: part.write_text(text, encoding="utf-8"), private=False)
    if as_json:
        typer.echo(json.dumps(outcome.to_json(), indent=1))
    else:
        typer.echo(tables(chosen, outcome))
    for line in outcome.missing:
        typer.echo(f"missing: {line}", err=True)
    if outcome.missing:
        raise typer.Exit(1)


def _provenance() -> dict[str, str]:
    """Return how a page came about: command, machine, date and versions."""
    import torch

    from reid import __version__

    return {
        "command": f"`{shlex.join(['reid', *sys.argv[1:]])}`",
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "date": datetime.now(UTC).date().isoformat(),
        "version": f"reid {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
    }


def _processor() -> str:
    """Return the model of the processor, where the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
