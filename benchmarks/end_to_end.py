"""How long the whole walk takes: read and decode, embed, index, search, evaluate, on any manifest.

    python benchmarks/end_to_end.py data/street/street-a/manifest.csv [--weights FILE --backbone NAME] [--json FILE]

Prints seconds and images (or queries) a second of each stage, and the machine.  Compare stages of one run; the
absolute times belong to the machine they were taken on.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import faiss
import torch

from reid.data.loading import load_crops
from reid.data.manifest import read_manifest
from reid.evaluation import evaluate
from reid.pipeline import load_checkpoint, with_unseen_cameras, workers
from reid.records import Split
from reid.retrieval.embed import embed
from reid.retrieval.gallery import Gallery

Result = TypeVar("Result")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--backbone")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []

    def stage(name: str, count: int, work: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        result = work()
        spent = time.perf_counter() - start
        rows.append({"stage": name, "count": count, "seconds": spent})
        print(f"{name:24}{count:8}{spent:10.2f} s{count / spent:12.0f} /s", flush=True)
        return result

    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, faiss {faiss.__version__}")
    samples = read_manifest(options.manifest)
    asked = [sample for sample in samples if sample.split is not Split.TRAIN]
    checkpoint = load_checkpoint(options.weights, options.backbone)
    pool = len(samples) - len(asked)
    checkpoint = stage("calibrate new cameras", pool, lambda: with_unseen_cameras(checkpoint, samples, "calibrate"))
    stage("read and decode", len(asked), lambda: load_crops(asked, checkpoint.transform, workers=workers()))
    vectors = stage("read and embed", len(asked), lambda: embed(checkpoint, asked, workers=workers()))
    split = [[i for i, s in enumerate(asked) if s.split is part] for part in (Split.QUERY, Split.GALLERY)]
    queries, gallery_rows = (vectors.select(torch.tensor(rows_).numpy()) for rows_ in split)
    gallery = stage("index", len(gallery_rows), lambda: Gallery.build(gallery_rows))
    fingerprint = vectors.fingerprint
    stage("search, all at once", len(queries), lambda: gallery.search(queries.vectors, 10, fingerprint=fingerprint))
    stage(
        "search, one at a time",
        len(queries),
        lambda: [gallery.search(vector[None], 10, fingerprint=fingerprint) for vector in queries.vectors],
    )
    stage("evaluate", len(queries), lambda: evaluate(vectors))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
