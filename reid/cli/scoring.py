"""Commands that say how good an answer is, and whether the data can tell: evaluate, validate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reid.cli.options import (
    Backbone,
    Data,
    Flip,
    ProfileFiles,
    Root,
    Size,
    Unseen,
    Weights,
    check_cameras,
    data_specs,
    meet,
    settings_of,
    unseen_policy,
)
from reid.errors import ConfigError

if TYPE_CHECKING:
    from reid.data.protocols.data_sets import DataSet
    from reid.models.checkpoint import Checkpoint

commands = typer.Typer()


@commands.command(epilog="Example: reid evaluate --data crops/manifest.csv --json scores.json")
def evaluate(
    data: Data = None,
    root: Root = None,
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    profiles: ProfileFiles = None,
    unseen: Unseen = None,
    flip: Flip = False,
    rules: Annotated[
        list[str] | None,
        typer.Option(
            "--rule",
            metavar="KEY=VALUE",
            help="score otherwise than the protocol says, e.g. precision=trapezoid; repeatable",
        ),
    ] = None,
    rerank: Annotated[
        tuple[int, int, float] | None,
        typer.Option(metavar="K1 K2 LAMBDA", help="score k-reciprocal re-ranking too, e.g. 20 6 0.3"),
    ] = None,
    expand_queries: Annotated[int, typer.Option(min=0, help="score query expansion by N neighbours too")] = 0,
    memory: Annotated[int | None, typer.Option(min=1, help="MiB of scores to hold at a time")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the results to this file too")] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="write a page of thresholds, cameras, best and worst queries too")
    ] = None,
    strips: Annotated[
        int, typer.Option(min=0, help="best and worst queries of each result whose pictures go into the page")
    ] = 3,
    details: Annotated[bool, typer.Option("--details", help="print thresholds, camera pairs and bias too")] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A.json B.json", help="compare two written results instead; refused if they differ"),
    ] = None,
) -> None:
    """Score weights by a data set's protocol, or by the Market rule: mAP, mINP, CMC.

    Without --data: both sites of the synthetic street in data/street, made there if missing.  A data set
    that is divided several times is scored as papers do with trial=all or split=all after its name, and
    --weights "runs/{trial}/weights.safetensors".
    """
    if compare is not None:
        if html_file is not None or details:
            raise ConfigError(
                "--compare: reads two written results, which hold no page; leave --html and --details out"
            )
        _compare(*compare, json_file)
        return
    from reid.evaluation import Reranking, report_table, write_page, write_reports
    from reid.evaluation.reports.detail_text import details_table
    from reid.pipeline import evaluate_data, load_checkpoint_for

    _claim(json_file, html_file, data)
    settings, default = settings_of(rules), "error" if data else "calibrate"
    unseen_policy(unseen, default)
    loaded: dict[str, Checkpoint] = {}

    def load(name: str) -> Checkpoint:
        if name not in loaded:
            loaded.clear()
            loaded[name] = load_checkpoint_for(Path(name) if name else None, backbone, size, profiles or (), flip)
        return loaded[name]

    def checkpoint_of(data_set: DataSet) -> Checkpoint:
        return meet(load(_filled(weights, data_set)), data_set.samples, unseen, default)

    if "{" not in str(weights):
        check_cameras(load(str(weights or "")), unseen)  # before the data are made or read
    reranking = Reranking(rerank, expand_queries) if rerank or expand_queries else None
    scored = []
    shown = strips if html_file is not None else 0 if details else None
    for spec in data_specs(data):
        for one in evaluate_data(spec, root, settings, checkpoint_of, reranking, memory and memory * 2**20, shown):
            scored.append(one)
            typer.echo(f"{spec}\n{report_table(one.report)}{details_table(one) if details else ''}")
    if json_file is not None:
        write_reports([one.report for one in scored], json_file)
    if html_file is not None:
        write_page(scored, html_file)


def _claim(json_file: Path | None, html_file: Path | None, data: list[str] | None) -> None:
    """Refuse outputs that would replace something else, or each other."""
    from reid.evaluation.reports.html_page import MARK
    from reid.pipeline import claim_output

    if json_file is not None and html_file is not None and json_file.resolve() == html_file.resolve():
        raise ConfigError(f"--json and --html: both write {json_file}; choose two names")
    if json_file is not None:
        claim_output(json_file, '"results"', data)
    if html_file is not None:
        claim_output(html_file, MARK, data)


def _compare(first: Path, second: Path, out: Path | None) -> None:
    from reid.evaluation.reports.result_diff import compare_files, comparison_json, comparison_table
    from reid.evaluation.reports.text_file import write_text
    from reid.pipeline import claim_output

    pairs = compare_files(first, second)
    if out is not None:
        claim_output(out, '"pairs"', [str(first), str(second)])
    typer.echo(comparison_table(pairs), nl=False)
    if out is not None:
        write_text(json.dumps(comparison_json(pairs), indent=2) + "\n", out, "comparison")


def _filled(weights: Path | None, data_set: DataSet) -> str:
    """The weights file of a split: words in braces are choices of the data set's variants."""
    from reid.data.protocols.protocol_table import fill

    name = str(weights) if weights else ""
    return fill(name, data_set.scoring.variant) if "{" in name and data_set.scoring.variant else name


@commands.command(epilog="Example: reid validate --data crops/manifest.csv")
def validate(
    data: Data = None,
    root: Root = None,
    quick: Annotated[bool, typer.Option("--quick", help="do not open the pictures")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Explain data before anything is computed: what is missing, broken, doubtful or without a right answer.

    Exit code 1 if something is wrong that would stop an evaluation or spoil its scores.
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
        with progress_bar("looking at", len({s.path for s in data_set.samples})) as progress:
            found[spec] = validate(data_set, workers=workers(), progress=progress)
    if as_json:
        typer.echo(json.dumps({spec: findings_json(findings) for spec, findings in found.items()}, indent=2))
    else:
        for spec, findings in found.items():
            typer.echo("\n".join([spec, *(f"  {finding}" for finding in findings)]))
    if any(finding.severity == "error" for findings in found.values() for finding in findings):
        raise typer.Exit(1)
