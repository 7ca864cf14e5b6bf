"""The command that compares trainings: compare."""

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
from reid.files import write_whole

commands = typer.Typer()


@commands.command(
    "compare", epilog="Example: reid compare scripts/experiments/compare-norms.toml --report docs/results/norms.md"
)
def run_sweep(
    comparison: Annotated[Path, typer.Argument(help="a TOML file such as scripts/experiments/compare-norms.toml")],
    out: Annotated[Path | None, typer.Option(help="folder of the runs; default: runs/<name of the file>")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="trainings of each variation; default: the file's")] = None,
    only: Annotated[list[str] | None, typer.Option(help="a variation by name; repeatable; default: all")] = None,
    report: Annotated[Path | None, typer.Option(help="Markdown file to write as well")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON: every seed's scores as fractions")] = False,
) -> None:
    """Train the variations of one experiment, score them at every site and print one table.

    The same command continues after an interruption; started twice, the two share the work.  Exit code 1 if a run is
    missing.
    """
    from reid.pipeline import claim_folder
    from reid.training.sweep import page, tables
    from reid.training.sweep import run_sweep as run
    from reid.training.sweep_file import load_sweep

    chosen = load_sweep(comparison, seeds).only(only or ())
    folder = out or Path("runs") / comparison.stem
    if report is not None:
        claim_folder(report.parent, report)
    try:
        outcome = run(chosen, folder, progress=True, say=partial(typer.echo, err=True))
    except KeyboardInterrupt:
        typer.echo(f"interrupted; the same command continues {folder} with what is missing", err=True)
        raise typer.Exit(130) from None
    except OSError as error:
        raise ConfigError(stopped(folder, error)) from error
    if report is not None:
        text = page(chosen, outcome, _made())
        write_whole(report, lambda part: part.write_text(text, encoding="utf-8"), private=False)
    if as_json:
        typer.echo(json.dumps(outcome.to_json(), indent=1))
    else:
        typer.echo(tables(chosen, outcome))
    for line in outcome.missing:
        typer.echo(f"missing: {line}", err=True)
    if outcome.missing:
        raise typer.Exit(1)


def _made() -> dict[str, str]:
    """How a page came about."""
    import torch

    from reid import __version__

    return {
        "command": f"`{shlex.join(['reid', *sys.argv[1:]])}`",
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "date": datetime.now(UTC).date().isoformat(),
        "version": f"reid {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
    }


def _processor() -> str:
    """The model of the processor, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
