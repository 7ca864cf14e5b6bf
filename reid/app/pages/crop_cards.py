"""Samples and queries as crops that every page can show."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from PIL import Image

from reid.app.presentation import Crop, data_uri
from reid.app.query import Query
from reid.data.images import read_image
from reid.errors import DataError
from reid.records import Sample

CACHED_THUMBNAILS = 4096  # some 4 KiB each


@lru_cache(CACHED_THUMBNAILS)
def _thumbnail(path: Path) -> tuple[str, float]:
    return _uri_and_aspect(read_image(path))


def _uri_and_aspect(image: Image.Image) -> tuple[str, float]:
    return data_uri(image), image.width / image.height


NO_IMAGE = Image.new("RGB", (64, 128), "#cbd5e1")  # stands for an image that is not there any more


def crop_of(sample: Sample, site: str) -> Crop:
    """Return the crop of a sample of the site named ``site``; a grey image where its own cannot be read."""
    try:
        shown = _thumbnail(sample.path)
    except (DataError, OSError):
        shown = _uri_and_aspect(NO_IMAGE)
    return Crop(*shown, sample.identity, sample.camera, str(sample.modality), sample.category, site)


def crop_of_query(query: Query) -> Crop:
    """Return the crop of a query, uploaded or not; DataError when its image cannot be read."""
    if not query.uploads:
        return crop_of(query.sample, query.site)
    sample = query.sample
    return Crop(
        *_uri_and_aspect(query.uploads[0]), "", sample.camera, str(sample.modality), sample.category, query.site
    )
