"""Samples as crops that a page can show.  Knows files and nothing else; every page uses it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from PIL import Image

from reid.app.presentation import Crop, data_uri
from reid.app.query import Query
from reid.data.images import read_image
from reid.records import Sample

REMEMBERED = 4096  # thumbnails, some 4 KiB each


@lru_cache(REMEMBERED)
def _thumbnail(path: Path) -> tuple[str, float]:
    return _picture(read_image(path))


def _picture(image: Image.Image) -> tuple[str, float]:
    return data_uri(image), image.width / image.height


def crop_of(sample: Sample, site: str) -> Crop:
    """The crop of a data set's sample."""
    return Crop(*_thumbnail(sample.path), sample.identity, sample.camera, str(sample.modality), sample.category, site)


def crop_of_query(query: Query) -> Crop:
    """The crop of a query, uploaded or not."""
    if query.picture is None:
        return crop_of(query.sample, query.site)
    sample = query.sample
    return Crop(*_picture(query.picture), "", sample.camera, str(sample.modality), sample.category, query.site)
