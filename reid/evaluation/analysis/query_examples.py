"""Images of queries and of their first answers, for the queries with the best and the worst answers."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reid.data.images import read_image
from reid.evaluation.labels import BoolArray, Labels
from reid.evaluation.ranks import Float64Array
from reid.evaluation.score_blocks import block_size, inner_products, valid_blocks
from reid.records import Embeddings, IntArray, Sample

ANSWERS = 10  # of a query, at most
THUMBNAIL = (96, 160)  # pixels, at most


@dataclass(frozen=True)
class ExampleAnswer:
    """A gallery row at ``rank`` (1 is the best); ``image`` is a ``data:`` address of its image, downscaled."""

    sample: Sample
    rank: int
    score: float
    right: bool
    image: str


@dataclass(frozen=True)
class QueryExample:
    """A query and its first answers without the rows that are left out.

    The first right answer comes last if its rank is beyond the first ``ANSWERS``.
    """

    query: Sample
    image: str
    average_precision: float
    answers: tuple[ExampleAnswer, ...]


def query_examples(
    queries: Embeddings,
    gallery: Embeddings,
    labels: Labels,
    precision: Float64Array,
    rows: IntArray,
    memory: int | None = None,
) -> tuple[QueryExample, ...]:
    """Look up the answers of some queries, and read the images of both.

    Args:
        queries: The queries.
        gallery: The gallery.
        labels: Labels of both.
        precision: Average precision of each query, (Q,) float64.
        rows: Positions of the queries to show, int64.  Of equal scores the wrong answers stand first.
        memory: Bytes of scores to hold at a time.
    """
    if not len(rows):
        return ()
    chosen = labels.select(rows, slice(None))
    size = block_size(len(gallery), memory=memory)
    scores = inner_products(queries.vectors[rows], gallery.vectors, size)
    examples = []
    for block in valid_blocks(scores, chosen, size):
        for i, row in enumerate(rows[block.start : block.start + len(block.scores)]):
            right = np.zeros(len(gallery), np.bool_)
            right[block.rows[block.offsets == i]] = True
            sample = queries.samples[row]
            answers = _first_answers(block.scores[i], right, gallery.samples)
            examples.append(QueryExample(sample, thumbnail(sample.path), float(precision[row]), answers))
    return tuple(examples)


def _first_answers(scores: Float64Array, right: BoolArray, samples: Sequence[Sample]) -> tuple[ExampleAnswer, ...]:
    order = np.lexsort((right, -scores))
    order = order[: np.count_nonzero(scores > -np.inf)]
    first_right = int(np.argmax(right[order]))
    positions = [*range(min(ANSWERS, len(order))), *([first_right] if first_right >= ANSWERS else [])]
    return tuple(
        ExampleAnswer(
            samples[row], position + 1, float(scores[row]), bool(right[row]), thumbnail(samples[row].path)
        )
        for position, row in ((position, int(order[position])) for position in positions)
    )  # fmt: skip


def thumbnail(path: Path) -> str:
    """Return ``data:image/jpeg;base64,...`` of the image at ``path``, at most ``THUMBNAIL`` large."""
    image = read_image(path)
    image.thumbnail(THUMBNAIL)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
