"""What normalization by camera or modality brings on the street: the table of docs/results/index.md.

    python benchmarks/street.py runs --data data/street --json benchmarks/results/street.json

Reads the runs of scripts/experiments/street-small-*.toml (runs/small-<norm>-<seed>, one for each seed) and
prints mean and spread (standard deviation over seeds) of rank-1 and mAP, test people, on the site that was
trained on and on one that was never shown to it.  No label of the second site is used: statistics are re-estimated
from the unlabelled crops of its train split, which shows other people than its test split.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from reid.data.manifest import read_manifest
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.records import Modality, Sample
from reid.training.score_tables import Entry, Score, entries, site_table
from reid.training.site_statistics import StatisticsPolicy, evaluate_site, keep_statistics, measure_statistics

SITES = ("street-a", "street-b")
DIRECTIONS = ("visible->visible", "infrared->visible", "visible->infrared")


def people(manifest: Path) -> list[Sample]:
    return [sample for sample in read_manifest(manifest) if sample.category == "person"]


def of_wrong_cameras(checkpoint: Checkpoint, pool: Sequence[Sample]) -> Checkpoint:
    """Every camera gets the statistics of its neighbour of the same modality."""
    known = measure_statistics(checkpoint, pool)
    cameras = sorted({(sample.modality, sample.camera) for sample in pool})
    wrong = {}
    for modality in Modality:
        own = [camera for light, camera in cameras if light is modality]
        wrong |= dict(zip(own, own[1:] + own[:1], strict=True))
    names = tuple("/".join([*name.split("/")[:-1], wrong.get(name.split("/")[-1], "")]) for name in known.domains)
    # Row i, measured on camera names[i], now answers to another camera; names that nobody asks for stay distinct.
    distinct = tuple(name if not name.endswith("/") and name else f"unused {i}" for i, name in enumerate(names))
    return replace(known, domains=distinct, fingerprint=f"{known.fingerprint}-wrong")


ROWS: dict[str, tuple[str, StatisticsPolicy]] = {
    "plain BN": ("batch", keep_statistics),
    "plain BN, statistics of the site (AdaBN)": ("batch", measure_statistics),
    "modality BN": ("modality", keep_statistics),
    "modality BN, statistics of the site": ("modality", measure_statistics),
    "camera BN, calibrated cameras": ("camera", measure_statistics),
    "camera BN, the wrong camera's statistics": ("camera", of_wrong_cameras),
}


def measure(runs: Path, data: Path, seeds: list[int]) -> list[Entry]:
    """One entry a row, site, direction: the scores of every seed, as fractions."""
    sites = {site: people(data / site / "manifest.csv") for site in SITES}
    scores = []
    for row, (norm, policy) in ROWS.items():
        for seed in seeds:
            checkpoint = load_checkpoint(runs / f"small-{norm}-{seed}" / "weights.safetensors")
            for site, samples in sites.items():
                report = evaluate_site(checkpoint, policy, samples)
                for direction in DIRECTIONS:
                    m = report["person", direction].metrics
                    key = (row, site, "person", direction, seed)
                    scores.append(Score(*key, m.rank(1), m.mAP, m.queries, m.gallery))
    return entries(scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data/street"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure(options.runs, options.data, options.seeds)
    for site in SITES:
        print(site_table(found, site, len(options.seeds)), end="\n\n")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps([asdict(entry) for entry in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
