"""The verbs of ``reid index`` on galleries that Milvus keeps.

Milvus keeps vectors and rows, but no network, so the verbs that embed need its weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from reid.cli.options import for_cameras_of
from reid.errors import ConfigError, DataError
from reid.records import Modality, Sample, Split

if TYPE_CHECKING:
    from reid.models.checkpoint import Checkpoint
    from reid.retrieval.filters import Filter
    from reid.retrieval.search import Answer

ROWS_AT_ONCE = 2000  # that are embedded before they are written


def milvus_uri(folder: Path) -> str | None:
    """Return the address of a gallery in Milvus; None for a folder."""
    from reid.retrieval.stores.milvus_client import is_milvus_uri, whole_uri

    return whole_uri(str(folder)) if is_milvus_uri(str(folder)) else None


def refuse_options(uri: str, **options: object) -> None:
    """Refuse options that mean nothing for a gallery in Milvus."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        raise ConfigError(f"{uri}: Milvus keeps no persons, no images and no list of what was removed;"
                          f" leave {' and '.join(given)} out")  # fmt: skip


def network_of_milvus(
    samples: Sequence[Sample], weights: Path | None, profiles: Sequence[Path] | None, unseen: str | None
) -> Checkpoint:
    """Load the network for a gallery in Milvus, which keeps none."""
    from reid.pipeline import check_weights, load_checkpoint

    check_weights(weights, profiles or ())
    return for_cameras_of(samples, load_checkpoint(weights, None, None, profiles or (), False), unseen)


def add_in_milvus(
    uri: str, samples: Sequence[Sample], more: dict[str, list[str | None]], checkpoint: Checkpoint, as_json: bool
) -> None:
    """Embed the samples that the gallery does not have yet, add them, and say how many there were."""
    from reid.pipeline import progress_bar, workers
    from reid.retrieval.embed import embed
    from reid.retrieval.gallery import Gallery
    from reid.retrieval.growth import AddedRows
    from reid.retrieval.milvus_gallery import MilvusGallery

    gallery = Gallery.open(uri)
    if not isinstance(gallery, MilvusGallery):
        raise ConfigError(f"{uri}: expected the address of a gallery in Milvus")
    gallery.check_fingerprint(checkpoint.fingerprint)
    new = gallery.new_samples([str(sample.path) for sample in samples])
    added = AddedRows(0, len(samples) - len(new))
    with progress_bar("adding to the gallery", len(new)) as progress:
        for start in range(0, len(new), ROWS_AT_ONCE):
            part = new[start : start + ROWS_AT_ONCE]
            embeddings = embed(checkpoint, [samples[i] for i in part], workers=workers(), progress=progress)
            added += gallery.add(embeddings, {name: [texts[i] for i in part] for name, texts in more.items()})
    if as_json:
        typer.echo(json.dumps(vars(added), indent=2))
        return
    typer.echo(f"{uri}\tadded {added.added} rows; {added.known} were there already")


def search_in_milvus(
    uri: str,
    image: Path,
    checkpoint: Checkpoint,
    *,
    camera: str,
    modality: Modality,
    category: str,
    k: int,
    cross_camera: bool,
    answers: Sequence[Modality] | None,
    where: Filter | None,
    one_per: str,
) -> list[Answer]:
    """Return the answers to one image, ranked by their similarity; Milvus evaluates the filters."""
    from reid.retrieval.filters import both, equals, without
    from reid.retrieval.gallery import Gallery
    from reid.retrieval.search import Answer, embed_image

    gallery = Gallery.open(uri)
    query = Sample(image, "", camera, modality, category, Split.QUERY)
    vectors = embed_image(checkpoint, image, camera=camera, modality=modality, category=category)
    chosen = both(
        where,
        equals("category", query.category),
        without("camera", *([camera] if cross_camera and camera else [])),
        equals("modality", *(str(one) for one in answers or ())),
    )
    found = gallery.search(vectors, k, fingerprint=checkpoint.fingerprint, where=chosen, one_per=one_per)
    if not found.counts[0]:
        raise DataError(f"{uri}: no row fits the camera, modality, category and filters of this search")
    return [Answer(row, gallery.samples[row], score) for row, score in found.answers(0)]


def remove_in_milvus(uri: str, chosen: Filter) -> None:
    """Remove the rows that a filter selects."""
    from reid.retrieval.gallery import Gallery

    removed = Gallery.open(uri).remove(chosen, forget=False)
    if not removed:
        raise DataError(f"{uri}: no row fulfils these conditions; nothing was removed")
    typer.echo(f"{uri}\tremoved {removed} rows; their bytes stay until Milvus compacts its files")


def erase_in_milvus(uri: str, identity: str, category: str | None) -> None:
    """Remove the rows of an identity, and ask Milvus to compact its files."""
    from reid.retrieval.gallery import Gallery

    removed = Gallery.open(uri).erase(identity, category)
    if not removed:
        raise DataError(f'{uri}: no row of identity "{identity}"')
    typer.echo(f"{uri}\terased {removed} rows of {identity}; Milvus was asked to compact its files")
