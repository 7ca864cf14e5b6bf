"""``reid calibrate``: measure the statistics of each camera."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reid.cli.network_options import NetworkCommand
from reid.cli.options import (
    Backbone,
    Data,
    DomainFields,
    Normalize,
    Prior,
    PriorSource,
    Root,
    Size,
    Weights,
    finite,
    normalization_request,
    parse_domain_fields,
    prior_source,
    samples_of,
)
from reid.errors import ConfigError, unknown_name
from reid.records import Split

commands = typer.Typer()


@commands.command(
    cls=NetworkCommand, epilog="Example: reid calibrate --data crops/manifest.csv --out profiles.safetensors"
)
def calibrate(
    out: Annotated[Path, typer.Option(help="Profiles file to write.")],
    data: Data = None,
    root: Root = None,
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    by: DomainFields = "",
    normalize: Normalize = None,
    split: Annotated[
        Split | None, typer.Option(help="Split to measure. Default: train if it has crops, else all crops.")
    ] = None,
    min_images: Annotated[int, typer.Option(min=1, help="Refuse a camera with fewer crops.")] = 2,
    prior: Prior = 0.0,
    prior_from: PriorSource = "cameras",
    only: Annotated[
        list[str] | None, typer.Option(help="Measure this camera only. Can be repeated. Default: every camera.")
    ] = None,
    sample_by: Annotated[
        str,
        typer.Option(help='"track" keeps the middle crop of each track. Needs the column `track` of "reid ingest".'),
    ] = "",
    min_gap: Annotated[
        float,
        typer.Option(
            min=0,
            callback=finite,
            metavar="SECONDS",
            help="Keep one crop per camera every SECONDS. Needs the column `time`.",
        ),
    ] = 0.0,
) -> None:
    """Measure from unlabelled crops how every camera is normalized, and write it as profiles.

    Without --normalize these are the statistics of each camera, or its center where the network has no BatchNorm.
    With --normalize auto the levels are tried on the crops, and those that help are written.  Pass the file to other
    commands with --profiles.  The weights stay as they are.
    """
    from reid.data.label_text import clean_label
    from reid.data.manifest import check_files
    from reid.data.selection import calibration_samples, keep_min_gap, keep_one_of_each_track, select_domains
    from reid.files import check_output_file
    from reid.pipeline import check_weights, load_checkpoint, progress_bar, workers

    if sample_by not in ("", "track"):
        raise ConfigError(unknown_name("--sample-by", sample_by, ("track",)))
    source, fields = prior_source(prior, prior_from), parse_domain_fields(by)
    asked = normalization_request(normalize, None)
    check_output_file(out, "reid-profiles-", data)
    check_weights(weights)
    rows = calibration_samples(samples_of(data, root), split)
    check_files(rows)
    checkpoint = load_checkpoint(weights, backbone, size)
    from reid.models.calibration import can_be_calibrated
    from reid.retrieval.camera_normalization import count_images, normalize_cameras
    from reid.retrieval.normalization_choice import parse_normalization

    has_statistics = can_be_calibrated(checkpoint)
    request = asked or parse_normalization("statistics" if has_statistics else "centering")
    fields = fields or checkpoint.domain_fields or ("camera",)
    rows = select_domains(rows, fields, [clean_label(name) for name in only]) if only else rows
    rows = keep_one_of_each_track(rows, fields) if sample_by else rows
    rows = keep_min_gap(rows, fields, min_gap) if min_gap else rows
    with progress_bar("calibrating", count_images(rows, request, has_statistics)) as progress:
        profiles, report = normalize_cameras(
            checkpoint,
            rows,
            request,
            domain_fields=fields,
            minimum=min_images,
            prior=prior,
            prior_from=source,
            workers=workers(),
            progress=progress,
        )
    profiles.save(out)
    measured = [f"{name}\t{images} images" for name, images in zip(profiles.domains, profiles.images, strict=True)]
    typer.echo("\n".join(report.lines() if asked is not None or not has_statistics else measured))
