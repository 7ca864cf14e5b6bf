"""One query, asked of every gallery: who answers, and how good the answer is.

Knows the world and its rules; it knows no page and draws nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from reid.app.world import NormalizedGallery, World
from reid.data.images import read_image
from reid.errors import DataError
from reid.evaluation.labels import market_labels
from reid.evaluation.metrics import NoMatchError, market_metrics
from reid.records import FloatArray, Modality, Sample
from reid.retrieval.search import UPLOADED, Answer, embed_image, rows_that_may_answer

NOTHING_FITS = "no picture in the gallery fits these switches; allow another camera, modality or site"
MAX_PIXELS = 25_000_000  # a larger upload would only be shrunk to a thumbnail's size
KEPT = 1024  # pixels of an upload's longer side; it is held in memory as long as the visitor stays


class Verdict(StrEnum):
    """What an answer is worth."""

    RIGHT = "right"
    WRONG = "wrong"
    SAME_CAMERA = "same camera"  # right, but the Market rule leaves it out
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Query:
    """What is asked: a sample of a site, or an uploaded ``picture`` with what its owner says of it."""

    sample: Sample
    site: str
    picture: Image.Image | None = None


@dataclass(frozen=True)
class Switches:
    """Which rows may answer, and how many are shown.  ``site`` "" is any, ``modality`` None is both."""

    cross_camera: bool = True
    modality: Modality | None = None
    site: str = ""
    answers: int = 10


@dataclass(frozen=True)
class QueryOutcome:
    """The answers of one gallery, best first, with their verdicts.

    ``first_right`` is the place of the first right answer (1 is best) and ``average_precision`` 0..1, both
    by the Market rule over all ``rows`` that may answer; None without a right answer among them.
    """

    title: str
    answers: tuple[tuple[Answer, Verdict], ...]
    rows: int
    first_right: int | None
    average_precision: float | None


def judge(query: Sample, answer: Sample) -> Verdict:
    """The Market rule for one pair; a label that is not known is never guessed."""
    if not query.identity or not answer.identity:
        return Verdict.UNKNOWN
    if query.identity != answer.identity:
        return Verdict.WRONG
    same_camera = query.camera == answer.camera if query.camera and answer.camera else query.path == answer.path
    return Verdict.SAME_CAMERA if same_camera else Verdict.RIGHT


def ask(world: World, query: Query, switches: Switches) -> list[QueryOutcome]:
    """The outcome under each way of normalizing that knows this kind of object.

    DataError when none does, or no row may answer.
    """
    norms = [norm for norm in world.norms if query.sample.category in norm.kinds]
    if not norms:
        raise DataError(NOTHING_FITS)
    return [_outcome(world, norm, query, switches) for norm in norms]


def _outcome(world: World, norm: NormalizedGallery, query: Query, switches: Switches) -> QueryOutcome:
    sample = query.sample
    keep = _may_answer(world, norm, sample, switches)
    if not keep.any():
        raise DataError(NOTHING_FITS)
    vector = embed_image(
        norm.checkpoint,
        query.picture or sample.path,
        camera=sample.camera,
        modality=sample.modality,
        category=sample.category,
    )
    ranking = norm.gallery.search(vector, switches.answers, keep=keep, fingerprint=norm.checkpoint.fingerprint)
    answers = [Answer(row, norm.gallery.samples[row], score) for row, score in ranking.answers(0)]
    first, precision = _score(norm, sample, vector, np.flatnonzero(keep))
    judged = tuple((answer, judge(sample, answer.sample)) for answer in answers)
    return QueryOutcome(norm.title, judged, int(np.count_nonzero(keep)), first, precision)


def _may_answer(world: World, norm: NormalizedGallery, sample: Sample, switches: Switches) -> npt.NDArray[np.bool_]:
    """(G,) bool: the rows of the query's kind that the switches allow."""
    keep = rows_that_may_answer(
        norm.gallery.samples,
        other_than_camera=sample.camera if switches.cross_camera else "",
        modalities=None if switches.modality is None else [switches.modality],
        categories=[sample.category],
    )
    if switches.site:
        keep &= np.array([world.site_of[row.path] == switches.site for row in norm.gallery.samples], dtype=np.bool_)
    return keep


def _score(
    norm: NormalizedGallery, sample: Sample, vector: FloatArray, rows: npt.NDArray[np.int64]
) -> tuple[int | None, float | None]:
    """Place of the first right answer and average precision of one query, ``vector`` (1, D)."""
    allowed = norm.rows.select(rows)
    labels = market_labels([sample], allowed.samples)
    try:
        metrics = market_metrics(
            vector,
            allowed.vectors,
            query_identities=labels.query_identities,
            gallery_identities=labels.gallery_identities,
            query_cameras=labels.query_cameras,
            gallery_cameras=labels.gallery_cameras,
        )
    except NoMatchError:
        return None, None
    return int(metrics.first_match[0]), float(metrics.average_precision[0])


def read_upload(path: Path) -> Image.Image:
    """The picture somebody sent, upright and small; DataError in words for them, without our file names."""
    try:
        with Image.open(path) as header:
            width, height = header.size
    except UnidentifiedImageError:
        raise DataError("this file is not a picture in a known format; send a JPEG, PNG, BMP or WebP crop") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError("this picture is damaged or far too large; send a crop of one person or vehicle") from error
    if width * height > MAX_PIXELS:
        raise DataError(f"this picture has {width} x {height} pixels; send a crop of one person or vehicle")
    try:
        picture = read_image(path)
        picture.thumbnail((KEPT, KEPT))
        return picture
    except DataError as error:
        raise DataError(str(error).removeprefix(f"{path}: ").replace(str(path), UPLOADED.name)) from error
