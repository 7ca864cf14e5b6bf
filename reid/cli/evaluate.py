"""``reid evaluate``: score weights on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reid.cli.options import (
    Backbone,
    Data,
    Flip,
    ProfileFiles,
    Root,
    ScoreNorm,
    ScoreNormName,
    Size,
    Unseen,
    Weights,
    check_cameras,
    data_specs,
    for_cameras_of,
    rule_settings,
    unseen_policy,
)
from reid.errors import ConfigError
from reid.records import UnseenCameraPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reid.data.protocols.data_sets import DataSet
    from reid.evaluation import Details, Reranking
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
    embeddings: Annotated[
        Path | None,
        typer.Option(
            "--embeddings",
            help="Score these vectors instead of weights: .npy, .npz, .parquet, .safetensors or a FAISS index; --data"
            " names their samples, a row for each vector in the same order.",
        ),
    ] = None,
    rules: Annotated[
        list[str] | None,
        typer.Option(
            "--rule",
            metavar="KEY=VALUE",
            help="Change a setting of the protocol's rule, such as precision=trapezoid. Can be repeated.",
        ),
    ] = None,
    rerank: Annotated[
        tuple[int, int, float] | None,
        typer.Option(metavar="K1 K2 LAMBDA", help="Also score k-reciprocal re-ranking, with values such as 20 6 0.3."),
    ] = None,
    expand_queries: Annotated[int, typer.Option(min=0, help="Also score query expansion by so many neighbours.")] = 0,
    score_norm: ScoreNorm = ScoreNormName.NONE,
    memory: Annotated[int | None, typer.Option(min=1, help="Largest number of MiB for scores in memory.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="JSON file to write as well.")] = None,
    html_file: Annotated[
        Path | None,
        typer.Option("--html", help="Page to write as well: thresholds, cameras, best and worst queries."),
    ] = None,
    query_examples: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Show the images of the N best and the N worst queries of each result on the page."
        ),
    ] = 3,
    details: Annotated[
        bool, typer.Option("--details", help="Also print thresholds, pairs of cameras and camera bias.")
    ] = False,
) -> None:
    """Score weights by a data set's protocol, or by the Market rule: mAP, mINP and CMC.

    Without --data, both sites of the synthetic street in data/street are scored; they are drawn if they are missing.
    Some data sets are divided several times.  With trial=all or split=all after the name, every division is scored, as
    papers do; --weights "runs/{trial}/weights.safetensors" then names the weights of each division.
    """
    from reid.data.manifest import check_files
    from reid.data.selection import evaluated_samples
    from reid.evaluation import Reranking, report_table
    from reid.evaluation.reports.detail_text import details_table
    from reid.pipeline import evaluate_data

    _check_outputs(json_file, html_file, data)
    settings, default = rule_settings(rules), UnseenCameraPolicy.ERROR if data else UnseenCameraPolicy.CALIBRATE
    unseen_policy(unseen, default)
    reranking = Reranking(rerank, expand_queries) if rerank or expand_queries else None
    shown = query_examples if html_file is not None else 0 if details else None
    if embeddings is not None:
        if weights or profiles or flip or unseen:
            raise ConfigError(
                "--embeddings: the vectors are computed already; leave --weights, --profiles and --flip out"
            )
        found = [_score_vectors(embeddings, data, root, settings, reranking, memory, shown)]
        typer.echo(f"{embeddings}\n{report_table(found[0].report)}{details_table(found[0]) if details else ''}")
        _write(found, json_file, html_file)
        return
    load = _loader(backbone, size, profiles, flip)
    if data is None and "{" not in str(weights):
        check_cameras(load(str(weights or "")), unseen)  # before the street is drawn, which takes minutes
    data_sets = {spec: _open_all(spec, root, settings) for spec in data_specs(data)}
    for data_set in (one for choices in data_sets.values() for one in choices):
        check_files(evaluated_samples(data_set))

    def checkpoint_for(data_set: DataSet) -> Checkpoint:
        return for_cameras_of(data_set.samples, load(_filled(weights, data_set)), unseen, default)

    scored = []
    for spec, choices in data_sets.items():
        for one in evaluate_data(choices, checkpoint_for, reranking, memory and memory * 2**20, shown, str(score_norm)):
            scored.append(one)
            typer.echo(f"{spec}\n{report_table(one.report)}{details_table(one) if details else ''}")
    _write(scored, json_file, html_file)


def _score_vectors(
    embeddings: Path,
    data: list[str] | None,
    root: Path | None,
    settings: dict[str, str],
    reranking: Reranking | None,
    memory: int | None,
    query_examples: int | None,
) -> Details:
    """Score vectors of a file by the protocol of their data set, or by the Market rule."""
    from reid.data.protocols.data_sets import Scoring, open_data
    from reid.data.protocols.protocol_table import Rule
    from reid.evaluation import Details, details_of, evaluate
    from reid.retrieval.foreign_embeddings import read_foreign

    if len(data or ()) > 1:
        raise ConfigError("--embeddings: give one --data, whose rows are those of the file")
    source = open_data(data[0], root, settings) if data else None
    scoring = Scoring(Rule().changed(settings)) if source is None else source.scoring
    found = read_foreign(embeddings, None if source is None else source.samples)
    report = evaluate(
        found.embeddings,
        protocol=embeddings.name if source is None else source.name,
        scoring=scoring,
        provenance={"embeddings": embeddings.name},
        reranking=reranking,
        memory=memory and memory * 2**20,
    )
    if query_examples is None:
        return Details(report)
    return details_of(report, found.embeddings, scoring, query_examples=query_examples, memory=memory)


def _write(scored: Sequence[Details], json_file: Path | None, html_file: Path | None) -> None:
    """Write the results to the files that were asked for."""
    from reid.evaluation import write_page, write_reports

    if json_file is not None:
        write_reports([one.report for one in scored], json_file)
    if html_file is not None:
        write_page(scored, html_file)


def _check_outputs(json_file: Path | None, html_file: Path | None, data: list[str] | None) -> None:
    """Refuse outputs that would replace something else, or each other."""
    from reid.evaluation.reports.html_page import MARK
    from reid.files import check_output_file

    if json_file is not None and html_file is not None and json_file.resolve() == html_file.resolve():
        raise ConfigError(f"--json and --html: both write {json_file}; choose two names")
    if json_file is not None:
        check_output_file(json_file, '"results"', data)
    if html_file is not None:
        check_output_file(html_file, MARK, data)


def _loader(
    backbone: str | None, size: tuple[int, int] | None, profiles: list[Path] | None, flip: bool
) -> Callable[[str], Checkpoint]:
    """Return a function that loads weights, and keeps the last ones because several data sets may share them."""
    from reid.pipeline import load_checkpoint

    last: dict[str, Checkpoint] = {}

    def load(name: str) -> Checkpoint:
        if name not in last:
            last.clear()
            last[name] = load_checkpoint(name or None, backbone, size, profiles or (), flip)
        return last[name]

    return load


def _open_all(spec: str, root: Path | None, settings: dict[str, str]) -> list[DataSet]:
    """Open a data set, or each of its choices where ``spec`` asks for all of a variant, as in "trial=all"."""
    from reid.data.protocols.data_sets import all_choices, open_data

    return [open_data(choice, root, settings) for choice in all_choices(spec)]


def _filled(weights: Path | None, data_set: DataSet) -> str:
    """Return the weights file of a data set: words in braces are choices of its variants."""
    from reid.data.protocols.protocol_table import fill

    name = str(weights) if weights else ""
    return fill(name, data_set.scoring.variant) if "{" in name and data_set.scoring.variant else name
