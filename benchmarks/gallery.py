"""What a large gallery costs: memory, and the seconds to build, open, search, add to, remove from and compact it.

``python benchmarks/gallery.py --rows 1000000 --dimension 256`` prints a table and writes JSON to benchmarks/results.
Seconds are those of the processor, so that other programs of the machine count less; waiting for the disk is left out.
Memory is what a fresh process holds beyond the files that it maps, as a fraction of the bytes of the vectors.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from reid.records import Embeddings, Sample
from reid.retrieval.gallery import Gallery
from reid.retrieval.row_table import RowTable
from reid.retrieval.storage import write_gallery
from reid.retrieval.stored_gallery import new_facts, read_gallery, with_rows
from reid.retrieval.upkeep import verify_gallery

RESULTS = Path(__file__).parent / "results" / "gallery.json"
CAMERAS, PART = 6, 50_000


def resident(name: str = "RssAnon") -> int:
    """Return the bytes of memory that the process holds and that no file backs."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def rows_of(first: int, count: int, dimension: int) -> Embeddings:
    """Return random embeddings of made-up crops."""
    random = np.random.default_rng(first)
    vectors = random.standard_normal((count, dimension)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    start = datetime(2024, 1, 1)
    samples = tuple(
        Sample(
            Path(f"/data/site/crops/camera-{i % CAMERAS}/{i:09d}.jpg"), f"id-{i // 20}", f"camera-{i % CAMERAS}",
            time=start + timedelta(seconds=i), track=f"track-{i // 8}",
        )
        for i in range(first, first + count)
    )  # fmt: skip
    return Embeddings(samples, vectors, "f00d")


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that some work takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def build(folder: Path, rows: int, dimension: int) -> None:
    """Write a gallery of so many rows."""
    with write_gallery(folder) as writer:
        writer.commit(new_facts("f00d", dimension))
        for first in range(0, rows, PART):
            part = rows_of(first, min(PART, rows - first), dimension)
            stored = read_gallery(folder)
            writer.commit(with_rows(writer, stored.facts, RowTable.from_samples(part.samples), [part.vectors]))
    Gallery.open(folder).compact()


def measure(folder: Path, rows: int, dimension: int) -> dict[str, float]:
    """Use a gallery of so many rows, and return what each step costs."""
    found: dict[str, float] = {}
    before = resident()
    start = time.process_time()
    gallery = Gallery.open(folder)
    found["open"] = time.process_time() - start
    query = rows_of(0, 1, dimension).vectors
    where = "camera IN ('camera-1', 'camera-2') AND time >= '2024-01-02'"
    found["first search with its check"] = timed(lambda: gallery.search(query, 10, fingerprint="f00d"))
    found["one query"] = min(timed(lambda: gallery.search(query, 10, fingerprint="f00d")) for _ in range(3))
    found["one query with a filter"] = min(
        timed(lambda: gallery.search(query, 10, fingerprint="f00d", where=where)) for _ in range(3)
    )
    found["memory beside the files / bytes of the vectors"] = (resident() - before) / (4 * rows * dimension)
    more = rows_of(rows, 1000, dimension)
    found["add 1,000 rows"] = timed(lambda: gallery.add(more))
    found["search after it"] = timed(lambda: gallery.search(query, 10, fingerprint="f00d"))
    found["remove 1,000 rows"] = timed(lambda: gallery.remove("track < 'track-10000' AND camera = 'camera-3'"))
    found["search after that"] = timed(lambda: gallery.search(query, 10, fingerprint="f00d"))
    found["erase an identity and its bytes"] = timed(lambda: gallery.erase("id-7"))
    found["verify every byte"] = timed(lambda: verify_gallery(folder))
    return found


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--folder", type=Path, help="Where the gallery is written. Default: a temporary folder.")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp()) / "gallery"
    try:
        maker = get_context("spawn").Process(target=build, args=(folder, options.rows, options.dimension))
        maker.start()
        maker.join()
        found = measure(folder, options.rows, options.dimension)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    known[f"{options.rows} x {options.dimension}"] = {
        "machine": platform.processor() or platform.machine(), "numpy": np.__version__, **found
    }  # fmt: skip
    RESULTS.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    for name, value in found.items():
        print(f"{name:55s}{value:12.4f}")


if __name__ == "__main__":
    main()
