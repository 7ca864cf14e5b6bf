"""What searching costs: exact search, filters, indexes and galleries, each against FAISS in one run.

    python benchmarks/retrieval.py [--rows 100000] [--dimension 512] [--large 1000000] [--rounds 5] [--json FILE]
    python benchmarks/retrieval.py --part kinds --rows 100000 200000

Vectors are those of identities: clusters of 20 around random directions, with noise. Every row of the tables is a
ratio of seconds of CPU, the median of alternating runs in one process on the same vectors, with one thread unless
OMP_NUM_THREADS says otherwise. The answers are compared first: exact searches must have the same ids as FAISS.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# torch comes before faiss, as in the package.
# isort: off
import torch
import faiss

# isort: on
import numpy as np

from reid.records import Embeddings, Sample
from reid.retrieval.gallery import Gallery
from reid.retrieval.row_table import RowTable
from reid.retrieval.stores.flat_store import FlatStore
from reid.retrieval.stores.index_kinds import INDEX_KINDS
from reid.retrieval.stores.indexed_store import IndexedStore
from reid.retrieval.stores.products import has_bfloat16

CAMERAS = 6
QUERIES, RANKS = 256, 50
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000])
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--large", type=int, default=1_000_000)
    parser.add_argument("--large-dimension", type=int, default=256)
    parser.add_argument("--kinds", nargs="+", choices=list(INDEX_KINDS), default=list(INDEX_KINDS))
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    threads = int(os.environ["OMP_NUM_THREADS"])
    faiss.omp_set_num_threads(threads)
    torch.set_num_threads(threads)
    machine = {
        "machine": platform.processor() or platform.machine(),
        "threads": threads,
        "numpy": np.__version__,
        "faiss": faiss.__version__,
        "faiss_instructions": faiss.get_compile_options().strip(),
        "openblas_coretype": os.environ.get("OPENBLAS_CORETYPE", "(not set)"),
        "bfloat16_products": has_bfloat16(),
    }
    print(json.dumps(machine))
    results: dict[str, Any] = {"about": machine}
    for name, part in PARTS.items():
        if options.part in (name, "all"):
            results[name] = part(options)
            if options.json:
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps(results, indent=1) + "\n")


def identities(rows: int, dimension: int, seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return vectors (rows, dimension) in clusters of 20, and queries (256, dimension) near some of them."""
    random = np.random.default_rng(seed)
    vectors = np.empty((rows, dimension), np.float32)
    centres = random.standard_normal((max(1, rows // 20), dimension), dtype=np.float32)
    for start in range(0, rows, 65536):
        part = vectors[start : start + 65536]
        part[:] = random.standard_normal(part.shape, dtype=np.float32)
        part += centres[random.integers(0, len(centres), len(part))]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    queries = vectors[random.integers(0, rows, QUERIES)]
    queries = queries + 0.5 * random.standard_normal(queries.shape, dtype=np.float32) / np.sqrt(dimension)
    return vectors, np.ascontiguousarray(queries / np.linalg.norm(queries, axis=1, keepdims=True), np.float32)


def multiply(queries: np.ndarray[Any, Any], vectors: np.ndarray[Any, Any]) -> None:
    """Multiply queries with all vectors in float32, tile by tile: what a search cannot do without."""
    for start in range(0, len(vectors), 4096):
        queries @ vectors[start : start + 4096].T


def measure(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of CPU of each work; the works take turns."""
    spent: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
        work()  # the second search of a store makes its codes
    for _ in range(rounds):
        for name, work in works.items():
            start = time.process_time()
            work()
            spent[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in spent.items()}


def show(title: str, seconds: Mapping[str, float], queries: int, ours: str = "ours") -> Row:
    """Print milliseconds a query and how many times as long as ours each takes."""
    row: Row = {"what": title, **{f"{name}_ms": 1e3 * s / queries for name, s in seconds.items()}}
    row["ratios"] = {name: s / seconds[ours] for name, s in seconds.items() if name != ours}
    times = "  ".join(f"{name} {1e3 * s / queries:9.3f}" for name, s in seconds.items())
    ratios = "  ".join(f"{name}/{ours} {ratio:.2f}" for name, ratio in row["ratios"].items())
    print(f"{title:44}{times}   {ratios}", flush=True)
    return row


def exact(options: argparse.Namespace) -> list[Row]:
    """Exact search against a flat index of FAISS, in batches and one by one."""
    results = []
    for rows in options.rows:
        vectors, queries = identities(rows, options.dimension)
        store, index = FlatStore(options.dimension), faiss.IndexFlatIP(options.dimension)
        store.add(np.arange(rows), vectors)
        index.add(vectors)
        same = np.mean(store.search(queries, RANKS).rows == index.search(queries, RANKS)[1])
        print(f"{rows:,} x {options.dimension}, milliseconds a query; share of ranks with the same id: {same:.5f}")
        for count in (QUERIES, 1):
            asked = queries[:count]
            works: dict[str, Callable[[], object]] = {
                "ours": partial(store.search, asked, RANKS),
                "faiss": partial(index.search, asked, RANKS),
            }
            if count > 1:
                works["product"] = partial(multiply, asked, vectors)
            row = show(
                f"exact, {count} at a time", measure(works, options.rounds if count > 1 else 5 * options.rounds), count
            )
            results.append({**row, "rows": rows, "same_ids": float(same)})
    return results


def filters(options: argparse.Namespace) -> list[Row]:
    """Filters by camera against FAISS' bitmap and against searching only the rows that match."""
    results = []
    rows = options.rows[0]
    vectors, queries = identities(rows, options.dimension)
    random = np.random.default_rng(1)
    index = faiss.IndexFlatIP(options.dimension)
    index.add(vectors)
    for layout, cameras in (
        ("grouped", np.sort(random.integers(0, CAMERAS, rows))),
        ("mixed", random.integers(0, CAMERAS, rows)),
    ):
        store = FlatStore(options.dimension)
        store.add(np.arange(rows), vectors, RowTable.from_samples([Sample("", camera=f"c{c}") for c in cameras]))
        for kept in (1, 3, 5):
            allowed = np.flatnonzero(cameras < kept)
            own = FlatStore(options.dimension)
            own.add(np.arange(len(allowed)), np.ascontiguousarray(vectors[allowed]))
            bits = np.packbits(cameras < kept, bitorder="little")
            chosen = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
            found = index.search(queries, RANKS, params=chosen)[1]
            same = float(np.mean(store.search(queries, RANKS, allowed=allowed).rows == found))
            for count in (QUERIES, 1):
                asked = queries[:count]
                works: dict[str, Callable[[], object]] = {
                    "ours": partial(store.search, asked, RANKS, allowed=allowed),
                    "bitmap": partial(index.search, asked, RANKS, params=chosen),
                    "only_matching": partial(own.search, asked, RANKS),
                }
                rounds = max(3, options.rounds // 2) if count > 1 else 3 * options.rounds
                row = show(f"{layout}, {kept} of {CAMERAS} cameras, {count} at a time", measure(works, rounds), count)
                results.append({**row, "rows": rows, "same_ids": same})
    return results


def kinds(options: argparse.Namespace) -> list[Row]:
    """Approximate indexes: what building costs, and what their search finds."""
    results = []
    for rows in options.rows:
        vectors, queries = identities(rows, options.dimension)
        flat = FlatStore(options.dimension)
        flat.add(np.arange(rows), vectors)
        expected = flat.search(queries, 10)
        for name in options.kinds:
            store = IndexedStore(options.dimension, name, options.recall)
            store.add(np.arange(rows), vectors)
            start = time.process_time()
            report = store.build_index()
            built = time.process_time() - start
            with tempfile.TemporaryDirectory() as folder:
                store.write_index(Path(folder) / "index")
                size = (Path(folder) / "index").stat().st_size
                start = time.process_time()
                store.read_index(Path(folder) / "index", name)
                opened = time.process_time() - start
            found = store.search(queries, 10)
            shared = [len(set(a) & set(b)) for a, b in zip(found.rows.tolist(), expected.rows.tolist(), strict=True)]
            print(
                f"{report.line}; {built:.1f} s to build, {size / rows:.0f} bytes a row, recall of queries"
                f" {np.mean(shared) / 10:.4f}",
                flush=True,
            )
            for count in (QUERIES, 1):
                asked = queries[:count]
                works = {
                    "ours": partial(store.search, asked, 10),
                    "flat": partial(flat.search, asked, 10),
                }
                row = show(f"{name}, {rows:,} rows, {count} at a time", measure(works, options.rounds), count)
                results.append(
                    {**row, "rows": rows, "kind": name, "build_s": built, "open_s": opened, "bytes_a_row": size / rows,
                     "effort": report.effort, "recall": report.recall, "recall_of_queries": float(np.mean(shared) / 10)}
                )  # fmt: skip
    return results


def galleries(options: argparse.Namespace) -> list[Row]:
    """Galleries with metadata: one query, opening, adding, erasing and memory."""
    results = []
    for rows, dimension in ((options.rows[0], options.dimension), (options.large, options.large_dimension)):
        vectors, queries = identities(rows, dimension)
        cameras = np.sort(np.random.default_rng(1).integers(0, CAMERAS, rows))
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "gallery"
            made = _made_gallery(folder, vectors, cameras)
            del vectors
            start = time.process_time()
            gallery = Gallery.open(folder)
            opened = time.process_time() - start
            start = time.process_time()
            gallery.search(queries[:1], RANKS, fingerprint="f00d")
            first = time.process_time() - start
            index = faiss.IndexFlatIP(dimension)
            index.add(np.ascontiguousarray(gallery.embeddings.vectors))
            one = {
                "ours": partial(gallery.search, queries[:1], RANKS, fingerprint="f00d"),
                "faiss": partial(index.search, queries[:1], RANKS),
                "filtered": partial(gallery.search, queries[:1], RANKS, fingerprint="f00d", where="camera <> 'c3'"),
            }
            row = show(f"gallery of {rows:,} x {dimension}, one query", measure(one, 3 * options.rounds), 1)
            more, _ = identities(1000, dimension, seed=5)
            samples = tuple(Sample(f"new/{i}.jpg", f"new{i % 50}", "c1") for i in range(1000))
            start = time.process_time()
            gallery.add(Embeddings(samples, more, "f00d"))
            added = time.process_time() - start
            start = time.process_time()
            removed = gallery.remove("path LIKE 'new/%'")
            erased = time.process_time() - start
            results.append({**row, "rows": rows, "build_s": made, "open_s": opened, "first_query_s": first,
                            "add_1000_s": added, "erase_1000_s": erased})  # fmt: skip
            print(
                f"  write {made:.2f} s, open {opened:.3f} s, first query {first:.3f} s, add 1,000 {added:.3f} s,"
                f" erase {removed:,} {erased:.3f} s; seconds of CPU",
                flush=True,
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of the process, FAISS' copy and the making of the vectors included: {peak:.2f} GiB")
    return results


def _made_gallery(folder: Path, vectors: np.ndarray[Any, Any], cameras: np.ndarray[Any, Any]) -> float:
    """Write a gallery in parts of 100,000 rows, and return the seconds of CPU."""
    start = time.process_time()
    gallery = Gallery.create(folder, "f00d", vectors.shape[1])
    for first in range(0, len(vectors), 100_000):
        part = range(first, min(first + 100_000, len(vectors)))
        samples = tuple(Sample(f"crops/{i}.jpg", f"id{i // 20}", f"c{cameras[i]}") for i in part)
        gallery.add(Embeddings(samples, vectors[part.start : part.stop], "f00d"))
    return time.process_time() - start


PARTS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "exact": exact,
    "filters": filters,
    "kinds": kinds,
    "galleries": galleries,
}

if __name__ == "__main__":
    main()
