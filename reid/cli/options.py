"""Options that several commands share, and what their words mean.

Nothing here knows a command; nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from reid.errors import ConfigError
from reid.records import Sample

if TYPE_CHECKING:
    from reid.models.calibration import PriorFrom
    from reid.models.checkpoint import Checkpoint

Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data", help="manifest (CSV, Parquet), a folder with manifest.csv, or a data set's name; repeatable"
    ),
]
Root = Annotated[Path | None, typer.Option(help="folder of a data set given by name, such as market1501")]
Weights = Annotated[Path | None, typer.Option(help="weights file; default: the shipped weights")]
Backbone = Annotated[str | None, typer.Option(help="network of weights that do not say it, such as osnet_x0_25")]
Size = Annotated[
    tuple[int, int] | None,
    typer.Option(help="height and width in pixels, such as 256 128, instead of the weights' own"),
]
ProfileFiles = Annotated[
    list[Path] | None, typer.Option("--profiles", help='camera profiles of "reid calibrate"; repeatable')
]
Flip = Annotated[bool, typer.Option("--flip", help="embed the mirror image too and average: slower, scores more")]
Unseen = Annotated[
    str | None,
    typer.Option(
        "--unseen-camera",
        help="camera the weights do not know: error (default), calibrate on split train, prior, nearest or mixture",
    ),
]
PriorSource = Annotated[
    str,
    typer.Option(
        "--prior-from", help="where these are from: cameras (the others of its modality) or network (its own)"
    ),
]
UNSEEN = ("error", "calibrate", "prior", "nearest", "mixture")


def finite(value: float | None) -> float | None:
    """A number of an option, which is no "nan" and no "inf": bounds alone let these pass."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value:g} is not a finite number")
    return value


def prior_source(prior: float, source: str) -> PriorFrom:
    """Where the images of ``--prior`` are from, by ``--prior-from``."""
    from reid.errors import unknown_name
    from reid.models.calibration import PriorFrom

    if source not in get_args(PriorFrom):
        raise ConfigError(unknown_name("--prior-from", source, get_args(PriorFrom)))
    if source == "network" and not prior:
        raise ConfigError("--prior-from network: says nothing without --prior, how many images the network counts for")
    return cast("PriorFrom", source)


def data_specs(data: list[str] | None) -> list[str]:
    """What to read: ``data``, or the sites of the default street, made now if it is not there."""
    if data:
        if len(set(data)) != len(data):
            raise ConfigError(f"--data: the same data is named twice: {', '.join(data)}")
        return data
    from reid.data.street.generation import StreetPlan
    from reid.pipeline import DEFAULT_DATA, make_street

    return [str(path) for path in make_street(DEFAULT_DATA, StreetPlan())]


def read_samples(data: list[str] | None, root: Path | None) -> tuple[Sample, ...]:
    """The samples of all ``data``, or of the default street."""
    from reid.pipeline import read_all

    return read_all(data_specs(data), root)


def settings_of(rules: list[str] | None) -> dict[str, str]:
    """The KEY=VALUE pairs of ``--rule`` as a dict."""
    pairs = [rule.partition("=") for rule in rules or ()]
    for key, equals, value in pairs:
        if not (key and equals and value):
            raise ConfigError(f'--rule {key}{equals}{value}: expected KEY=VALUE such as "precision=trapezoid"')
    return {key: value for key, _, value in pairs}


def unseen_policy(value: str | None, default: str = "error") -> Any:
    """What a camera gets that the weights do not know: ``value``, or ``default`` where none is given."""
    from reid.errors import unknown_name

    if value is not None and value not in UNSEEN:
        raise ConfigError(unknown_name("--unseen-camera", value, UNSEEN))
    return value or default


def meet(checkpoint: Checkpoint, samples: Sequence[Sample], unseen: str | None, default: str = "error") -> Checkpoint:
    """The checkpoint with what ``--unseen-camera`` (``default`` where it is not given) says of its unknown cameras."""
    from reid.pipeline import with_unseen_cameras

    check_cameras(checkpoint, unseen)
    return with_unseen_cameras(checkpoint, samples, unseen_policy(unseen, default))


def check_cameras(checkpoint: Checkpoint, unseen: str | None) -> None:
    """Refuse ``--unseen-camera`` for weights that know no cameras, for it would change nothing."""
    if unseen not in (None, "error") and not checkpoint.domain_fields:
        raise ConfigError(
            f"--unseen-camera {unseen}: {checkpoint.source} keeps no statistics per camera, so none is unknown to it;"
            ' leave it out, or run "reid calibrate" on crops of each camera and pass --profiles'
        )


def stopped(folder: Path, error: OSError) -> str:
    """Why work in ``folder`` stopped, such as a full disk, and how it goes on."""
    return f"{error.filename or folder}: {error.strerror or error}; mend that, then the same command continues {folder}"


def parsed_domain_fields(by: str) -> tuple[str, ...]:
    """The fields of a sample that ``by`` names, as in "domain/camera"."""
    from reid.errors import unknown_name

    fields = tuple(part for part in by.split("/") if part)
    for name in fields:
        if name not in ("camera", "modality", "domain"):
            raise ConfigError(unknown_name("field of --by", name, ("camera", "modality", "domain")))
    return fields
