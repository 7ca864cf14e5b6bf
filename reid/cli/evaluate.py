"""``reid evaluate``: score weights on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reid.cli.corruption_options import (
    Corrupted,
    CorruptionNames,
    CorruptRepeats,
    CorruptSeed,
    Severity,
    corruption_benchmark,
)
from reid.cli.network_options import RerankingReadingCommand
from reid.cli.options import (
    Backbone,
    Data,
    Flip,
    Normalize,
    ProfileFiles,
    Root,
    ScoreNorm,
    Size,
    Unseen,
    Weights,
    check_cameras,
    data_specs,
    for_cameras_of,
    normalization_request,
    normalized_for,
    rule_settings,
    unseen_policy,
)
from reid.cli.rerank_options import ExpandQueries, LearnMetric, Rerank, reranking_of
from reid.errors import ConfigError
from reid.records import UnseenCameraPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reid.data.protocols.data_sets import DataSet
    from reid.evaluation import Details, Reranking
    from reid.models.checkpoint import Checkpoint

commands = typer.Typer()
EmbeddingsFile = Annotated[
    Path | None,
    typer.Option(
        "--embeddings",
        help="Score these vectors instead of weights: .npy, .npz, .parquet, .safetensors or a FAISS index; --data"
        " names their samples, a row for each vector in the same order.",
    ),
]
Rules = Annotated[
    list[str] | None,
    typer.Option(
        "--rule",
        metavar="KEY=VALUE",
        help="Change a setting of the protocol's rule, such as precision=trapezoid. Can be repeated.",
    ),
]
QueryExamples = Annotated[
    int,
    typer.Option(
        min=0, metavar="N", help="Show the images of the N best and the N worst queries of each result on the page."
    ),
]


@commands.command(
    cls=RerankingReadingCommand,
    epilog="Example: reid evaluate --data crops/manifest.csv --score-norm csls --rerank camera --json scores.json",
)
def evaluate(
    data: Data = None,
    root: Root = None,
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    profiles: ProfileFiles = None,
    normalize: Normalize = None,
    unseen: Unseen = None,
    flip: Flip = False,
    embeddings: EmbeddingsFile = None,
    rules: Rules = None,
    memory: Annotated[
        int | None, typer.Option(min=1, help="Largest number of MiB for scores in memory. Default: 64.")
    ] = None,
    rerank: Rerank = None,
    expand_queries: ExpandQueries = "0",
    learn_metric: LearnMetric = False,
    score_norm: ScoreNorm = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="JSON file to write as well.")] = None,
    html_file: Annotated[
        Path | None,
        typer.Option("--html", help="Page to write as well: thresholds, cameras, best and worst queries."),
    ] = None,
    query_examples: QueryExamples = 3,
    corrupt: Corrupted = None,
    corrupt_repeats: CorruptRepeats = 1,
    corruption: CorruptionNames = None,
    severity: Severity = None,
    corrupt_seed: CorruptSeed = 0,
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
    from reid.pipeline import evaluate_data

    _check_outputs(json_file, html_file, data)
    reranking = reranking_of(rerank, expand_queries, learn_metric)
    settings, default = rule_settings(rules), _unseen_default(data, unseen)
    normalization_request(normalize, profiles)
    shown = query_examples if html_file is not None else 0 if details else None
    how = (reranking, memory and memory * 2**20, shown, str(score_norm or ""))
    benchmark = corruption_benchmark(corrupt, corrupt_repeats, corruption, severity, corrupt_seed)
    if embeddings is not None:
        if benchmark is not None:
            raise ConfigError("--corrupt: changes images, but --embeddings holds vectors; give --weights instead")
        _refuse_network_options(weights, profiles, flip, unseen, normalize)
        found = _score_vectors(embeddings, data, root, settings, *how)
        _write([_print_scored(str(embeddings), found, details)], json_file, html_file)
        return
    load = _loader(backbone, size, profiles, flip)
    if data is None and "{" not in str(weights):  # before the street is drawn, which takes minutes
        check_cameras(load(str(weights or "")), None if normalize else unseen)
    data_sets = {spec: _open_all(spec, root, settings) for spec in data_specs(data)}
    check_files([row for choices in data_sets.values() for one in choices for row in evaluated_samples(one)])

    def checkpoint_for(data_set: DataSet) -> Checkpoint:
        checkpoint = normalized_for(data_set.samples, load(_filled(weights, data_set)), normalize, profiles)
        return for_cameras_of(data_set.samples, checkpoint, unseen, default)

    scored = [
        _print_scored(spec, one, details)
        for spec, choices in data_sets.items()
        for one in evaluate_data(choices, checkpoint_for, *how, benchmark)
    ]
    _write(scored, json_file, html_file)


def _unseen_default(data: list[str] | None, unseen: str | None) -> UnseenCameraPolicy:
    """Return the policy for unknown cameras that holds without the option, after checking the option."""
    default = UnseenCameraPolicy.ERROR if data else UnseenCameraPolicy.CALIBRATE
    unseen_policy(unseen, default)
    return default


def _refuse_network_options(*options: object) -> None:
    if any(options):
        raise ConfigError(
            "--embeddings: the vectors are computed already; leave --weights, --profiles, --normalize,"
            " --unseen-camera and --flip out"
        )


def _print_scored(name: str, scored: Details, details: bool) -> Details:
    """Print what was scored, and return it."""
    from reid.evaluation import report_table
    from reid.evaluation.reports.detail_text import details_table

    typer.echo(f"{name}\n{report_table(scored.report)}{details_table(scored) if details else ''}")
    return scored


def _score_vectors(
    embeddings: Path,
    data: list[str] | None,
    root: Path | None,
    settings: dict[str, str],
    reranking: Reranking | None,
    memory: int | None,
    query_examples: int | None,
    score_norm: str,
) -> Details:
    """Score vectors of a file by the protocol of their data set, or by the Market rule."""
    from reid.data.protocols.data_sets import Scoring, open_data
    from reid.data.protocols.protocol_table import Rule
    from reid.evaluation import Details, details_of, evaluate
    from reid.retrieval.foreign_embeddings import read_foreign
    from reid.retrieval.score_normalization import NONE

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
        score_norm=score_norm or NONE,
        memory=memory,
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
