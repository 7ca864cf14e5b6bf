"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from reid.errors import ConfigError, unknown_name
from reid.old_names import current_fields
from reid.records import PriorFrom, Sample, UnseenCameraPolicy

if TYPE_CHECKING:
    from reid.models.checkpoint import Checkpoint
    from reid.retrieval.normalization_choice import NormalizationRequest

FIELDS = ("camera", "modality", "category")  # fields of a sample that can name its normalization domain

Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="Manifest (CSV, Parquet), folder with manifest.csv, or name of a published data set. Can be repeated.",
    ),
]
Root = Annotated[
    Path | None, typer.Option(help="Folder of a published data set that --data names, such as market1501.")
]
Weights = Annotated[Path | None, typer.Option(help="Weights file. Default: the shipped weights.")]
Backbone = Annotated[
    str | None,
    typer.Option(
        help="Network that the weights are for, such as osnet_x0_25, transreid_vit_base or timm:NAME. Needed where the"
        " file does not name it."
    ),
]
Size = Annotated[
    tuple[int, int] | None,
    typer.Option(help="Height and width of images in pixels, such as 256 128. Default: those of the weights."),
]
ProfileFiles = Annotated[
    list[Path] | None, typer.Option("--profiles", help='Camera profiles of "reid calibrate". Can be repeated.')
]
Flip = Annotated[
    bool,
    typer.Option(
        "--flip", help="Average the embeddings of the image and of its mirror image. Twice as slow, slightly better."
    ),
]
Unseen = Annotated[
    str | None,
    typer.Option(
        "--unseen-camera",
        help="What to do with images of a camera that the weights do not know. error refuses them. calibrate measures"
        " the camera on crops of split train. prior takes the mean of all known statistics. nearest takes those most"
        " like the image's own. mixture takes all of them, weighted by similarity. Default: error.",
    ),
]
DomainFields = Annotated[
    str,
    typer.Option(
        "--by", help='Fields that name a domain together, such as "category/camera". Default: those of the weights.'
    ),
]


class ScoreNormName(StrEnum):
    """The score normalizations of :mod:`reid.retrieval.score_normalization`."""

    NONE = "none"
    CSLS = "csls"
    SNORM = "snorm"


ScoreNorm = Annotated[
    ScoreNormName | None,
    typer.Option(
        "--score-norm",
        help="Also score with scores that are normalized per pair of cameras, without labels: csls, or the adaptive"
        " symmetric s-norm. Default: what the profiles recommend, else none.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


Normalize = Annotated[
    str | None,
    typer.Option(
        metavar="LEVELS",
        help="How each camera is normalized: auto tries the levels on unlabelled crops and chooses; none; or levels"
        " joined by +, such as statistics+centering+csls.",
    ),
]


def finite(value: float | None) -> float | None:
    """Refuse "nan" and "inf" as the number of an option, which its bounds let pass."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value:g} is not a finite number")
    return value


def same_rate(value: float | None) -> float | None:
    """Refuse a false-match rate that is not above 0 and below 1."""
    if value is not None and not 0 < value < 1:
        raise typer.BadParameter(f"{value:g} is not a rate above 0 and below 1")
    return value


Prior = Annotated[
    float,
    typer.Option(
        min=0,
        callback=finite,
        help="Shrink each camera's statistics toward the prior, as if the prior were PRIOR more images.",
    ),
]
PriorSource = Annotated[
    str,
    typer.Option(
        "--prior-from",
        help="The prior: cameras (the other cameras of the same modality) or network (the network's own statistics).",
    ),
]


def prior_source(prior: float, source: str) -> PriorFrom:
    """Check the value of ``--prior-from``, which needs ``--prior``."""
    if source not in get_args(PriorFrom):
        raise ConfigError(unknown_name("--prior-from", source, get_args(PriorFrom)))
    if source == "network" and not prior:
        raise ConfigError("--prior-from network: changes nothing without --prior, how many images the network counts")
    return cast(PriorFrom, source)


def data_specs(data: list[str] | None) -> list[str]:
    """Return what to read: ``data``, or the manifests of the synthetic street, which is drawn if it is missing."""
    if data:
        if len(set(data)) != len(data):
            raise ConfigError(f"--data: the same data is named twice: {', '.join(data)}")
        return data
    from reid.data.street.generation import StreetPlan
    from reid.pipeline import DEFAULT_DATA, make_street

    return [str(path) for path in make_street(DEFAULT_DATA, StreetPlan())]


def samples_of(data: list[str] | None, root: Path | None) -> tuple[Sample, ...]:
    """Read the samples of all ``data``, or of the synthetic street."""
    from reid.pipeline import read_samples

    return read_samples(*data_specs(data), root=root)


def rule_settings(rules: list[str] | None) -> dict[str, str]:
    """Read the KEY=VALUE pairs of ``--rule``."""
    pairs = [rule.partition("=") for rule in rules or ()]
    for key, equals, value in pairs:
        if not (key and equals and value):
            raise ConfigError(f'--rule {key}{equals}{value}: expected KEY=VALUE such as "precision=trapezoid"')
    return {key: value for key, _, value in pairs}


def unseen_policy(value: str | None, default: UnseenCameraPolicy = UnseenCameraPolicy.ERROR) -> UnseenCameraPolicy:
    """Read the value of ``--unseen-camera``; ``default`` where it is not given."""
    if value is not None and value not in list(UnseenCameraPolicy):
        raise ConfigError(unknown_name("--unseen-camera", value, UnseenCameraPolicy))
    return UnseenCameraPolicy(value) if value else default


def for_cameras_of(
    samples: Sequence[Sample],
    checkpoint: Checkpoint,
    unseen: str | None,
    default: UnseenCameraPolicy = UnseenCameraPolicy.ERROR,
) -> Checkpoint:
    """Prepare a checkpoint for the cameras of some samples, as ``--unseen-camera`` asks."""
    from reid.pipeline import with_unseen_cameras

    check_cameras(checkpoint, unseen)
    return with_unseen_cameras(checkpoint, samples, unseen_policy(unseen, default))


def normalized_for(
    samples: Sequence[Sample], checkpoint: Checkpoint, normalize: str | None, profiles: Sequence[Path] | None
) -> Checkpoint:
    """Normalize the cameras of some samples as ``--normalize`` asks, measured on their crops of split train or on all.

    What was chosen is said on stderr.
    """
    request = normalization_request(normalize, profiles)
    if request is None:
        return checkpoint
    if request.is_auto and not any(sample.camera for sample in samples):
        typer.echo("no crop names its camera: the network stays as it is", err=True)
        return checkpoint
    from reid.data.manifest import check_files
    from reid.data.selection import calibration_samples
    from reid.models.calibration import can_be_calibrated
    from reid.pipeline import progress_bar, workers
    from reid.retrieval.camera_normalization import count_images, normalize_cameras

    crops = calibration_samples(samples)
    check_files(crops)
    total = count_images(crops, request, can_be_calibrated(checkpoint))
    with progress_bar("normalizing cameras", total) as progress:
        found, report = normalize_cameras(checkpoint, crops, request, workers=workers(), progress=progress)
    for line in report.lines():
        typer.echo(line, err=True)
    return checkpoint.with_profiles(found)


def normalization_request(normalize: str | None, profiles: Sequence[Path] | None) -> NormalizationRequest | None:
    """Read the value of ``--normalize``; None where it is not given.  Profiles say the same, so both are refused."""
    from reid.retrieval.normalization_choice import parse_normalization

    if normalize is None:
        return None
    if profiles:
        raise ConfigError("--normalize and --profiles: both say how cameras are normalized; leave one out")
    return parse_normalization(normalize)


def check_cameras(checkpoint: Checkpoint, unseen: str | None) -> None:
    """Refuse ``--unseen-camera`` for weights without statistics per camera, because it would change nothing."""
    if unseen not in (None, UnseenCameraPolicy.ERROR) and not checkpoint.domain_fields:
        raise ConfigError(
            f"--unseen-camera {unseen}: {checkpoint.source} keeps no statistics per camera, so none is unknown to it;"
            ' leave it out, or run "reid calibrate" on crops of each camera and pass --profiles'
        )


def stopped(folder: Path, error: OSError) -> str:
    """Return one line about an error that stopped the work in ``folder``, such as a full disk."""
    return f"{error.filename or folder}: {error.strerror or error}; mend that, then the same command continues {folder}"


def parse_domain_fields(by: str) -> tuple[str, ...]:
    """Read the fields of ``--by``.

    Example:
        >>> parse_domain_fields("category/camera")
        ('category', 'camera')
    """
    fields = current_fields(part for part in by.split("/") if part)
    for name in fields:
        if name not in FIELDS:
            raise ConfigError(unknown_name("field of --by", name, FIELDS))
    return fields
