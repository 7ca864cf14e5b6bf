"""``reid cameras repair``: propose a cure for a camera that has drifted, and write profiles with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reid.cli.cameras import cameras
from reid.cli.network_options import NetworkCommand
from reid.cli.options import AsJson, Backbone, Data, Root, Size, Weights, samples_of
from reid.errors import ConfigError, DataError
from reid.files import check_output_file
from reid.records import Sample, domain_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reid.models.checkpoint import Checkpoint

commands = typer.Typer()  # the command is one of the group "cameras"


@cameras.command(
    cls=NetworkCommand,
    epilog="Example: reid cameras repair --data today/manifest.csv --profiles cameras.safetensors --camera c3"
    " --out repaired.safetensors",
)
def repair(
    camera: Annotated[str, typer.Option(help="The camera that has drifted.")],
    profiles: Annotated[Path, typer.Option(help="Profiles of the cameras, as they are now.")],
    out: Annotated[Path, typer.Option(help="Profiles file to write. It may be the one that is read.")],
    data: Data = None,
    root: Root = None,
    gallery: Annotated[
        Path | None, typer.Option(help="Gallery whose crops and whose network are used, in place of --data.")
    ] = None,
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    as_json: AsJson = False,
) -> None:
    """Propose the cheapest sufficient cure for a camera that has drifted, show its gain, and write profiles with it.

    The data hold new crops of the camera, such as those that "reid cameras watch" raised the alarm for, and crops of
    other cameras.  Labels are not needed: a cure is good if more crops of the camera and of another one are each
    other's nearest.  A gallery has to be built or refreshed with the new profiles.
    """
    from reid.pipeline import check_weights, load_checkpoint, progress_bar, workers

    if (gallery is None) == (not data):
        raise ConfigError("cameras repair: name the crops with --data or with --gallery, one of the two")
    check_output_file(out, "reid-profiles-", data)
    check_weights(weights, [profiles])
    samples = _gallery_samples(gallery) if gallery is not None else samples_of(data, root)
    from reid.norm import Profiles
    from reid.retrieval.camera_repair import count_repair_images, repair_camera

    checkpoint: Checkpoint
    if gallery is not None and weights is None:
        from reid.pipeline import gallery_checkpoint

        checkpoint = gallery_checkpoint(gallery)
    else:
        checkpoint = load_checkpoint(weights, backbone, size, ())
    known = Profiles.load(profiles)
    name, crops = _named(camera, samples, known.domain_fields), _usable(samples)
    with progress_bar("trying cures", count_repair_images(crops, known, name)) as progress:
        found = repair_camera(checkpoint, known, crops, name, workers=workers(), progress=progress)
    found.profiles.save(out)
    typer.echo(json.dumps(found.to_json(), indent=2) if as_json else "\n".join([*found.lines(), str(out)]))


def _gallery_samples(folder: Path) -> Sequence[Sample]:
    from reid.retrieval.gallery import Gallery

    return tuple(Gallery.open(folder).samples)


def _usable(samples: Sequence[Sample]) -> list[Sample]:
    """Return each image once, and check that all exist."""
    from reid.data.manifest import check_files

    found = list({sample.path: sample for sample in samples}.values())
    check_files(found)
    return found


def _named(camera: str, samples: Sequence[Sample], fields: Sequence[str]) -> str:
    """Return the domain that a name or the label of a camera means."""
    domains = sorted({domain_of(sample, fields) for sample in samples})
    if camera in domains:
        return camera
    found = sorted({domain_of(sample, fields) for sample in samples if sample.camera == camera})
    if len(found) > 1:
        raise ConfigError(f'--camera "{camera}": it is part of {", ".join(found)}; name one of these')
    if not found:
        raise DataError(f'--camera "{camera}": no crop is of it; the crops are of {", ".join(domains)}')
    return found[0]
