"""Search for one query in the galleries of the application, and judge the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from PIL import Image

from reid.app.known_rows import rows_with
from reid.app.rankings import RANKINGS
from reid.app.served_data import ServedData, ServedGallery
from reid.errors import ConfigError, DataError, unknown_name
from reid.evaluation.labels import market_labels
from reid.evaluation.metrics import NoMatchError, vector_metrics
from reid.models.checkpoint import Checkpoint
from reid.pipeline import unknown_domains
from reid.records import FloatArray, Modality, Sample, UnseenCameraPolicy
from reid.retrieval.filters import BoolArray, ColumnCondition, Filter, both, equals, rows_where, time_of, without
from reid.retrieval.gallery import Gallery
from reid.retrieval.person_search import PERSON_COLUMN, embed_together, label_persons
from reid.retrieval.persons.person_files import has_persons
from reid.retrieval.search import Answer, rows_that_may_answer

NO_ROW_MAY_ANSWER = "no crop in the gallery fits these options; allow another camera, modality or site"
NO_NETWORK = (
    "this gallery holds no network, so only its own crops can be searched for; start the page with the weights that it"
    " was built with (--weights)"
)
NEAREST, MIXTURE = str(UnseenCameraPolicy.NEAREST), str(UnseenCameraPolicy.MIXTURE)
OWN, POOLED = "own", "pooled"
SCORED_ROWS = 20_000  # a query is scored against all right answers in galleries of at most so many rows


_sites: WeakKeyDictionary[Gallery, npt.NDArray[np.str_]] = WeakKeyDictionary()


class Verdict(StrEnum):
    """How an answer counts by the labels."""

    RIGHT = "right"
    WRONG = "wrong"
    SAME_CAMERA = "same camera"  # it shows the right identity, but the Market rule leaves it out
    UNKNOWN = "unknown"  # the identity of the query or of the answer is not known


@dataclass(frozen=True)
class Query:
    """What is searched for.

    Args:
        sample: A sample of a site, or the labels that a visitor gives to an upload.
        site: The name of the site that the query belongs to.
        uploads: Uploaded images of one person or object; without any, the sample's own image is searched for.
        row: The id of its row in the main gallery; None where it is no row of it.
        more_rows: The ids of further rows of the main gallery that are part of this query.
        policy: What to do with an unknown camera: "nearest" or "mixture"; "" leaves it to the network.
    """

    sample: Sample
    site: str
    uploads: tuple[Image.Image, ...] = ()
    row: int | None = None
    policy: str = ""
    more_rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class SearchOptions:
    """Which gallery rows may answer, how they are ranked, and how many answers are shown.

    Args:
        cross_camera: Leave out the rows of the query's own camera.
        modality: The modality of the answers; None allows both.
        site: The name of the site of the answers; "" allows every site.
        answers: How many answers are shown.
        cameras: Only these cameras may answer; without any, every camera may.
        without_cameras: These cameras may not answer.
        after: Only crops of this time or later may answer (ISO 8601); "" allows all.
        before: Only crops from before this time may answer (ISO 8601); "" allows all.
        ranking: A key of :data:`reid.app.rankings.RANKINGS`.
        one_per: "person" or "track" shows only the best answer of each; "" shows all.
        compare: Search also in the galleries that are only shown for a comparison.
        known: A key of :data:`reid.app.known_rows.KNOWN_CHOICES`: who may answer.
    """

    cross_camera: bool = True
    modality: Modality | None = None
    site: str = ""
    answers: int = 10
    cameras: tuple[str, ...] = ()
    without_cameras: tuple[str, ...] = ()
    after: str = ""
    before: str = ""
    ranking: str = "plain"
    one_per: str = ""
    compare: bool = True
    known: str = ""

    @property
    def filter(self) -> Filter | None:
        """The filter of cameras and times; None where there is none."""
        times = [("after", ">=", self.after), ("before", "<", self.before)]
        for _, _, text in times:
            if text:
                time_of(text)
        return both(
            equals("camera", *self.cameras),
            without("camera", *self.without_cameras),
            *(ColumnCondition("time", operator, (text,)) for _, operator, text in times if text),
        )


@dataclass(frozen=True)
class QueryOutcome:
    """The answers of one gallery to one query.

    Args:
        title: The title of the gallery.
        answers: The shown answers with their verdicts, best first.
        rows: The number of gallery rows that may answer.
        first_right: The rank of the first right answer among all these rows, by the Market rule, which does not count
            answers of the query's own camera; 1 is the best, and None means that there is none or it is not known.
        average_precision: The average precision (0..1) over all these rows; None without a right answer.
        row_ids: The lasting ids of the rows of the answers.
        is_compared: Whether the gallery is only shown for a comparison.
        notes: What the visitor should know about this ranking, a sentence each.
    """

    title: str
    answers: tuple[tuple[Answer, Verdict], ...]
    rows: int
    first_right: int | None
    average_precision: float | None
    row_ids: tuple[int, ...] = ()
    is_compared: bool = False
    notes: tuple[str, ...] = field(default=())

    @property
    def first_right_shown(self) -> int | None:
        """The position of the first right answer among those that are shown, with all that are shown counted."""
        verdicts = [verdict for _, verdict in self.answers]
        return verdicts.index(Verdict.RIGHT) + 1 if Verdict.RIGHT in verdicts else None


def answer_query(data: ServedData, query: Query, options: SearchOptions) -> list[QueryOutcome]:
    """Search for a query in every gallery that knows the category of the query.

    Args:
        data: What the application serves.
        query: The query.
        options: Which rows may answer, and how they are ranked.

    Returns:
        One outcome for each of these galleries, in the order of ``data.galleries``.

    Raises:
        DataError: No gallery knows the category, no row may answer, a time is wrong, or the image cannot be read.
    """
    every, main = data.galleries, data.main
    asked = [one for one in every if options.compare or not one.is_compared]
    galleries = [served for served in asked if query.sample.category in served.categories]
    if not galleries:
        raise DataError(NO_ROW_MAY_ANSWER)
    return [_search_gallery(data, served, query, options, served is main) for served in galleries]


def _search_gallery(
    data: ServedData, served: ServedGallery, query: Query, options: SearchOptions, is_main: bool
) -> QueryOutcome:
    gallery = served.gallery
    keep = _rows_for(data, served, query.sample, options)
    if is_main and query.row is not None:
        keep &= ~np.isin(gallery.table.row_ids, (query.row, *query.more_rows))  # a crop is no answer to itself
    if not keep.any():
        raise DataError(NO_ROW_MAY_ANSWER)
    if options.ranking not in RANKINGS:
        raise ConfigError(unknown_name("ranking", options.ranking, list(RANKINGS)))
    vector = vector_of(served, query, is_main)
    one_per = _group_column(served, options.one_per)
    ranked = RANKINGS[options.ranking](gallery, vector, query.sample, keep, options.answers, one_per)
    shown = [answer.row for answer in ranked.answers]
    verdicts = judge_answers(query.sample, [answer.sample for answer in ranked.answers])
    first_right, average_precision = None, None
    if query.sample.identity and len(keep) <= SCORED_ROWS:
        if options.ranking == "plain":
            allowed = gallery.table.samples_at(np.flatnonzero(keep))
            first_right, average_precision = _score_plain(
                query.sample, vector, allowed, gallery.rows.vectors_at(np.flatnonzero(keep))
            )
        else:
            counted = [verdict for verdict in verdicts if verdict is not Verdict.SAME_CAMERA]
            first_right = counted.index(Verdict.RIGHT) + 1 if Verdict.RIGHT in counted else None
    return QueryOutcome(
        served.title, tuple(zip(ranked.answers, verdicts, strict=True)), int(np.count_nonzero(keep)), first_right,
        average_precision, tuple(gallery.table.row_ids[shown].tolist()), served.is_compared, ranked.notes,
    )  # fmt: skip


def _group_column(served: ServedGallery, name: str) -> str:
    """Return the column whose labels answer once each; "" where the gallery has no such labels."""
    gallery = served.gallery
    if name == PERSON_COLUMN and name not in gallery.table.column_names and has_persons(served.folder):
        label_persons(gallery)
    return name if name in gallery.table.column_names else ""


def vector_of(served: ServedGallery, query: Query, is_main: bool) -> FloatArray:
    """Return the embedding (1, D) of a query: the one that is stored for it, or one that is computed now.

    Raises:
        DataError: The gallery holds no network, or the image cannot be read.
        ConditionError: The network has no statistics for the camera.
    """
    if not query.uploads:
        stored = _stored_vector(served, query, is_main)
        if stored is not None:
            return stored
    if served.checkpoint is None:
        raise DataError(NO_NETWORK)
    checkpoint, sample = served.checkpoint, query.sample
    assumed = assumption_about(checkpoint, query)
    if assumed in (NEAREST, MIXTURE) and assumed != checkpoint.unseen_camera_policy:
        checkpoint = checkpoint.with_unseen_camera_policy(assumed)
    return embed_together(
        checkpoint, query.uploads or [sample.path], [sample.camera], modality=sample.modality, category=sample.category
    )


def assumption_about(checkpoint: Checkpoint, query: Query) -> str:
    """Return with which statistics a network embeds the images of a query.

    Args:
        checkpoint: The network.
        query: The query.

    Returns:
        ``POOLED`` where the network has one set for all cameras, ``OWN`` for those of the query's camera, and for an
        unknown camera ``NEAREST`` or ``MIXTURE``; a named camera that the network refuses is ``OWN`` as well.
    """
    if "camera" not in checkpoint.domain_fields:
        return POOLED
    if not query.sample.camera and query.policy:
        return query.policy
    if not unknown_domains(checkpoint, [query.sample]):
        return OWN
    if checkpoint.unknown_domain is not None:
        return str(checkpoint.unseen_camera_policy)
    return OWN if query.sample.camera else MIXTURE


def _stored_vector(served: ServedGallery, query: Query, is_main: bool) -> FloatArray | None:
    if query.row is not None and is_main:
        ids = served.gallery.table.row_ids
        row = int(np.searchsorted(ids, query.row))
        if row < len(ids) and ids[row] == query.row:
            rows = np.flatnonzero(np.isin(ids, (query.row, *query.more_rows)))
            return mean_vector(served.gallery.rows.vectors_at(rows))
    position = served.query_rows.get(query.sample)
    return None if position is None or served.queries is None else served.queries.vectors[position : position + 1]


def mean_vector(vectors: FloatArray) -> FloatArray:
    """Return the mean (1, D) of vectors (N, D) of one person or object, of unit length.

    Example:
        >>> mean_vector(np.float32([[1, 0], [0, 1]])).astype(float).round(2).tolist()
        [[0.71, 0.71]]
    """
    if len(vectors) == 1:
        return vectors
    mean = vectors.mean(axis=0, keepdims=True)
    found: FloatArray = (mean / max(float(np.linalg.norm(mean)), 1e-6)).astype(np.float32)
    return found


def _rows_for(data: ServedData, served: ServedGallery, sample: Sample, options: SearchOptions) -> BoolArray:
    """Return (G,) bool: the rows of the query's category that the options allow."""
    table = served.gallery.table
    keep = rows_that_may_answer(
        table.samples,
        other_than_camera=sample.camera if options.cross_camera else "",
        modalities=None if options.modality is None else [options.modality],
        categories=[sample.category],
    )
    if options.site and data.has_several_sites:
        keep &= np.isin(_sites_of(data, served), (options.site, ""))
    if options.known:
        keep &= rows_with(served, options.known)
    wanted = options.filter
    return keep if wanted is None else keep & rows_where(wanted, table)


def _sites_of(data: ServedData, served: ServedGallery) -> npt.NDArray[np.str_]:
    """Return the name of the site of each row (G,), once for each state of a gallery."""
    gallery = served.gallery
    known = _sites.get(gallery)
    if known is None or len(known) != len(gallery):
        known = _sites[gallery] = np.array([data.site_of(sample) for sample in gallery.table.samples], np.str_)
    return known


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


def _score_plain(
    query: Sample, vector: FloatArray, allowed: Sequence[Sample], vectors: FloatArray
) -> tuple[int | None, float | None]:
    """Return the rank of the first right answer and the average precision of one query; ``vector`` is (1, D)."""
    labels = market_labels([query], allowed)
    try:
        metrics = vector_metrics(vector, vectors, labels)
    except NoMatchError:
        return None, None
    return int(metrics.first_match[0]), float(metrics.average_precision[0])


def with_labels(query: Query, camera: str, modality: Modality, category: str) -> Query:
    """Return an uploaded query with other labels."""
    return replace(query, sample=replace(query.sample, camera=camera, modality=modality, category=category))
