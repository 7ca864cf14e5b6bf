"""``reid diff``: compare written results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer()


@commands.command(epilog="Example: reid diff before.json after.json")
def diff(
    before: Annotated[Path, typer.Argument(metavar="A.json", help='Results of "reid evaluate --json".')],
    others: Annotated[
        list[Path],
        typer.Argument(metavar="B.json...", help="The others, of the same data and protocol."),
    ],
    json_file: Annotated[Path | None, typer.Option("--json", help="JSON file to write as well.")] = None,
) -> None:
    """Compare result files with the first one, and print whether the differences are larger than chance.

    The table has one column for each file.  Results of different data, protocols or rules are refused.  Where only
    some of the files have normalized or re-ranked results, the plain ones are compared all the same.
    """
    from reid.evaluation.reports.diff_table import comparison_table
    from reid.evaluation.reports.result_diff import compare_files, comparison_json, unpaired_rerankings
    from reid.evaluation.reports.text_file import write_text
    from reid.files import check_output_file, require_regular_file

    for path in (before, *others):
        require_regular_file(path, 'JSON file of "reid evaluate"')
    pairs = compare_files(before, *others)
    if json_file is not None:
        check_output_file(json_file, '"pairs"', [str(before), *map(str, others)])
    typer.echo(comparison_table(pairs), nl=False)
    for line in unpaired_rerankings(before, *others):
        typer.echo(line, err=True)
    if json_file is not None:
        write_text(json.dumps(comparison_json(pairs), indent=2) + "\n", json_file, "comparison")
