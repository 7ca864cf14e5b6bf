"""One picture in, ranked samples out.

Knows a checkpoint, a gallery and which rows may answer; it draws nothing and asks no files but the
picture.
"""

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
from reid.retrieval.gallery import Gallery

UPLOADED = Path("uploaded picture")  # names a picture that is no file, in errors


@dataclass(frozen=True)
class Answer:
    """One place of a ranking: a gallery row, its sample and its similarity, -1..1."""

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
    """Unit vector (1, D) float32 of one picture seen by ``camera`` of ``modality``."""
    path = image if isinstance(image, Path) else UPLOADED
    sample = Sample(path, "", camera, modality, category, Split.QUERY)
    labels = (
        domain_indices([sample], checkpoint.domain_fields, checkpoint.domains, checkpoint.unknown_domain)
        if checkpoint.domain_fields
        else None
    )
    picture = read_image(image) if isinstance(image, Path) else ImageOps.exif_transpose(image).convert("RGB")
    images = checkpoint.transform.normalise(checkpoint.transform.resize(picture)[None])  # (1, 3, H, W)
    vectors: FloatArray = checkpoint.embed(images, labels).cpu().numpy()
    return vectors


def rows_that_may_answer(
    samples: Sequence[Sample],
    *,
    other_than_camera: str = "",
    modalities: Collection[Modality] | None = None,
    categories: Collection[str] | None = None,
) -> npt.NDArray[np.bool_]:
    """(N,) bool: the samples of these modalities and domains (None: any) not seen by that camera ("": none)."""
    return np.array(
        [
            not (other_than_camera and sample.camera == other_than_camera)
            and (modalities is None or sample.modality in modalities)
            and (categories is None or sample.category in categories)
            for sample in samples
        ],
        dtype=np.bool_,
    )


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
) -> list[Answer]:
    """The ``k`` gallery rows nearest to ``image``, best first; fewer where fewer may answer.

    ``camera``, ``modality`` and ``category`` say how the picture was taken and choose its normalization.
    ``cross_camera`` leaves out rows of the same camera (an unknown camera equals none); ``modalities``
    and ``categories`` restrict the answers, None does not.
    """
    vectors = embed_image(checkpoint, image, camera=camera, modality=modality, category=category)
    keep = rows_that_may_answer(
        gallery.samples,
        other_than_camera=camera if cross_camera else "",
        modalities=modalities,
        categories=categories,
    )
    if len(keep) and not keep.any():
        raise GalleryError(f"none of the {len(keep)} gallery rows has the camera, modality and domain asked for")
    ranking = gallery.search(vectors, k, keep=keep, fingerprint=checkpoint.fingerprint)
    return [Answer(row, gallery.samples[row], score) for row, score in ranking.answers(0)]
