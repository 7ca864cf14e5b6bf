"""``reid search``: rank a gallery by similarity to one image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reid.cli.options import (
    AsJson,
    Backbone,
    Flip,
    ProfileFiles,
    Size,
    Unseen,
    Weights,
    check_cameras,
    unseen_policy,
)
from reid.errors import ConfigError
from reid.records import Modality, Sample, Split, UnseenCameraPolicy, domain_of

if TYPE_CHECKING:
    from reid.models.checkpoint import Checkpoint

commands = typer.Typer()


@commands.command(epilog="Example: reid search query.jpg --camera a1 --cross-camera")
def search(
    image: Annotated[Path, typer.Argument(help="Image of the person or object to search for.")],
    gallery: Annotated[Path | None, typer.Option(help="Folder of the gallery. Default: galleries/street.")] = None,
    camera: Annotated[
        str, typer.Option(help="Camera that took the image. Needed if the network has statistics for each camera.")
    ] = "",
    modality: Annotated[Modality, typer.Option(help="Light that the camera records.")] = Modality.VISIBLE,
    category: Annotated[str, typer.Option(help="What the image shows: person, vehicle, ...")] = "person",
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Number of answers.")] = 10,
    cross_camera: Annotated[bool, typer.Option("--cross-camera", help="Leave out answers of the same camera.")] = False,
    answers: Annotated[
        list[Modality] | None, typer.Option(help="Show answers of this modality only. Can be repeated. Default: any.")
    ] = None,
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    profiles: ProfileFiles = None,
    unseen: Unseen = None,
    flip: Flip = False,
    as_json: AsJson = False,
) -> None:
    """Rank a gallery by similarity to one image.

    Without --weights, the network that the gallery was built with embeds the image.
    """
    from reid.data.manifest import check_files
    from reid.pipeline import DEFAULT_GALLERY, check_weights, gallery_checkpoint, load_checkpoint, unknown_domains
    from reid.retrieval.storage import check_gallery

    folder, own_network = gallery or DEFAULT_GALLERY, not (weights or profiles)
    query = Sample(image, "", camera, modality, category, Split.QUERY)
    policy = _checked_policy(unseen, flip, own_network)
    check_gallery(folder)
    check_files([query])
    check_weights(weights, profiles or ())
    from reid.retrieval.gallery import Gallery
    from reid.retrieval.search import search_image

    opened = Gallery.open(folder)
    checkpoint = (
        gallery_checkpoint(folder) if own_network else load_checkpoint(weights, backbone, size, profiles or (), flip)
    )
    check_cameras(checkpoint, unseen)
    checkpoint = checkpoint if unseen is None else checkpoint.with_unseen_camera_policy(policy)
    if checkpoint.unknown_domain is None and unknown_domains(checkpoint, [query]):
        raise ConfigError(_unknown_camera(folder, checkpoint, query))
    found = search_image(
        checkpoint,
        opened,
        image,
        camera=camera,
        modality=modality,
        category=category,
        k=k,
        cross_camera=cross_camera,
        modalities=answers or None,
        categories=[category],
    )
    rows = [_row(rank, answer.sample, answer.score) for rank, answer in enumerate(found, 1)]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        typer.echo("{rank}\t{score:.4f}\t{identity}\t{camera}\t{modality}\t{path}".format(**row))


def _checked_policy(unseen: str | None, flip: bool, own_network: bool) -> UnseenCameraPolicy:
    """Return the policy for unknown cameras, after refusing options that the gallery's own network does not take."""
    if flip and own_network:
        raise ConfigError("--flip: the gallery's own network embeds as the gallery was built; leave it out")
    policy = unseen_policy(unseen)
    if unseen is not None and (own_network or policy in (UnseenCameraPolicy.CALIBRATE, UnseenCameraPolicy.PRIOR)):
        raise ConfigError(
            "--unseen-camera: a gallery's own network does with unknown cameras what it was built with; beside"
            " --weights or --profiles a search knows error, nearest and mixture"
        )
    return policy


def _unknown_camera(folder: Path, checkpoint: Checkpoint, query: Sample) -> str:
    """Return why an image of a camera without statistics cannot be searched for, and what to do about it."""
    fields, known = "/".join(checkpoint.domain_fields), ", ".join(checkpoint.domains)
    unknown = domain_of(query, checkpoint.domain_fields)
    if "camera" in checkpoint.domain_fields and not query.camera:
        return f"{folder}: its network has statistics for each {fields}; say which with --camera; known: {known}"
    return (
        f'{folder}: its network has no statistics for {fields} "{unknown}"; known: {known};'
        ' run "reid calibrate" on its crops and "reid index build --profiles" again, or build with --unseen-camera'
        " nearest or mixture"
    )


def _row(rank: int, sample: Sample, score: float) -> dict[str, Any]:
    return {
        "rank": rank,
        "score": score,
        "identity": sample.identity,
        "camera": sample.camera,
        "modality": str(sample.modality),
        "domain": sample.category,
        "path": str(sample.path),
    }
