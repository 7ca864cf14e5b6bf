"""How far the false-match rates that are fitted without labels are from those counted with labels.

    python benchmarks/match_rates.py --place street-b data/street/street-b/manifest.csv demo/weights/street.safetensors

Takes places as benchmarks/score_norms.py does.  For each place and category, thresholds are fitted on the gallery for
every pair of cameras; the table says which share of the pairs of different identities reaches them, and which share of
the pairs of one identity.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
from score_norms import embedded

from reid.records import Embeddings, Split
from reid.retrieval.cohort_rows import CohortRows
from reid.retrieval.cohorts import measure_cohorts
from reid.retrieval.match_thresholds import fit_thresholds

RATES = (1e-2, 1e-3, 1e-4)


def lines(embeddings: Embeddings, place: str) -> Iterator[str]:
    """Yield a line of Markdown for each category."""
    gallery = embeddings.select(np.array([sample.split is not Split.QUERY for sample in embeddings.samples]))
    for category in dict.fromkeys(sample.category for sample in gallery.samples):
        own = gallery.select(np.array([sample.category == category for sample in gallery.samples]))
        rows = CohortRows.of_samples(own.samples, own.vectors)
        statistics = measure_cohorts(rows, rows, "csls")
        columns = statistics.columns(rows.cameras)
        scores = own.vectors @ own.vectors.T
        identities = np.array([sample.identity for sample in own.samples])
        different = identities[:, None] != identities[None]
        itself = np.eye(len(own), dtype=bool)
        table, cells = fit_thresholds(rows, statistics), []
        for rate in RATES:
            thresholds = table.thresholds(rate)
            reached = scores >= thresholds[np.ix_(columns, columns)]
            pairs = [
                (reached & different)[np.ix_(columns == a, columns == b)].sum()
                / different[np.ix_(columns == a, columns == b)].sum()
                for a in np.unique(columns)
                for b in np.unique(columns)
            ]
            matched = reached[~different & ~itself].mean()
            cells.append(
                f"{np.mean(reached[different]) / rate:.2f} ({min(pairs) / rate:.1f} to {max(pairs) / rate:.1f})"
                f" | {100 * matched:.0f} %"
            )
        yield f"| {place} {category} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", nargs=3, action="append", required=True, metavar=("NAME", "MANIFEST", "WEIGHTS"))
    parser.add_argument("--calibrate", action="append", default=[], metavar="NAME")
    parser.add_argument("--strict", action="append", default=[], metavar="NAME")
    options = parser.parse_args()
    for name, manifest, weights in options.place:
        embeddings = embedded(manifest, weights, name in options.calibrate, name in options.strict)
        for line in lines(embeddings, name):
            print(line)


if __name__ == "__main__":
    main()
