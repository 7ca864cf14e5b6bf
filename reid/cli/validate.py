"""``reid validate``: check data before anything is computed."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from reid.cli.options import AsJson, Data, Root, data_specs

commands = typer.Typer()


@commands.command(epilog="Example: reid validate --data crops/manifest.csv")
def validate(
    data: Data = None,
    root: Root = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Check the manifest only, without opening the images.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check data before anything is computed, and print what is missing, damaged, doubtful or without a right answer.

    The exit code is 1 if a finding would stop an evaluation or falsify its scores.
    """
    from reid.data.protocols.data_sets import open_data
    from reid.evaluation.analysis.validation import findings_json, validate
    from reid.pipeline import progress_bar, workers

    found = {}
    for spec in data_specs(data):
        data_set = open_data(spec, root)
        if quick:
            found[spec] = validate(data_set, images=False)
            continue
        with progress_bar("checking images", len({sample.path for sample in data_set.samples})) as progress:
            found[spec] = validate(data_set, workers=workers(), progress=progress)
    if as_json:
        typer.echo(json.dumps({spec: findings_json(findings) for spec, findings in found.items()}, indent=2))
    else:
        for spec, findings in found.items():
            typer.echo("\n".join([spec, *(f"  {finding}" for finding in findings)]))
    if any(finding.severity == "error" for findings in found.values() for finding in findings):
        raise typer.Exit(1)
