"""Commands about the cameras of a data set: cameras report, cameras watch, cameras merge, cameras center."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reid.cli.options import (
    Backbone,
    Data,
    PriorSource,
    ProfileFiles,
    Root,
    Size,
    Weights,
    finite,
    parsed_domain_fields,
    prior_source,
    read_samples,
)
from reid.errors import ConfigError, DataError
from reid.files import write_whole
from reid.records import Sample, Split, domain_of

if TYPE_CHECKING:
    from reid.evaluation.analysis.camera_curve import CurvePoint
    from reid.evaluation.analysis.camera_report import CameraReport

commands = typer.Typer()
cameras = typer.Typer(
    help="Is calibration worth it, do new crops still fit, put profiles together.", no_args_is_help=True
)
commands.add_typer(cameras, name="cameras")

By = Annotated[str, typer.Option(help='fields that name a camera, such as "domain/camera"; default: the weights\' own')]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
DRIFTED = 3  # exit code: the check was made, and a camera drifted
LEAST_ALARMS = 0.001  # the smallest rate that the resamplings behind a threshold can tell


@cameras.command(epilog="Example: reid cameras report --data crops/manifest.csv --out cameras.safetensors")
def report(
    data: Data = None,
    root: Root = None,
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    by: By = "",
    split: Annotated[Split | None, typer.Option(help="rows to measure; default: train if any, else all")] = None,
    prior: Annotated[
        float, typer.Option(min=0, callback=finite, help="few images: count so many of elsewhere beside a camera's own")
    ] = 0.0,
    prior_from: PriorSource = "cameras",
    curve: Annotated[
        bool, typer.Option("--curve", help="score against the number of crops and the prior; slow")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="SVG file to write: the curve as a picture")] = None,
    out: Annotated[Path | None, typer.Option(help="profiles file to write: what is recommended")] = None,
    as_json: AsJson = False,
) -> None:
    """Say for every camera whether to calibrate it, to leave it, or to get more crops of it, and why.

    Works on unlabelled crops; where the data have queries and a gallery, scores before and after are compared too.
    """
    from reid.data.manifest import check_files
    from reid.evaluation.analysis.camera_curve import curve_steps, score_curve
    from reid.evaluation.analysis.camera_report import camera_report, count_images
    from reid.evaluation.reports.camera_curve_plot import MARK, curve_svg
    from reid.models.own_statistics import keeps_statistics
    from reid.pipeline import claim_output, load_checkpoint_for, progress_bar, workers

    source = prior_source(prior, prior_from)
    curve = curve or plot is not None
    if plot is not None:
        if plot.suffix.lower() != ".svg":
            raise ConfigError(f"--plot {plot}: expected a name that ends in .svg")
        claim_output(plot, MARK, data)
    if out is not None:
        claim_output(out, "reid-profiles-", data)
    samples = read_samples(data, root)
    pool, asked = measured_rows(samples, split), [s for s in samples if s.split is not Split.TRAIN]
    check_files([*pool, *asked])
    checkpoint = load_checkpoint_for(weights, backbone, size)
    fields = parsed_domain_fields(by) or checkpoint.domain_fields or ("camera",)
    statistics = keeps_statistics(checkpoint)
    if not statistics and (out is not None or curve):
        raise ConfigError(
            f"{checkpoint.source}: a network without BatchNorm has no profiles; leave --out, --curve and --plot out"
        )
    with progress_bar("looking at cameras", count_images(pool, asked, fields, statistics)) as progress:
        found = camera_report(
            checkpoint,
            pool,
            asked,
            domain_fields=fields,
            prior=prior,
            prior_from=source,
            workers=workers(),
            progress=progress,
        )
    points: list[CurvePoint] = []
    if curve:
        most = max(Counter(domain_of(sample, fields) for sample in pool).values())
        with progress_bar("drawing the curve", len(curve_steps(most)) * len(asked)) as progress:
            points = score_curve(checkpoint, pool, asked, domain_fields=fields, workers=workers(), progress=progress)
    if plot is not None:
        picture = curve_svg(points)
        write_whole(plot, lambda part: part.write_text(picture, encoding="utf-8"), private=False)
    if out is not None and found.profiles is not None:
        found.profiles.save(out)
    if as_json:
        typer.echo(json.dumps({**found.to_json(), "curve": [asdict(point) for point in points]}, indent=2))
    else:
        typer.echo("\n".join(_lines(found, points)))


@cameras.command(epilog="Example: reid cameras watch --data today --reference crops --profiles cameras.safetensors")
def watch(
    reference: Annotated[list[str], typer.Option(help="data the profiles were calibrated on; repeatable")],
    data: Data = None,
    root: Root = None,
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    profiles: ProfileFiles = None,
    split: Annotated[Split | None, typer.Option(help="rows of --reference; default: train if any, else all")] = None,
    false_alarms: Annotated[
        float,
        typer.Option(
            min=LEAST_ALARMS, max=0.5, callback=finite, help="share of checks that may alarm for nothing, a camera"
        ),
    ] = 0.01,
    as_json: AsJson = False,
) -> None:
    """Tell whether new crops still look like those a camera was calibrated on: night, dirt, a camera that was moved.

    Exit code 3 if a camera drifted.  The threshold comes from the reference crops themselves: it holds for new crops
    of the same hours and places.
    """
    from reid.data.manifest import check_files
    from reid.evaluation.analysis.camera_watch import cameras_to_watch
    from reid.evaluation.analysis.camera_watch import watch as judge
    from reid.pipeline import load_checkpoint_for, progress_bar, workers

    if not data:
        raise ConfigError("cameras watch: name the new crops with --data")
    new = list({sample.path: sample for sample in read_samples(data, root)}.values())
    stored = measured_rows(read_samples(reference, root), split)
    check_files([*new, *stored])
    checkpoint = load_checkpoint_for(weights, backbone, size, profiles or ())
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
    files: Annotated[list[Path], typer.Argument(help='profiles of "reid calibrate", two or more')],
    out: Annotated[Path, typer.Option(help="profiles file to write; may be one of those read")],
    replace: Annotated[
        bool, typer.Option("--replace", help="a camera in several files: the last counts; default: all images together")
    ] = False,
) -> None:
    """Put profiles together: cameras added later, more crops of a camera, or a camera calibrated anew (--replace)."""
    from reid.models.own_statistics import replaced
    from reid.norm import Profiles
    from reid.pipeline import claim_output

    if len(files) < 2:
        raise ConfigError("cameras merge: name two profiles files or more")
    claim_output(out, "reid-profiles-")
    whole = Profiles.load(files[0])
    for file in files[1:]:
        other = Profiles.load(file)
        whole = replaced(whole, other) if replace else whole.merge(other)
    whole.save(out)
    for name, images in zip(whole.domains, whole.images, strict=True):
        typer.echo(f"{name}\t{images} images")


@cameras.command(epilog="Example: reid cameras center embeddings.safetensors --out centered.safetensors")
def center(
    embeddings: Annotated[Path, typer.Argument(help='embeddings file of "reid embed"')],
    out: Annotated[Path, typer.Option(help="embeddings file to write")],
    by: Annotated[str, typer.Option(help="fields that name a camera")] = "camera",
) -> None:
    """Subtract each camera's mean from its embeddings: for networks without BatchNorm, which cannot be calibrated.

    Means are those of the rows of split train where a file has any, else of all rows.
    """
    import numpy as np

    from reid.pipeline import claim_output
    from reid.retrieval.centering import camera_means, centered
    from reid.retrieval.embed import load_embeddings, save_embeddings

    claim_output(out, "reid-embeddings-", [str(embeddings)])
    given, fields = load_embeddings(embeddings), parsed_domain_fields(by)
    train = [row for row, sample in enumerate(given.samples) if sample.split is Split.TRAIN]
    rows = train or list(range(len(given)))
    moved = centered(given, camera_means(given.select(np.array(rows, dtype=np.int64)), fields), fields)
    save_embeddings(moved, out)
    typer.echo(f"{out}\t{len(moved)} vectors\tfingerprint {moved.fingerprint}")


def measured_rows(samples: tuple[Sample, ...], split: Split | None) -> list[Sample]:
    """The rows of a split; by default those of split train if there are any, else each picture once."""
    rows = [s for s in samples if s.split is (split or Split.TRAIN)]
    if split is not None and not rows:
        raise DataError(f'no row of split "{split}" to measure')
    return rows or list({s.path: s for s in samples}.values())


def _lines(found: CameraReport, points: list[CurvePoint]) -> list[str]:
    """The report as text, at most 120 wide."""
    lines = ["camera\tcrops\tworth\tshift\tgap\terror\tverdict"]
    for camera in found.cameras:
        numbers = "\t".join(_number(value) for value in (camera.shift, camera.gap, camera.error))
        lines.append(f"{camera.camera}\t{camera.crops}\t{_number(camera.effective, 0)}\t{numbers}\t{camera.verdict}")
    lines += [f"{camera.camera}: {camera.verdict}: {camera.reason}" for camera in found.cameras]
    bias = ", ".join(f"{name} {factor:.2f}" for name, factor in found.bias.items())
    lines.append(f"nearest strangers of the same camera, times chance: {bias}")
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
