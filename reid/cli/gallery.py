"""Commands that turn images into vectors and search them: embed, index build, index erase, search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reid.cli.options import (
    Backbone,
    Data,
    Flip,
    ProfileFiles,
    Root,
    Size,
    Unseen,
    Weights,
    check_cameras,
    meet,
    read_samples,
    unseen_policy,
)
from reid.errors import ConfigError, DataError
from reid.records import Modality, Sample, Split, domain_of

if TYPE_CHECKING:
    from reid.models.checkpoint import Checkpoint

commands = typer.Typer()
index = typer.Typer(help="Build a gallery, or erase a person from one.", no_args_is_help=True)
commands.add_typer(index, name="index")


@commands.command(epilog="Example: reid embed --data crops/manifest.csv --out embeddings.safetensors")
def embed(
    out: Annotated[Path, typer.Option(help="embeddings file to write")],
    data: Data = None,
    root: Root = None,
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    profiles: ProfileFiles = None,
    unseen: Unseen = None,
    flip: Flip = False,
    split: Annotated[Split | None, typer.Option(help="only these rows")] = None,
) -> None:
    """Turn images into unit vectors."""
    from reid.pipeline import claim_output, embed_samples, load_checkpoint_for
    from reid.retrieval.embed import save_embeddings

    claim_output(out, "reid-embeddings-", data)
    unseen_policy(unseen)
    samples = read_samples(data, root)
    checkpoint = meet(load_checkpoint_for(weights, backbone, size, profiles or (), flip), samples, unseen)
    embeddings = embed_samples(checkpoint, [s for s in samples if split in (None, s.split)])
    save_embeddings(embeddings, out)
    typer.echo(
        f"{out}\t{len(embeddings)} vectors of {embeddings.vectors.shape[1]}\tfingerprint {embeddings.fingerprint}"
    )


@index.command("build", epilog="Example: reid index build --data crops/manifest.csv --out galleries/crops")
def index_build(
    out: Annotated[Path | None, typer.Option(help="folder of the gallery; default: galleries/street")] = None,
    data: Data = None,
    root: Root = None,
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    profiles: ProfileFiles = None,
    unseen: Unseen = None,
    flip: Flip = False,
) -> None:
    """Embed the rows of split gallery and index them.  Without --data: the synthetic street, both sites."""
    from reid.pipeline import DEFAULT_GALLERY, build_gallery, load_checkpoint_for

    default = "error" if data else "calibrate"
    unseen_policy(unseen, default)
    samples = read_samples(data, root)
    checkpoint = meet(load_checkpoint_for(weights, backbone, size, profiles or (), flip), samples, unseen, default)
    gallery = build_gallery(checkpoint, samples, out or DEFAULT_GALLERY)
    _echo_gallery(out or DEFAULT_GALLERY, gallery.samples)


@index.command("erase", epilog="Example: reid index erase galleries/crops anna")
def index_erase(
    folder: Annotated[Path, typer.Argument(help="folder of the gallery")],
    identity: Annotated[str, typer.Argument(help="whose rows to remove")],
) -> None:
    """Remove every row of an identity from a gallery: vectors and records."""
    from reid.retrieval.gallery import Gallery

    gone = Gallery.open(folder).erase(identity)
    if not gone:
        raise DataError(f'{folder}: no row of identity "{identity}"')
    typer.echo(f"{folder}\terased {gone} rows of {identity}")


@commands.command(epilog="Example: reid search query.jpg --camera a1 --cross-camera")
def search(
    image: Annotated[Path, typer.Argument(help="picture to ask with")],
    gallery: Annotated[Path | None, typer.Option(help="folder of the gallery; default: galleries/street")] = None,
    camera: Annotated[str, typer.Option(help="camera that took the picture")] = "",
    modality: Annotated[Modality, typer.Option(help="its modality")] = Modality.VISIBLE,
    domain: Annotated[str, typer.Option(help="what it shows: person, vehicle, ...")] = "person",
    k: Annotated[int, typer.Option(min=1, help="answers")] = 10,
    cross_camera: Annotated[bool, typer.Option("--cross-camera", help="leave out answers of the same camera")] = False,
    answers: Annotated[
        list[Modality] | None, typer.Option(help="modality of the answers; repeatable; default: any")
    ] = None,
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    profiles: ProfileFiles = None,
    unseen: Unseen = None,
    flip: Flip = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Rank a gallery by likeness to one picture.  By default with the network that the gallery was built with."""
    from reid.pipeline import DEFAULT_GALLERY, gallery_checkpoint, load_checkpoint_for, unseen_domains
    from reid.retrieval.gallery import Gallery
    from reid.retrieval.search import search_image

    folder = gallery or DEFAULT_GALLERY
    opened = Gallery.open(folder)
    named = weights or profiles
    if flip and not named:
        raise ConfigError("--flip: the gallery's own network embeds as the gallery was built; leave it out")
    policy = unseen_policy(unseen)
    if unseen is not None and (not named or policy in ("calibrate", "prior")):
        raise ConfigError(
            "--unseen-camera: a gallery's own network does with unknown cameras what it was built with; beside"
            " --weights or --profiles a search knows error, nearest and mixture"
        )
    checkpoint = (
        load_checkpoint_for(weights, backbone, size, profiles or (), flip) if named else gallery_checkpoint(folder)
    )
    check_cameras(checkpoint, unseen)
    checkpoint = checkpoint if unseen is None else checkpoint.with_unseen_camera_policy(policy)
    asked = Sample(image, "", camera, modality, domain, Split.QUERY)
    if checkpoint.unknown_domain is None and unseen_domains(checkpoint, [asked]):
        raise ConfigError(_unknown(folder, checkpoint, asked))
    found = search_image(
        checkpoint,
        opened,
        image,
        camera=camera,
        modality=modality,
        category=domain,
        k=k,
        cross_camera=cross_camera,
        modalities=answers or None,
        categories=[domain],
    )
    rows = [_answer(place, answer.sample, answer.score) for place, answer in enumerate(found, 1)]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        typer.echo("{rank}\t{score:.4f}\t{identity}\t{camera}\t{modality}\t{path}".format(**row))


def _unknown(folder: Path, checkpoint: Checkpoint, asked: Sample) -> str:
    """Why a picture of a camera without statistics cannot be searched for, and what to do."""
    what, known = "/".join(checkpoint.domain_fields), ", ".join(checkpoint.domains)
    unknown = domain_of(asked, checkpoint.domain_fields)
    if "camera" in checkpoint.domain_fields and not asked.camera:
        return f"{folder}: its network has statistics for each {what}; say which with --camera; known: {known}"
    return (
        f'{folder}: its network has no statistics for {what} "{unknown}"; known: {known};'
        ' run "reid calibrate" on its crops and "reid index build --profiles" again, or build with --unseen-camera'
        " nearest or mixture"
    )


def _answer(place: int, sample: Sample, score: float) -> dict[str, Any]:
    return {
        "rank": place,
        "score": score,
        "identity": sample.identity,
        "camera": sample.camera,
        "modality": str(sample.modality),
        "domain": sample.category,
        "path": str(sample.path),
    }


def _echo_gallery(folder: Path, samples: tuple[Sample, ...]) -> None:
    identities = len({(s.category, s.identity) for s in samples})
    cameras = len({s.camera for s in samples})
    typer.echo(f"{folder}\t{len(samples)} images of {identities} identities in {cameras} cameras")
