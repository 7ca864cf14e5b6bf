"""Search for one query in every gallery of the application, and judge whether each answer is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from reid.app.served_data import ServedData, ServedGallery
from reid.data.images import IMAGE_FORMATS, decode_image
from reid.errors import DataError
from reid.evaluation.labels import market_labels
from reid.evaluation.metrics import NoMatchError, vector_metrics
from reid.records import Embeddings, FloatArray, Modality, Sample
from reid.retrieval.search import UPLOADED, Answer, embed_image, rows_that_may_answer

NO_ROW_MAY_ANSWER = "no crop in the gallery fits these options; allow another camera, modality or site"
MAX_PIXELS = 25_000_000  # a larger upload would only be shrunk to the size of a thumbnail
MAX_DEEP_PIXELS = 5_000_000  # of a 16-bit image, which takes more memory for each pixel while it is decoded
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
LONGEST_SIDE = 1024  # pixels of an upload, which stays in memory as long as the visitor stays


class Verdict(StrEnum):
    """How an answer counts."""

    RIGHT = "right"
    WRONG = "wrong"
    SAME_CAMERA = "same camera"  # it shows the right identity, but the Market rule leaves it out
    UNKNOWN = "unknown"  # the identity of the query or of the answer is not known


@dataclass(frozen=True)
class Query:
    """A sample to search for.

    Args:
        sample: A sample of a site, or the labels that a visitor gives to an upload.
        site: The name of the site that the query belongs to.
        upload: The uploaded image; None for a sample of a site.
    """

    sample: Sample
    site: str
    upload: Image.Image | None = None


@dataclass(frozen=True)
class SearchOptions:
    """Which gallery rows may answer, and how many answers are shown.

    Args:
        cross_camera: Leave out the rows of the query's own camera.
        modality: The modality of the answers; None allows both.
        site: The name of the site of the answers; "" allows every site.
        answers: How many answers are shown.
    """

    cross_camera: bool = True
    modality: Modality | None = None
    site: str = ""
    answers: int = 10


@dataclass(frozen=True)
class QueryOutcome:
    """The answers of one gallery to one query.

    Args:
        title: The title of the gallery.
        answers: The shown answers with their verdicts, best first.
        rows: The number of gallery rows that may answer.
        first_right: The rank of the first right answer among all these rows, by the Market rule; 1 is the best, and
            None means that there is no right answer.
        average_precision: The average precision (0..1) over all these rows; None without a right answer.
    """

    title: str
    answers: tuple[tuple[Answer, Verdict], ...]
    rows: int
    first_right: int | None
    average_precision: float | None


def answer_query(data: ServedData, query: Query, options: SearchOptions) -> list[QueryOutcome]:
    """Search for a query in every gallery whose network was trained on the category of the query.

    Args:
        data: What the application serves.
        query: The query.
        options: Which rows may answer.

    Returns:
        One outcome for each of these galleries, in the order of ``data.galleries``.

    Raises:
        DataError: No network was trained on the category, no row may answer, or the image cannot be read.
    """
    galleries = [served for served in data.galleries if query.sample.category in served.categories]
    if not galleries:
        raise DataError(NO_ROW_MAY_ANSWER)
    return [_search_gallery(data, served, query, options) for served in galleries]


def _search_gallery(data: ServedData, served: ServedGallery, query: Query, options: SearchOptions) -> QueryOutcome:
    sample = query.sample
    keep = _rows_for(data, served, sample, options)
    if not keep.any():
        raise DataError(NO_ROW_MAY_ANSWER)
    vector = embed_image(
        served.checkpoint,
        query.upload or sample.path,
        camera=sample.camera,
        modality=sample.modality,
        category=sample.category,
    )
    ranking = served.gallery.search(vector, options.answers, keep=keep, fingerprint=served.checkpoint.fingerprint)
    answers = [Answer(row, served.gallery.samples[row], score) for row, score in ranking.answers(0)]
    allowed = served.embeddings.select(keep)
    verdicts = dict(zip(np.flatnonzero(keep).tolist(), judge_answers(sample, allowed.samples), strict=True))
    first_right, average_precision = _score_query(sample, vector, allowed)
    judged = tuple((answer, verdicts[answer.row]) for answer in answers)
    return QueryOutcome(served.title, judged, len(allowed), first_right, average_precision)


def _rows_for(data: ServedData, served: ServedGallery, sample: Sample, options: SearchOptions) -> npt.NDArray[np.bool_]:
    """Return (G,) bool: the rows of the query's category that the options allow."""
    keep = rows_that_may_answer(
        served.gallery.samples,
        other_than_camera=sample.camera if options.cross_camera else "",
        modalities=None if options.modality is None else [options.modality],
        categories=[sample.category],
    )
    if options.site:
        keep &= np.array([data.site_of.get(row.path) == options.site for row in served.gallery.samples], dtype=np.bool_)
    return keep


def judge_answers(query: Sample, answers: Sequence[Sample]) -> list[Verdict]:
    """Judge each answer to a query by the Market rule of :mod:`reid.evaluation.labels`.

    Args:
        query: The query.
        answers: The gallery samples that answer it.

    Returns:
        One verdict for each answer; ``Verdict.UNKNOWN`` where the identity of either sample is not known.

    Example:
        >>> from pathlib import Path
        >>> query = Sample(Path("1.jpg"), "anna", "door")
        >>> answers = [Sample(Path("2.jpg"), "anna", "hall"), Sample(Path("3.jpg"), "anna", "door")]
        >>> [str(verdict) for verdict in judge_answers(query, answers)]
        ['right', 'same camera']
    """
    labels = market_labels([query], answers)
    _, rows, left_out = labels.same_identity(0, 1)
    verdicts = [Verdict.WRONG if query.identity and answer.identity else Verdict.UNKNOWN for answer in answers]
    for row, is_left_out in zip(rows.tolist(), left_out.tolist(), strict=True):
        verdicts[row] = Verdict.SAME_CAMERA if is_left_out else Verdict.RIGHT
    for row in labels.same_files_of(0, 1)[:, 1].tolist():
        verdicts[row] = Verdict.SAME_CAMERA  # the query itself, whatever its label says
    return verdicts


def _score_query(query: Sample, vector: FloatArray, allowed: Embeddings) -> tuple[int | None, float | None]:
    """Return the rank of the first right answer and the average precision of one query; ``vector`` is (1, D)."""
    labels = market_labels([query], allowed.samples)
    try:
        metrics = vector_metrics(vector, allowed.vectors, labels)
    except NoMatchError:
        return None, None
    return int(metrics.first_match[0]), float(metrics.average_precision[0])


def read_upload(content: bytes) -> Image.Image:
    """Read an uploaded image, turned upright and not larger than needed.

    Args:
        content: The content of the uploaded file.

    Returns:
        An RGB image; its longer side has at most ``LONGEST_SIDE`` pixels.

    Raises:
        DataError: The file is no image, is damaged or is far too large. The message names no file of this machine.
    """
    try:
        with Image.open(BytesIO(content), formats=IMAGE_FORMATS) as header:
            width, height = header.size
            limit = MAX_PIXELS if header.mode in EIGHT_BIT_MODES else MAX_DEEP_PIXELS
    except UnidentifiedImageError:
        raise DataError("this file is not an image in a known format; send a JPEG, PNG, BMP or WebP crop") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError("this image is damaged or far too large; send a crop of one person or vehicle") from error
    if width * height > limit:
        raise DataError(f"this image has {width} x {height} pixels; send a crop of one person or vehicle")
    try:
        image = decode_image(content, UPLOADED)
    except DataError as error:
        raise DataError(str(error).removeprefix(f"{UPLOADED}: ")) from error
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return image
