"""``reid diff``: compare two written results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer()


@commands.command(epilog="Example: reid diff before.json after.json")
def diff(
    before: Annotated[Path, typer.Argument(metavar="A.json", help='Results of "reid evaluate --json".')],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="Results of the same data and protocol.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="JSON file to write as well.")] = None,
) -> None:
    """Compare two result files, and print whether the difference is larger than chance.

    Results of different data, protocols or rules are refused.
    """
    from reid.evaluation.reports.result_diff import (
        compare_files,
        comparison_json,
        comparison_table,
        unpaired_rerankings,
    )
    from reid.evaluation.reports.text_file import write_text
    from reid.files import check_output_file, require_regular_file

    for path in (before, after):
        require_regular_file(path, 'JSON file of "reid evaluate"')
    pairs = compare_files(before, after)
    if json_file is not None:
        check_output_file(json_file, '"pairs"', [str(before), str(after)])
    typer.echo(comparison_table(pairs), nl=False)
    for line in unpaired_rerankings(before, after):
        typer.echo(line, err=True)
    if json_file is not None:
        write_text(json.dumps(comparison_json(pairs), indent=2) + "\n", json_file, "comparison")
