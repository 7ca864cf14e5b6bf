"""Which gallery rows may answer which query, applied to blocks of scores.

The Market rule (``rules``), and where a protocol says so every row of the query's own place is left
out too (SYSU-MM01, whose second and third camera look at one room).  Knows labels and score arrays,
no vectors and no metrics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from reid.errors import DataError
from reid.evaluation.labels import Judgement, check_labels, judge
from reid.evaluation.score_blocks import Vectors
from reid.records import IntArray

Labels = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Answers:
    """The rule for Q queries and G gallery rows; labels are arrays (Q,) and (G,)."""

    judgement: Judgement
    query_identities: Labels
    gallery_identities: Labels
    query_locations: Labels | None = None
    gallery_locations: Labels | None = None

    @property
    def queries(self) -> int:
        return len(self.query_identities)

    @property
    def gallery(self) -> int:
        return len(self.gallery_identities)

    def apply(self, scores: Vectors, start: int) -> tuple[IntArray, IntArray]:
        """Give rows left out the score -inf in ``scores`` (B, G) of the queries from ``start`` on.

        Returns the pairs of one identity, (query - start, gallery row), both (P,), sorted by query.
        """
        offsets, rows, left_out = self.judgement.same_identity(start, start + len(scores))
        scores[offsets[left_out], rows[left_out]] = -np.inf
        if self.query_locations is not None and self.gallery_locations is not None:
            asked = self.query_locations[start : start + len(scores)]
            for place in np.unique(asked):
                scores[np.ix_(asked == place, self.gallery_locations == place)] = -np.inf
        return offsets, rows


def answers_to(
    queries: int,
    gallery: int,
    *,
    query_identities: npt.ArrayLike,
    gallery_identities: npt.ArrayLike,
    query_cameras: npt.ArrayLike,
    gallery_cameras: npt.ArrayLike,
    query_locations: npt.ArrayLike | None = None,
    gallery_locations: npt.ArrayLike | None = None,
) -> Answers:
    """The rule of these labels, each an array of strings or integers as long as its side; else a DataError."""
    asked = check_labels("query_identities", query_identities, queries)
    shown = check_labels("gallery_identities", gallery_identities, gallery)
    judgement = judge(
        asked,
        shown,
        check_labels("query_cameras", query_cameras, queries),
        check_labels("gallery_cameras", gallery_cameras, gallery),
    )
    if (query_locations is None) != (gallery_locations is None):
        raise DataError("locations: expected query_locations and gallery_locations, got only one of them")
    if query_locations is None or gallery_locations is None:
        return Answers(judgement, asked, shown)
    here = check_labels("query_locations", query_locations, queries)
    there = check_labels("gallery_locations", gallery_locations, gallery)
    if here.dtype.kind.replace("u", "i") != there.dtype.kind.replace("u", "i"):
        raise DataError(f"locations: queries have {here.dtype} labels and the gallery {there.dtype}; use one type")
    return Answers(judgement, asked, shown, here, there)
