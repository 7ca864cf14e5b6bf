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
from reid.retrieval.cohort_rows import cohort_camera
from reid.retrieval.filters import Filter, rows_where
from reid.retrieval.gallery import Gallery
from reid.retrieval.match_thresholds import NOBODY_RATE, SAME_RATE, MatchVerdict, false_alarm_rate, verdict_of
from reid.retrieval.normalized_ranking import NormalizedRanking
from reid.retrieval.normalized_search import normalized_gallery, search_normalized
from reid.retrieval.row_table import RowTable, SampleRows
from reid.retrieval.score_normalization import NONE, check_score_norm

DEFAULT_SCORE_NORM = "csls"  # docs/scores.md has the measurements that decide
UPLOADED = Path("uploaded image")  # stands for the path of an image in memory, in errors


@dataclass(frozen=True)
class Answer:
    """One answer of a ranking.

    Args:
        row: The gallery row.
        sample: Its sample.
        score: The similarity of both crops in -1..1.
        normalized: The score normalized per pair of cameras, by which answers are then ranked; None where scores are
            ranked as they are.
        match: Whether the answer shows the same person or object; None where this is not known.
    """

    row: int
    sample: Sample
    score: float
    normalized: float | None = None
    match: Match | None = None

    @property
    def verdict(self) -> MatchVerdict | None:
        """Same, undecided or other; None where this is not known."""
        return None if self.match is None else self.match.verdict

    @property
    def false_match_rate(self) -> float | None:
        """The share of pairs of different people, of these two cameras, that are as similar; None where not known."""
        return None if self.match is None else self.match.false_match_rate


@dataclass(frozen=True)
class Match:
    """Whether an answer shows the same person or object as the query.

    Args:
        verdict: Same, undecided or other.
        false_match_rate: The share of pairs of different people, of these two cameras, that are as similar.
        false_alarm_rate: How often a search for somebody who is not in the gallery gets an answer as good or better.
    """

    verdict: MatchVerdict
    false_match_rate: float
    false_alarm_rate: float


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
    size = (checkpoint.transform.width, checkpoint.transform.height)
    decoder = checkpoint.execution.decoder
    upright = (
        read_image(image, decoder, size) if isinstance(image, Path) else ImageOps.exif_transpose(image).convert("RGB")
    )
    vectors: FloatArray = checkpoint.embed(checkpoint.transform.resize(upright)[None], domain).cpu().numpy()
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
    score_norm: str = DEFAULT_SCORE_NORM,
    same_rate: float = SAME_RATE,
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
        score_norm: "csls" or "snorm" ranks by scores that are normalized per pair of cameras, and judges each answer,
            where the gallery has enough crops of the category; "none" ranks by plain scores.
        same_rate: The highest false-match rate of the verdict "same", above 0 and at most that of "undecided".
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
    query = Sample(image if isinstance(image, Path) else UPLOADED, "", camera, modality, category, Split.QUERY)
    return search_vector(
        gallery,
        vectors,
        query,
        k,
        fingerprint=checkpoint.fingerprint,
        keep=keep,
        score_norm=score_norm,
        same_rate=same_rate,
        one_per=one_per,
    )


def search_vector(
    gallery: Gallery,
    vector: FloatArray,
    query: Sample,
    k: int = 10,
    *,
    fingerprint: str,
    keep: npt.NDArray[np.bool_] | None = None,
    score_norm: str = DEFAULT_SCORE_NORM,
    same_rate: float = SAME_RATE,
    one_per: str = "",
) -> list[Answer]:
    """Find the gallery rows that are nearest to an embedding, each with its score, verdict and false-match rate.

    The command line, the application and the HTTP interface search with this function.  It uses the cohort statistics
    and the match thresholds that the gallery keeps, see :mod:`reid.retrieval.kept_cohorts`.

    Args:
        gallery: The gallery.
        vector: (1, D) float32 of unit length, of the network that made the gallery.
        query: Names the camera, modality and category of the query; its path is not read.
        k: The number of answers.
        fingerprint: The fingerprint of the network that made ``vector``.
        keep: (G,) bool, which rows may answer, as :func:`rows_that_may_answer` finds them; None allows all.
        score_norm: "csls" or "snorm" ranks by scores that are normalized per pair of cameras, and judges each answer,
            where the gallery has enough crops of the category; "none" ranks by plain scores and judges nothing.
        same_rate: The highest false-match rate of the verdict "same", above 0 and at most that of "undecided".
        one_per: A column such as "identity"; only the best answer of each of its labels is returned.

    Returns:
        At most ``k`` answers, best first.  ``score`` is the similarity; ``verdict`` and ``false_match_rate`` are None
        where answers are not judged.

    Raises:
        GalleryError: Another network made the gallery, or the gallery is empty.
        DataError: The vector, ``k`` or ``keep`` has a wrong type or shape, or ``score_norm`` is unknown.

    Example:
        >>> from reid.records import Embeddings
        >>> samples = (Sample(Path("1.jpg"), "anna", "door"), Sample(Path("2.jpg"), "ben", "hall"))
        >>> gallery = Gallery.build(Embeddings(samples, np.eye(2, dtype=np.float32), "f00d"))
        >>> vector = np.float32([[0.6, 0.8]])
        >>> answers = search_vector(gallery, vector, Sample(Path("query.jpg"), camera="door"), 1, fingerprint="f00d")
        >>> [(answer.sample.identity, round(answer.score, 2), answer.verdict) for answer in answers]
        [('ben', 0.8, None)]
    """
    found = None
    if check_score_norm(score_norm) != NONE:
        found = search_normalized(
            gallery, vector, [query], k, fingerprint=fingerprint, keep=keep, method=score_norm, one_per=one_per
        )
    if found is None:
        ranking = gallery.search(vector, k, keep=keep, fingerprint=fingerprint, one_per=one_per)
        return [Answer(row, gallery.samples[row], score) for row, score in ranking.answers(0)]
    rows = len(gallery) if keep is None else int(np.count_nonzero(keep))
    return judge_answers(gallery, found, query, rows, score_norm, same_rate)


def nobody_found(answers: Sequence[Answer]) -> bool:
    """Return whether nobody in the gallery is likely to be the query: its best answer is one that strangers get.

    Args:
        answers: The answers to one query, best first.

    Returns:
        Whether the false-alarm rate of the best answer is above ``NOBODY_RATE``; false where answers are not judged.
    """
    return bool(answers) and answers[0].match is not None and answers[0].match.false_alarm_rate > NOBODY_RATE


def judge_answers(
    gallery: Gallery, found: NormalizedRanking, query: Sample, rows: int, method: str, same_rate: float
) -> list[Answer]:
    """Return the answers to one query with their verdicts; ``rows`` may answer."""
    own = cohort_camera(query)
    thresholds = normalized_gallery(gallery, method).thresholds([own])
    answers = []
    for position, (row, score) in enumerate(found.ranking.answers(0)):
        sample = gallery.samples[row]
        similarity = float(found.similarities[0, position])
        rate = thresholds.false_match_rate(similarity, own, cohort_camera(sample))
        known = not np.isnan(rate)
        match = Match(verdict_of(rate, same_rate), rate, false_alarm_rate(rate, rows)) if known else None
        answers.append(Answer(row, sample, similarity, score, match))
    return answers
