"""Search a gallery with one image."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from reid.data.images import read_image
from reid.data.loading import domain_indices
from reid.errors import GalleryError
from reid.models.checkpoint import Checkpoint
from reid.records import FloatArray, Modality, Sample, Split
from reid.retrieval.filters import Filter, rows_where
from reid.retrieval.gallery import Gallery
from reid.retrieval.row_table import RowTable, SampleRows

UPLOADED = Path("uploaded image")  # stands for the path of an image in memory, in errors


@dataclass(frozen=True)
class Answer:
    """One answer of a ranking: a gallery row, its sample and its score, a similarity in -1..1."""

    row: int
    sample: Sample
    score: float


def embed_image(
    checkpoint: Checkpoint,
    image: Image.Image | Path,
    *,
    camera: str = "",
    modality: Modality = Modality.VISIBLE,
    category: str = "person",
) -> FloatArray:
    """Embed one image.

    Args:
        checkpoint: The network.
        image: An image in memory, or the path of a file.
        camera: The camera that took the image; "" when unknown.
        modality: The modality of the camera.
        category: What the image shows.

    Returns:
        (1, D) float32 of unit length.

    Raises:
        DataError: The file cannot be read.
        ConditionError: The network has no statistics for the domain of the image.
    """
    path = image if isinstance(image, Path) else UPLOADED
    sample = Sample(path, "", camera, modality, category, Split.QUERY)
    domain = (
        domain_indices([sample], checkpoint.domain_fields, checkpoint.domains, checkpoint.unknown_domain)
        if checkpoint.domain_fields
        else None
    )
    upright = read_image(image) if isinstance(image, Path) else ImageOps.exif_transpose(image).convert("RGB")
    images = checkpoint.transform.normalise(checkpoint.transform.resize(upright)[None])  # (1, 3, H, W)
    vectors: FloatArray = checkpoint.embed(images, domain).cpu().numpy()
    return vectors


def rows_that_may_answer(
    samples: Sequence[Sample],
    *,
    other_than_camera: str = "",
    modalities: Collection[Modality] | None = None,
    categories: Collection[str] | None = None,
) -> npt.NDArray[np.bool_]:
    """Say which gallery rows may answer a query.

    Args:
        samples: The samples of the gallery.
        other_than_camera: Leave out the rows of this camera; "" leaves out none.
        modalities: Allow these modalities only; None allows all.
        categories: Allow these categories only; None allows all.

    Returns:
        (N,) bool, one value for each sample.

    Example:
        >>> gallery = [Sample(Path("1.jpg"), camera="door"), Sample(Path("2.jpg"), camera="hall")]
        >>> rows_that_may_answer(gallery, other_than_camera="door").tolist()
        [False, True]
    """
    if isinstance(samples, SampleRows):
        return _rows_of_table(samples.table, other_than_camera, modalities, categories)
    return np.array(
        [
            not (other_than_camera and sample.camera == other_than_camera)
            and (modalities is None or sample.modality in modalities)
            and (categories is None or sample.category in categories)
            for sample in samples
        ],
        dtype=np.bool_,
    )


def _rows_of_table(
    table: RowTable, camera: str, modalities: Collection[Modality] | None, categories: Collection[str] | None
) -> npt.NDArray[np.bool_]:
    """Say which rows of a table may answer, label by label instead of row by row."""
    keep = np.ones(len(table), np.bool_)
    for name, allowed in (("modality", modalities), ("category", categories)):
        if allowed is not None:
            keep &= _rows_with(table, name, {str(value) for value in allowed})
    return keep & ~_rows_with(table, "camera", {camera}) if camera else keep


def _rows_with(table: RowTable, name: str, allowed: Collection[str]) -> npt.NDArray[np.bool_]:
    codes, words = table.codes(name)
    flags = np.array([word in allowed for word in words], np.bool_)
    return flags[codes] if len(codes) else np.zeros(0, np.bool_)


def search_image(
    checkpoint: Checkpoint,
    gallery: Gallery,
    image: Image.Image | Path,
    *,
    camera: str = "",
    modality: Modality = Modality.VISIBLE,
    category: str = "person",
    k: int = 10,
    cross_camera: bool = False,
    modalities: Collection[Modality] | None = None,
    categories: Collection[str] | None = None,
    where: Filter | None = None,
    one_per: str = "",
) -> list[Answer]:
    """Find the gallery rows that are nearest to an image.

    Args:
        checkpoint: The network that made the gallery.
        gallery: The gallery.
        image: An image in memory, or the path of a file.
        camera: The camera that took the image; "" when unknown. It chooses the normalization statistics, as do
            ``modality`` and ``category``.
        modality: The modality of the camera.
        category: What the image shows.
        k: The number of answers.
        cross_camera: Leave out the rows of the same camera; an unknown camera equals no other.
        modalities: Allow answers of these modalities only; None allows all.
        categories: Allow answers of these categories only; None allows all.
        where: A further filter, see :mod:`reid.retrieval.filters`; None allows all.
        one_per: A column such as "identity"; only the best answer of each of its labels is returned.

    Returns:
        At most ``k`` answers, best first; fewer where fewer rows may answer.

    Raises:
        DataError: The file cannot be read.
        ConditionError: The network has no statistics for the domain of the image.
        GalleryError: No row may answer, or another network made the gallery.
    """
    vectors = embed_image(checkpoint, image, camera=camera, modality=modality, category=category)
    keep = rows_that_may_answer(
        gallery.samples,
        other_than_camera=camera if cross_camera else "",
        modalities=modalities,
        categories=categories,
    )
    if where is not None:
        keep &= rows_where(where, gallery.table)
    if len(keep) and not keep.any():
        what = "the filters of this search" if where is not None else "the camera, modality and category of this search"
        raise GalleryError(f"none of the {len(keep)} gallery rows fits {what}")
    ranking = gallery.search(vectors, k, keep=keep, fingerprint=checkpoint.fingerprint, one_per=one_per)
    return [Answer(row, gallery.samples[row], score) for row, score in ranking.answers(0)]
