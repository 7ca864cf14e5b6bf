"""Samples and queries as crops that every page can show."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from pathlib import Path

from PIL import Image

from reid.app.gallery_service import kept_thumbnail
from reid.app.presentation import Crop, data_uri
from reid.app.query import Query
from reid.data.images import read_image
from reid.errors import DataError, ReidError
from reid.records import Sample
from reid.retrieval.gallery import Gallery

CACHED_THUMBNAILS = 4096  # some 4 KiB each


@lru_cache(CACHED_THUMBNAILS)
def _thumbnail(path: Path) -> tuple[str, float]:
    return _uri_and_aspect(read_image(path))


def _uri_and_aspect(image: Image.Image) -> tuple[str, float]:
    return data_uri(image), image.width / image.height


NO_IMAGE = Image.new("RGB", (64, 128), "#cbd5e1")  # stands for an image that is not there any more


def crop_of(sample: Sample, site: str, gallery: Gallery | None = None, row: int | None = None) -> Crop:
    """Return the crop of a sample as a page shows it.

    Args:
        sample: The sample.
        site: The name of its site.
        gallery: The gallery of which the sample is a row.
        row: The lasting id of this row.

    Returns:
        The image of the sample; where its file cannot be read, the thumbnail that the gallery keeps, or a grey image.
    """
    try:
        shown = _thumbnail(sample.path)
    except (DataError, OSError):
        kept = None if gallery is None or row is None else kept_image(gallery, row)
        shown = _uri_and_aspect(NO_IMAGE if kept is None else kept)
    return Crop(*shown, sample.identity, sample.camera, str(sample.modality), sample.category, site)


def kept_image(gallery: Gallery, row: int) -> Image.Image | None:
    """Return the thumbnail that a gallery keeps of a row; None where it keeps none that can be read."""
    try:
        content = kept_thumbnail(gallery, row)
        return None if content is None else Image.open(BytesIO(content)).convert("RGB")
    except (ReidError, OSError):
        return None


def crop_of_query(query: Query, gallery: Gallery | None = None) -> Crop:
    """Return the crop of a query, uploaded or not; ``gallery`` is the one of which it may be a row."""
    if not query.uploads:
        return crop_of(query.sample, query.site, gallery, query.row)
    sample = query.sample
    return Crop(
        *_uri_and_aspect(query.uploads[0]), "", sample.camera, str(sample.modality), sample.category, query.site
    )
