"""What ``reid search`` says about cameras, categories and domains that a gallery does not have."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from reid.cli.gallery_options import domains_to_offer
from reid.errors import ConfigError, unknown_name
from reid.records import Sample, domain_of

if TYPE_CHECKING:
    from reid.models.checkpoint import Checkpoint


def check_category(category: str, known: Collection[str], folder: Path) -> None:
    """Refuse a category that no crop of a gallery shows; an empty gallery refuses nothing here."""
    if known and category not in known:
        raise ConfigError(
            f"--category: {folder} has no such crops: {unknown_name('category', category, sorted(known))}"
        )


def hint_nothing_excluded(camera: str, cameras: Sequence[str], folder: Path) -> None:
    """Say so where --cross-camera leaves out no answer, because the gallery has no crop of the query's camera."""
    known = sorted({name for name in cameras if name})
    if not camera:
        why = "the query has no --camera"
    elif camera not in known:
        why = f"{folder} has no such camera: {unknown_name('camera', camera, known)}"
    else:
        return
    typer.echo(f"hint: --cross-camera leaves nothing out, because {why}", err=True)


def unknown_domain(
    folder: Path, checkpoint: Checkpoint, query: Sample, own_network: bool, gallery: Sequence[Sample]
) -> str:
    """Return why an image without statistics cannot be searched for, and what to do about it.

    The domains of the gallery are offered.  Its network may know others, such as those that it was trained on.
    """

    domains = domains_to_offer(checkpoint, gallery)
    fields, known = "/".join(checkpoint.domain_fields), ", ".join(domains)
    what = "statistics" if checkpoint.has_statistics else "centers"
    where = f"{folder}: its network has" if own_network else f"{checkpoint.source}: these weights have"
    cure = (
        'run "reid calibrate" on its crops and "reid index build --profiles" again, or build the gallery with'
        " --unseen-camera nearest or mixture, or with another network (--weights)"
        if own_network
        else "pass --unseen-camera nearest or mixture, profiles of it (--profiles), or other --weights; build the"
        " gallery with the same"
    )
    cameras = _known_cameras(checkpoint, query, domains) if not query.camera else []
    if cameras:
        return (
            f"{where} {what} for each {fields}; name the camera of the image with --camera; known:"
            f" {', '.join(cameras)}; for another camera, {cure}"
        )
    if query.camera or "camera" not in checkpoint.domain_fields:
        name = domain_of(query, checkpoint.domain_fields)
        return f'{where} no {what} for {fields} "{name}"; known: {known}; {cure}'
    other = {name: getattr(query, name) for name in checkpoint.domain_fields if name != "camera"}
    wanted = " and ".join(f'{name} "{value}"' for name, value in other.items())
    return f"{where} no {what} for any camera of {wanted}; known: {known}; {cure}"


def _known_cameras(checkpoint: Checkpoint, query: Sample, domains: Sequence[str]) -> list[str]:
    """Return the cameras of ``domains`` that fit the category and modality of the query."""
    if "camera" not in checkpoint.domain_fields:
        return []
    found = (dict(zip(checkpoint.domain_fields, name.split("/"), strict=False)) for name in domains)
    cameras = [parts["camera"] for parts in found if len(parts) == len(checkpoint.domain_fields)]
    with_camera = {camera: domain_of(replace(query, camera=camera), checkpoint.domain_fields) for camera in cameras}
    return [camera for camera, domain in with_camera.items() if domain in domains]
