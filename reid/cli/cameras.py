"""``reid cameras``: decide about calibration, watch for drift, combine profiles, and center embeddings."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reid.cli.network_options import NetworkCommand
from reid.cli.options import (
    AsJson,
    Backbone,
    Data,
    DomainFields,
    Normalize,
    Prior,
    PriorSource,
    ProfileFiles,
    Root,
    Size,
    Weights,
    finite,
    normalization_request,
    parse_domain_fields,
    prior_source,
    samples_of,
)
from reid.errors import ConfigError
from reid.files import check_output_file, write_whole
from reid.records import Sample, Split, domain_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reid.evaluation.analysis.camera_curve import CurvePoint
    from reid.evaluation.analysis.camera_report import CameraReport
    from reid.models.checkpoint import Checkpoint
    from reid.norm import Profiles
    from reid.retrieval.normalization_choice import NormalizationRequest
    from reid.retrieval.normalization_report import NormalizationReport

commands = typer.Typer()
cameras = typer.Typer(
    help="Decide about calibration, watch for drift, combine profiles, and center embeddings.", no_args_is_help=True
)
commands.add_typer(cameras, name="cameras")

DRIFTED = 3  # exit code when a camera drifted
LEAST_ALARMS = 0.001  # the smallest rate of false alarms that the resamplings behind a threshold can measure


@cameras.command(
    cls=NetworkCommand, epilog="Example: reid cameras report --data crops/manifest.csv --out cameras.safetensors"
)
def report(
    data: Data = None,
    root: Root = None,
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    profiles: ProfileFiles = None,
    by: DomainFields = "",
    normalize: Normalize = None,
    split: Annotated[
        Split | None, typer.Option(help="Split to measure. Default: train if it has crops, else all crops.")
    ] = None,
    prior: Prior = 0.0,
    prior_from: PriorSource = "cameras",
    curve: Annotated[
        bool,
        typer.Option(
            "--curve", help="Also measure scores for several numbers of crops and several priors. Slow; needs labels."
        ),
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="SVG file to write as well: the curve as a chart.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Profiles file to write as well: those that --normalize asks for. Without it, cameras with the verdict"
            " leave keep the network's own statistics."
        ),
    ] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="Page to write as well.")] = None,
    as_json: AsJson = False,
) -> None:
    """Recommend for every camera whether to calibrate it, to leave it, or to collect more crops, and give the reason.

    Unlabelled crops are enough.  Where the data have queries and a gallery, the scores before and after calibration
    are compared too.  With --normalize auto, the report also says which levels are chosen from the unlabelled crops,
    why, and what the alternatives promised.
    """
    from reid.data.manifest import check_files
    from reid.data.selection import calibration_samples
    from reid.pipeline import check_weights, load_checkpoint, progress_bar, workers

    source, fields = prior_source(prior, prior_from), parse_domain_fields(by)
    curve, request = curve or plot is not None, normalization_request(normalize, profiles)
    _check_outputs(plot, out, html_file, data)
    check_weights(weights, profiles or ())
    samples = samples_of(data, root)
    pool, scored = calibration_samples(samples, split), [s for s in samples if s.split is not Split.TRAIN]
    check_files([*pool, *scored])
    checkpoint = load_checkpoint(weights, backbone, size, profiles or ())
    from reid.evaluation.analysis.camera_report import camera_report, count_images
    from reid.models.calibration import can_be_calibrated

    fields = fields or checkpoint.domain_fields or ("camera",)
    has_statistics = can_be_calibrated(checkpoint)
    if not has_statistics and curve:
        raise ConfigError(
            f"{checkpoint.source}: a network without BatchNorm has no curve; leave --curve and --plot out"
        )
    how: dict[str, Any] = {"domain_fields": fields, "prior": prior, "prior_from": source, "workers": workers()}
    with progress_bar("measuring cameras", count_images(pool, scored, fields, has_statistics)) as progress:
        found = camera_report(checkpoint, pool, scored, **how, progress=progress)
    recommended, chosen = found.profiles, None
    if request is not None:
        recommended, chosen = _normalize(checkpoint, pool, request, how)
    points = _measure_curve(checkpoint, pool, scored, fields) if curve else []
    if plot is not None:
        _write_plot(plot, points)
    if out is not None:
        recommended.save(out)
    if html_file is not None:
        from reid.evaluation.reports.camera_report_page import write_camera_page

        write_camera_page(found, chosen, html_file)
    if as_json:
        normalization = {} if chosen is None else {"normalization": chosen.to_json()}
        curve_points = [asdict(point) for point in points]
        typer.echo(json.dumps({**found.to_json(), **normalization, "curve": curve_points}, indent=2))
    else:
        typer.echo("\n".join([*_lines(found, points), *(chosen.lines() if chosen is not None else [])]))


def _normalize(
    checkpoint: Checkpoint, pool: Sequence[Sample], request: NormalizationRequest, how: dict[str, Any]
) -> tuple[Profiles, NormalizationReport]:
    """Measure or choose the levels of the cameras; auto leaves a camera with a single crop as it is."""
    from reid.models.calibration import can_be_calibrated
    from reid.pipeline import progress_bar
    from reid.retrieval.camera_normalization import count_images, normalize_cameras

    minimum = 1 if request.is_auto else 2
    with progress_bar("normalizing cameras", count_images(pool, request, can_be_calibrated(checkpoint))) as progress:
        return normalize_cameras(checkpoint, pool, request, **how, minimum=minimum, progress=progress)


def _measure_curve(
    checkpoint: Checkpoint, pool: Sequence[Sample], scored: Sequence[Sample], fields: tuple[str, ...]
) -> list[CurvePoint]:
    from reid.evaluation.analysis.camera_curve import curve_steps, score_curve
    from reid.pipeline import progress_bar, workers

    most = max(Counter(domain_of(sample, fields) for sample in pool).values())
    with progress_bar("measuring the curve", len(curve_steps(most)) * len(scored)) as progress:
        return score_curve(checkpoint, pool, scored, domain_fields=fields, workers=workers(), progress=progress)


def _check_outputs(plot: Path | None, out: Path | None, html_file: Path | None, data: list[str] | None) -> None:
    if plot is not None and plot.suffix.lower() != ".svg":
        raise ConfigError(f"--plot {plot}: expected a name that ends in .svg")
    if out is not None:
        check_output_file(out, "reid-profiles-", data)
    if html_file is not None:
        from reid.evaluation.reports.camera_report_page import MARK as PAGE_MARK

        check_output_file(html_file, PAGE_MARK, data)
    if plot is not None:
        from reid.evaluation.reports.camera_curve_plot import MARK

        check_output_file(plot, MARK, data)


def _write_plot(plot: Path, points: list[CurvePoint]) -> None:
    from reid.evaluation.reports.camera_curve_plot import curve_svg

    chart = curve_svg(points)
    write_whole(plot, lambda part: part.write_text(chart, encoding="utf-8"), private=False)


@cameras.command(
    cls=NetworkCommand,
    epilog="Example: reid cameras watch --data today --reference crops --profiles cameras.safetensors",
)
def watch(
    reference: Annotated[list[str], typer.Option(help="Data that the profiles were calibrated on. Can be repeated.")],
    data: Data = None,
    root: Root = None,
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    profiles: ProfileFiles = None,
    split: Annotated[
        Split | None, typer.Option(help="Split of --reference. Default: train if it has crops, else all crops.")
    ] = None,
    false_alarms: Annotated[
        float,
        typer.Option(
            min=LEAST_ALARMS,
            max=0.5,
            callback=finite,
            help="Share of checks in which a camera that has not changed may be reported as drifted.",
        ),
    ] = 0.01,
    as_json: AsJson = False,
) -> None:
    """Check whether new crops still look like those that a camera was calibrated on.

    Night, dirt or moving the camera can change them.  The exit code is 3 if a camera drifted.  The threshold comes
    from the reference crops themselves, so it holds for new crops of the same hours and the same view.
    """
    from reid.data.manifest import check_files
    from reid.data.selection import calibration_samples
    from reid.pipeline import check_weights, load_checkpoint, progress_bar, workers

    if not data:
        raise ConfigError("cameras watch: name the new crops with --data")
    check_weights(weights, profiles or ())
    new = list({sample.path: sample for sample in samples_of(data, root)}.values())
    stored = calibration_samples(samples_of(reference, root), split)
    check_files([*new, *stored])
    checkpoint = load_checkpoint(weights, backbone, size, profiles or ())
    from reid.evaluation.analysis.camera_watch import cameras_to_watch
    from reid.evaluation.analysis.camera_watch import watch as judge

    pairs = cameras_to_watch(checkpoint, new, stored)
    with progress_bar("watching", sum(len(pair) for pair in pairs)) as progress:
        found = judge(checkpoint, pairs, false_alarms=false_alarms, workers=workers(), progress=progress)
    if as_json:
        typer.echo(json.dumps([{**asdict(drift), "alarm": drift.alarm} for drift in found], indent=2))
    else:
        for drift in found:
            word = "DRIFTED" if drift.alarm else "as before"
            typer.echo(
                f"{drift.camera}\t{word}\tdrift {drift.drift:.3f}\tthreshold {drift.threshold:.3f} for"
                f" {drift.crops} crops at {drift.false_alarms:.2g} false alarms"
            )
    if any(drift.alarm for drift in found):
        raise typer.Exit(DRIFTED)


@cameras.command(epilog="Example: reid cameras merge cameras.safetensors new.safetensors --out cameras.safetensors")
def merge(
    files: Annotated[list[Path], typer.Argument(help='Profiles of "reid calibrate", two or more.')],
    out: Annotated[Path, typer.Option(help="Profiles file to write. It may be one of those that are read.")],
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Where several files have a camera, take the last one. Default: combine the images of all.",
        ),
    ] = False,
) -> None:
    """Combine profiles files: of cameras that were added later, of more crops, or of a new calibration (--replace)."""
    from reid.pipeline import check_weights

    if len(files) < 2:
        raise ConfigError("cameras merge: name two profiles files or more")
    check_output_file(out, "reid-profiles-")
    check_weights(None, files)
    from reid.models.calibration import replace_domains
    from reid.norm import Profiles

    merged = Profiles.load(files[0])
    for file in files[1:]:
        other = Profiles.load(file)
        merged = replace_domains(merged, other) if replace else merged.merge(other)
    merged.save(out)
    for name, images in zip(merged.domains, merged.images, strict=True):
        typer.echo(f"{name}\t{images} images")


@cameras.command(epilog="Example: reid cameras center embeddings.safetensors --out centered.safetensors")
def center(
    embeddings: Annotated[Path, typer.Argument(help='Embeddings file of "reid embed".')],
    out: Annotated[Path, typer.Option(help="Embeddings file to write.")],
    by: Annotated[str, typer.Option(help='Fields that name a domain together, such as "category/camera".')] = "camera",
) -> None:
    """Subtract from each embedding the mean of its camera, for networks without BatchNorm, which cannot be calibrated.

    The mean is taken over the crops of split train where the file has any, else over all crops.
    """
    import numpy as np

    fields = parse_domain_fields(by)
    check_output_file(out, "reid-embeddings-", [str(embeddings)])
    from reid.retrieval.centering import camera_means, centered
    from reid.retrieval.embed import load_embeddings, save_embeddings

    given = load_embeddings(embeddings)
    train = [row for row, sample in enumerate(given.samples) if sample.split is Split.TRAIN]
    rows = train or list(range(len(given)))
    moved = centered(given, camera_means(given.select(np.array(rows, dtype=np.int64)), fields), fields)
    save_embeddings(moved, out)
    typer.echo(f"{out}\t{len(moved)} vectors\tfingerprint {moved.fingerprint}")


def _lines(found: CameraReport, points: list[CurvePoint]) -> list[str]:
    """Return the report as lines of text."""
    lines = ["camera\tcrops\tworth\tshift\tgap\terror\tverdict"]
    for camera in found.cameras:
        numbers = "\t".join(_number(value) for value in (camera.shift, camera.gap, camera.error))
        lines.append(f"{camera.camera}\t{camera.crops}\t{_number(camera.effective, 0)}\t{numbers}\t{camera.verdict}")
    lines += [f"{camera.camera}: {camera.verdict}: {camera.reason}" for camera in found.cameras]
    bias = ", ".join(f"{name} {factor:.2f}" for name, factor in found.bias.items())
    lines.append(f"nearest other identities of the same camera, times chance: {bias}")
    for line in found.scores:
        scores = ", ".join(f"{name} {100 * m.mAP:.1f} / {100 * m.rank(1):.1f}" for name, m in line.metrics.items())
        changes = ", ".join(
            f"{name} {100 * change.value:+.1f} ({100 * change.low:+.1f} to {100 * change.high:+.1f})"
            for name, change in (("mAP", line.precision.difference), ("rank-1", line.rank1.difference))
        )
        lines += [f"{line.category} {line.direction}: mAP / rank-1 {scores}", f"  {changes}"]
    lines += [
        f"{point.crops} crops, prior {point.prior:g}: mAP / rank-1 {100 * point.mAP:.1f} / {100 * point.rank1:.1f}"
        for point in points
    ]
    return lines


def _number(value: float, digits: int = 2) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
