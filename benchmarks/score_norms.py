"""What score normalization per pair of cameras brings: the table of docs/scores.md.

    python benchmarks/score_norms.py --place street-b data/street/street-b/manifest.csv demo/weights/street.safetensors
        --place vehicles vehicles/manifest.csv osnet_x0_25_msmt17.pth:osnet_x0_25 [--calibrate NAME] [--json FILE]

Each place is a name, a manifest and weights, with the backbone behind a colon where the file does not name it.  The
rows of split query are scored against those of split gallery, by direction and with all modalities in one gallery;
places named in --strict use all crops as queries and as gallery.  --calibrate measures statistics per camera first,
on split train, or on all crops of a place in --strict.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from reid.data.protocols.data_sets import Scoring
from reid.data.protocols.protocol_table import Rule
from reid.evaluation import evaluate
from reid.models.calibration import calibrate_checkpoint
from reid.pipeline import embed_samples, load_checkpoint, read_samples, with_unseen_cameras
from reid.records import Embeddings, Sample, Split

NORMS = ("none", "csls", "snorm")


def everything_twice(embeddings: Embeddings) -> Embeddings:
    """Return every crop as a query and as a row of the gallery."""
    rows = [
        replace(embeddings, samples=tuple(_with_split(sample, split) for sample in embeddings.samples))
        for split in (Split.QUERY, Split.GALLERY)
    ]
    both = (*rows[0].samples, *rows[1].samples)
    return Embeddings(both, np.concatenate([one.vectors for one in rows]), embeddings.fingerprint)


def _with_split(sample: Sample, split: Split) -> Sample:
    return Sample(sample.path, sample.identity, sample.camera, sample.modality, sample.category, split)


def scores(embeddings: Embeddings, place: str) -> Iterator[dict[str, object]]:
    """Yield one row for each category, direction and score normalization."""
    lights = {sample.modality for sample in embeddings.samples}
    rules = [Rule()] + ([Rule(modalities="mixed")] if len(lights) > 1 else [])
    if not any(sample.camera for sample in embeddings.samples):
        rules = [Rule(ignore="itself")]
    for rule in rules:
        for norm in NORMS[1:]:
            report = evaluate(embeddings, scoring=Scoring(rule), score_norm=norm)
            for result in report.results:
                if result.score_norm != "none" or norm == NORMS[1]:
                    yield {
                        "place": place,
                        "category": result.category,
                        "direction": result.direction,
                        "score_norm": result.score_norm,
                        "stamp": result.score_norm_stamp,
                        "rank1": result.metrics.rank(1),
                        "mAP": result.metrics.mAP,
                        "queries": result.metrics.queries,
                        "gallery": result.metrics.gallery,
                    }


def open_set(embeddings: Embeddings, place: str) -> Iterator[str]:
    """Yield lines of Markdown: identification rates where half of the people are not in the gallery."""
    identities = sorted({sample.identity for sample in embeddings.samples})
    absent = set(np.random.default_rng(0).permutation(identities)[: len(identities) // 2].tolist())
    kept = [sample.split is Split.QUERY or sample.identity not in absent for sample in embeddings.samples]
    some = embeddings.select(np.array(kept))
    found: dict[tuple[str, str], list[str]] = {}
    for norm in NORMS[1:]:
        for result in evaluate(some, score_norm=norm).results:
            if result.identification and (norm == NORMS[1] or not result.is_plain):
                rates = " / ".join(f"{100 * one.rate.value:.1f}" for one in result.identification)
                found.setdefault((result.category, result.direction), []).append(rates)
    for (category, direction), cells in found.items():
        yield f"| {place} {category}, {direction} | {' | '.join(cells)} |"


def table(rows: Sequence[dict[str, object]]) -> str:
    """Write the rows as a table of Markdown: rank-1 / mAP in percent, one line for each place and direction."""
    lines = [f"| place | gallery | {' | '.join(NORMS)} |", "|---|---|---|---|---|"]
    keys = dict.fromkeys((row["place"], row["category"], row["direction"]) for row in rows)
    for key in keys:
        own = [row for row in rows if (row["place"], row["category"], row["direction"]) == key]
        cells = [
            next(f"{100 * row['rank1']:.1f} / {100 * row['mAP']:.1f}" for row in own if row["score_norm"] == norm)  # type: ignore[operator]
            for norm in NORMS
        ]
        lines.append(f"| {key[0]} {key[1]}, {key[2]} | {own[0]['gallery']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def embedded(manifest: str, weights: str, calibrate: bool, strict: bool) -> Embeddings:
    """Embed the crops of a place."""
    samples = read_samples(manifest)
    file, _, backbone = weights.partition(":")
    checkpoint = load_checkpoint(file, backbone or None)
    if checkpoint.domain_fields:
        checkpoint = with_unseen_cameras(checkpoint, samples, "calibrate")
    elif calibrate:
        pool = [sample for sample in samples if strict or sample.split is Split.TRAIN]
        checkpoint = checkpoint.with_profiles(calibrate_checkpoint(checkpoint, pool, domain_fields=("camera",)))
    scored = [sample for sample in samples if strict or sample.split is not Split.TRAIN]
    found = embed_samples(checkpoint, scored)
    return everything_twice(found) if strict and any(sample.camera for sample in scored) else found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", nargs=3, action="append", required=True, metavar=("NAME", "MANIFEST", "WEIGHTS"))
    parser.add_argument("--calibrate", action="append", default=[], metavar="NAME")
    parser.add_argument("--strict", action="append", default=[], metavar="NAME")
    parser.add_argument("--open-set", action="store_true", help="also identification rates with half the people absent")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    for name, manifest, weights in options.place:
        embeddings = embedded(manifest, weights, name in options.calibrate, name in options.strict)
        rows += scores(embeddings, name)
        if options.open_set:
            print("\n".join(open_set(embeddings, name)))
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
