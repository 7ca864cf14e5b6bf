"""The scores of the served galleries: of their queries, or of every crop as a query where there are none."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from reid.app.served_data import ServedGallery
from reid.app.site_data import SiteData
from reid.errors import DataError
from reid.evaluation import Details, details_of, evaluate
from reid.records import Embeddings, IntArray, Sample, Split

MOST_QUERIES = 2000
MOST_ROWS = 20_000  # of the gallery, which a score is computed for while a visitor waits
EXAMPLES = 3  # of the worst queries
QUERIES, EVERY_CROP = "queries", "every crop"
TOO_LARGE = 'this gallery is large, so score it in a terminal: "reid evaluate --data MANIFEST --report scores.html"'
NOTHING = "there is nothing to score: no two crops of one identity, by different cameras, are labelled"


@dataclass(frozen=True)
class SiteScores:
    """The scores of one gallery.

    Args:
        title: The title of the gallery.
        details: The scores with their details.
        asked: ``QUERIES``, or ``EVERY_CROP`` where every labelled crop was a query for all others.
    """

    title: str
    details: Details
    asked: str


def score_gallery(served: ServedGallery, site: SiteData, protocol: str, *, examples: int = EXAMPLES) -> SiteScores:
    """Score a gallery.

    Args:
        served: The gallery.
        site: Only its queries and rows are scored.
        protocol: ``QUERIES`` scores the queries that came with the data, ``EVERY_CROP`` every labelled crop; "" takes
            the queries where there are some with identities.
        examples: How many of the worst queries are shown in images.

    Raises:
        DataError: The gallery is too large, or holds nothing to score.
    """
    if len(served.gallery) > MOST_ROWS:
        raise DataError(TOO_LARGE)
    has_queries = served.queries is not None and any(sample.identity for sample in served.queries.samples)
    asked = protocol or (QUERIES if has_queries else EVERY_CROP)
    rows = _rows_of_site(served, site)
    if asked == QUERIES:
        if not has_queries or served.queries is None:
            raise DataError('these data hold no queries with identities; choose "every crop"')
        of_site = set(site.samples)
        queries = served.queries.select(np.array([s in of_site for s in served.queries.samples], np.bool_))
    else:
        labelled = np.flatnonzero([bool(sample.identity) for sample in rows.samples])
        if len(labelled) > MOST_QUERIES:
            labelled = labelled[np.linspace(0, len(labelled) - 1, MOST_QUERIES).astype(np.int64)]
        queries = Embeddings(
            tuple(replace(rows.samples[row], split=Split.QUERY) for row in labelled.tolist()),
            rows.vectors[labelled],
            rows.fingerprint,
        )
    return SiteScores(served.title, _scored(queries, rows, site.name, examples), asked)


def _rows_of_site(served: ServedGallery, site: SiteData) -> Embeddings:
    table = served.gallery.table
    of_site = set(site.samples)
    samples: list[Sample] = list(table.samples)
    rows: IntArray = np.array([row for row, sample in enumerate(samples) if sample in of_site], np.int64)
    own = tuple(replace(samples[row], split=Split.GALLERY) for row in rows.tolist())
    return Embeddings(own, served.gallery.rows.vectors_at(rows), served.gallery.fingerprint)


def _scored(queries: Embeddings, rows: Embeddings, name: str, examples: int) -> Details:
    if not len(queries) or not len(rows):
        raise DataError(NOTHING)
    vectors = np.concatenate([queries.vectors, rows.vectors])
    both = Embeddings(queries.samples + rows.samples, vectors, rows.fingerprint)
    report = evaluate(both, protocol=name)
    if not report.results:
        raise DataError(NOTHING)
    try:
        return details_of(report, both, query_examples=examples)
    except DataError:  # an image of an example is not there any more; the scores need none
        return details_of(report, both)
