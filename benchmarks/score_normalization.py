"""What a search by normalized scores costs, against a plain search: time, cost of adding rows, and recall of rescoring.

    python benchmarks/score_normalization.py --rows 100000 --cameras 6 --json FILE

Vectors are random: people with a direction of their own, cameras with an offset.  Plain and normalized searches take
turns in one run, and times are processor seconds, so that the ratio holds on a busy machine too.  The figures are those
of docs/scores.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import numpy as np

from reid.records import Embeddings, FloatArray, Sample
from reid.retrieval.cohort_rows import CohortRows
from reid.retrieval.cohort_updates import add_rows
from reid.retrieval.gallery import Gallery
from reid.retrieval.normalized_ranking import NormalizedGallery
from reid.retrieval.normalized_search import normalized_gallery, search_normalized

CROPS_OF_ONE_PERSON = 12


def site(rows: int, cameras: int, dimension: int, seed: int = 0) -> tuple[tuple[Sample, ...], FloatArray]:
    """Draw samples and unit vectors (rows, dimension) of people in front of cameras."""
    random = np.random.default_rng(seed)
    people = rows // CROPS_OF_ONE_PERSON + 1
    centres = random.standard_normal((people, dimension), dtype=np.float32)
    offsets = random.standard_normal((cameras, dimension), dtype=np.float32)
    person, camera = random.integers(0, people, rows), random.integers(0, cameras, rows)
    vectors = centres[person] + 0.7 * offsets[camera] + 0.8 * random.standard_normal((rows, dimension), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    samples = tuple(
        Sample(Path(f"{p:06d}/{i:07d}.jpg"), f"p{p}", f"c{c}")
        for i, (p, c) in enumerate(zip(person.tolist(), camera.tolist(), strict=True))
    )
    return samples, vectors


def seconds(calls: list[Callable[[], object]], repeats: int) -> list[float]:
    """Return the median processor seconds of each call; the calls take turns."""
    found: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for times, call in zip(found, calls, strict=True):
            start = process_time()
            call()
            times.append(process_time() - start)
    return [float(np.median(times)) for times in found]


def recall(prepared: NormalizedGallery, queries: CohortRows, candidates: int, k: int = 10) -> float:
    """Return the share of the k best by normalized scores that the best ``candidates`` of each camera contain."""
    exact = prepared.search(queries, k).ranking.rows
    lists = []
    for vector in queries.vectors:
        plain = prepared.rows.vectors @ vector
        best = [
            rows[np.argsort(-plain[rows])[:candidates]]
            for rows in (np.flatnonzero(prepared.columns == column) for column in np.unique(prepared.columns))
        ]
        lists.append(np.concatenate(best))
    found = prepared.rescore(queries, lists, k).ranking.rows
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(exact.tolist(), found.tolist(), strict=True)]))


def in_a_folder(
    embeddings: Embeddings, query: Sample, vector: FloatArray, k: int = 10
) -> tuple[dict[str, float], NormalizedGallery]:
    """Measure what a gallery on disk costs that keeps its statistics, against one that does not."""
    found: dict[str, float] = {}

    def timed(name: str, call: Callable[[], object]) -> None:
        start = process_time()
        call()
        found[name] = process_time() - start

    with TemporaryDirectory() as folder:
        timed("building, statistics included, s", lambda: Gallery.build(embeddings).save(folder))
        (file,) = Path(folder).glob("*.cohorts.safetensors")
        found["statistics, MB"] = file.stat().st_size / 1e6
        opened = Gallery.open(folder)
        timed("first plain search, s", lambda: opened.search(vector, k, fingerprint="f00d"))
        timed("first search, s", lambda: search_normalized(opened, vector, [query], k, fingerprint="f00d"))
        prepared = normalized_gallery(opened)
        added = Embeddings((replace(query, path=Path("new.jpg")),), vector, "f00d")
        timed("adding one row, s", lambda: Gallery.open(folder).add(added))
        timed(
            "first search after that, s",
            lambda: search_normalized(Gallery.open(folder), vector, [query], k, fingerprint="f00d"),
        )
    timed(
        "first search without kept statistics, s",
        lambda: NormalizedGallery.prepare(prepared.rows).search(CohortRows.of_samples([query], vector), k),
    )
    return found, prepared


def measure(rows: int, cameras: int, dimension: int, repeats: int, k: int = 10) -> dict[str, object]:
    """Measure everything on one site."""
    samples, vectors = site(rows + 256, cameras, dimension)
    everything = CohortRows.of_samples(samples, vectors)
    queries, own = everything.select(np.arange(rows, rows + 256)), everything.select(np.arange(rows))
    gallery = Gallery.build(Embeddings(samples[:rows], vectors[:rows], "f00d"))
    table: dict[str, object] = {"rows": rows, "cameras": cameras, "dimension": dimension}
    table["gallery in a folder"], prepared = in_a_folder(
        Embeddings(samples[:rows], vectors[:rows], "f00d"), samples[rows], vectors[rows:][:1]
    )
    for count in (1, 64, 256):
        some = queries.select(np.arange(count))
        plain, normalized = seconds(
            [
                lambda some=some: gallery.search(some.vectors, k, fingerprint="f00d"),  # type: ignore[misc]
                lambda some=some: prepared.search(some, k),  # type: ignore[misc]
            ],
            repeats,
        )
        table[f"{count} queries"] = {"plain, s": plain, "normalized, s": normalized, "ratio": normalized / plain}
    start = process_time()
    add_rows(prepared.statistics, own, queries)
    table["adding 256 rows, s"] = process_time() - start
    some = queries.select(np.arange(64))
    table["recall of rescoring, best of each camera"] = {str(t): recall(prepared, some, t) for t in (10, 50, 200)}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--cameras", type=int, default=6)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    table = measure(options.rows, options.cameras, options.dimension, options.repeats)
    text = json.dumps(table, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
