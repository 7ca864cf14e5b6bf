"""How similar the crops of a gallery are to each other, to notice a query that is like none of them."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np

from reid.app.query import QueryOutcome
from reid.app.served_data import ServedGallery
from reid.retrieval.gallery import Gallery

SAMPLED = 200  # crops whose nearest neighbours are looked up
RARE = 0.02  # share of crops with a nearest neighbour that is as far as what is doubted
FEWEST = 20  # crops, below which nothing is doubted
UNLIKE = (
    "It is less like any crop of the gallery than nearly all of its crops are like each other: it may be no crop, or of"
    " something else."
)

_known: WeakKeyDictionary[Gallery, float] = WeakKeyDictionary()


def lowest_typical_score(gallery: Gallery) -> float:
    """Return the score that the nearest neighbour of nearly every crop of a gallery reaches; -1 in a small gallery."""
    known = _known.get(gallery)
    if known is None:
        size = len(gallery)
        if size < FEWEST:
            return -1.0
        rows = np.linspace(0, size - 1, min(SAMPLED, size)).astype(np.int64)
        found = gallery.search(gallery.rows.vectors_at(rows), 2, fingerprint=gallery.fingerprint)
        known = float(np.quantile(found.scores[:, 1], RARE))
        _known[gallery] = known
    return known


def note_on_scores(served: ServedGallery, outcome: QueryOutcome) -> list[str]:
    """Return a sentence where the best answer is less similar than what is usual in the gallery."""
    if not outcome.answers:
        return []
    best = max(answer.score for answer, _ in outcome.answers)
    return [UNLIKE] if best < lowest_typical_score(served.gallery) else []
