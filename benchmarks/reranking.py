"""What re-ranking, expansion and the learned metric bring, and where they decline: the table of docs/re-ranking.md.

    python benchmarks/reranking.py --place "street-b people" data/street/street-b/manifest.csv:person
        demo/weights/street.safetensors --place vehicles vehicles/manifest.csv:vehicle
        osnet_x0_25_msmt17.pth:osnet_x0_25 --strict vehicles --thin "street-b people"
        --json benchmarks/results/reranking.json

Each place is a name, a manifest with a category behind a colon, or "person/visible" for one modality, and weights with
the backbone behind a colon where the file does not name it. Statistics per camera are measured where the network has
none: on split train, or on all crops of a place in --strict. Embeddings are centered per camera. The rows of split
query are scored against those of split gallery by direction; in a place in --strict, all crops are queries and gallery.
A place in --thin is scored again with 3, 2 and 1 crops of an identity in a camera, and with 1 to 4 at random, all of
them queries and gallery.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from reid.evaluation import Reranking, evaluate
from reid.models.calibration import calibrate_checkpoint
from reid.pipeline import embed_samples, load_checkpoint, read_samples, with_unseen_cameras
from reid.records import Embeddings, Split
from reid.retrieval.centering import camera_means, centered

STEPS = {
    "k-reciprocal": Reranking((20, 6, 0.3)),
    "metric": Reranking(learn_metric=True),
    "expansion": Reranking(expand_by_camera=True),
    "camera": Reranking(by_camera=True),
    "metric, camera": Reranking(learn_metric=True, by_camera=True),
}
COLUMNS = ("plain", "csls", "k-reciprocal", "csls, k-reciprocal", *list(STEPS)[1:])
THINNED = (3, 2, 1, 0)  # crops of an identity in a camera; 0: 1 to 4 at random


def embeddings_of(manifest: str, weights: str, strict: bool) -> Embeddings:
    """Embed the crops that are scored, with statistics of their cameras, and center them per camera."""
    path, _, category = manifest.partition(":")
    name, _, backbone = weights.partition(":")
    wanted, _, modality = category.partition("/")
    samples = [
        sample for sample in read_samples(path) if sample.category == wanted and modality in ("", str(sample.modality))
    ]
    pool = [sample for sample in samples if strict or sample.split is Split.TRAIN]
    scored = [sample for sample in samples if strict or sample.split is not Split.TRAIN]
    checkpoint = load_checkpoint(name, backbone or None)
    if checkpoint.domain_fields:
        checkpoint = with_unseen_cameras(checkpoint, samples, "calibrate")
    else:
        checkpoint = checkpoint.with_profiles(calibrate_checkpoint(checkpoint, pool))
    embeddings = embed_samples(checkpoint, scored)
    embeddings = centered(embeddings, camera_means(embeddings))
    return everything_twice(embeddings) if strict else embeddings


def everything_twice(embeddings: Embeddings) -> Embeddings:
    """Return every crop as a query and as a row of the gallery."""
    sides = [[replace(sample, split=split) for sample in embeddings.samples] for split in (Split.QUERY, Split.GALLERY)]
    return Embeddings((*sides[0], *sides[1]), np.tile(embeddings.vectors, (2, 1)), embeddings.fingerprint)


def thinned(embeddings: Embeddings, crops: int) -> Embeddings:
    """Keep so many crops of every identity in every camera, or 1 to 4 for 0; seed 0."""
    random = np.random.default_rng(0)
    rows: dict[tuple[str, str], list[int]] = {}
    for row, sample in enumerate(embeddings.samples):
        rows.setdefault((sample.identity, sample.camera), []).append(row)
    kept = [random.permutation(group)[: crops or random.integers(1, 5)] for _, group in sorted(rows.items())]
    return everything_twice(embeddings.select(np.sort(np.concatenate(kept))))


def score(embeddings: Embeddings, place: str) -> Iterator[dict[str, object]]:
    """Yield a row for each direction: rank-1 and mAP in percent of each column, None where it declined."""
    table: dict[str, dict[str, list[float] | None]] = {}
    for name, reranking in STEPS.items():
        for result in evaluate(embeddings, reranking=reranking, score_norm="csls").results:
            column = name if result.reranking else "plain" if result.score_norm == "none" else "csls"
            if name == "k-reciprocal" and result.reranking and result.score_norm != "none":
                column = "csls, k-reciprocal"
            row = table.setdefault(result.direction, dict.fromkeys(COLUMNS))
            row[column] = [round(100 * value, 1) for value in (result.metrics.rank(1), result.metrics.mAP)]
    for direction, row in table.items():
        yield {"place": place, "direction": direction, **row}


def markdown(rows: Sequence[dict[str, object]]) -> str:
    """Return the rows as a table; "-" stands for a step that declined."""
    lines = [f"| place | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in rows:
        cells = [" / ".join(f"{number:.1f}" for number in row[column] or ()) or "-" for column in COLUMNS]  # type: ignore[attr-defined]
        direction = "" if row["direction"] == "all" else f", {row['direction']}"
        lines.append(f"| {row['place']}{direction} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Score the places, print the table and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", nargs=3, action="append", required=True, metavar=("NAME", "MANIFEST", "WEIGHTS"))
    parser.add_argument("--strict", action="append", default=[], metavar="NAME")
    parser.add_argument("--thin", action="append", default=[], metavar="NAME")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows: list[dict[str, object]] = []
    for name, manifest, weights in given.place:
        embeddings = embeddings_of(manifest, weights, name in given.strict)
        rows += score(embeddings, name)
        for crops in THINNED if name in given.thin else ():
            rows += score(thinned(embeddings, crops), f"{name}, {crops or '1 to 4'} crops in a camera")
        if given.json:
            given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(markdown(rows))


if __name__ == "__main__":
    main()
