"""What normalization by camera or modality brings on the street: the results table of the README.

    python benchmarks/street.py runs --data data/street --json benchmarks/results/street.json

Reads the runs of scripts/experiments/street-small-*.toml (runs/small-<kind>-<seed>, one for each seed) and
prints mean and spread (standard deviation over seeds) of rank-1 and mAP, test people, on the site that was
trained on and on one that was never seen.  No label of the second site is used: statistics are re-estimated
from the unlabelled crops of its train split, which shows other people than its test split.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from reid.data.manifest import read_manifest
from reid.evaluation import Report, evaluate
from reid.models.calibration import calibrate_checkpoint
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.records import Modality, Sample, Split
from reid.retrieval.embed import embed

DIRECTIONS = ("visible->visible", "infrared->visible", "visible->infrared")
Samples = list[Sample]


def people(manifest: Path) -> Samples:
    return [sample for sample in read_manifest(manifest) if sample.domain == "person"]


def as_trained(checkpoint: Checkpoint, _: Samples) -> Checkpoint:
    return checkpoint


def of_the_site(checkpoint: Checkpoint, pool: Samples) -> Checkpoint:
    """AdaBN (Li et al. 2016): one set of statistics, re-estimated on the site's unlabelled crops."""
    return checkpoint.with_profiles(calibrate_checkpoint(checkpoint, pool, by=checkpoint.by or ("domain",)))


def of_its_cameras(checkpoint: Checkpoint, pool: Samples) -> Checkpoint:
    """Statistics of every camera (or modality, as the checkpoint has it) from its unlabelled crops."""
    return checkpoint.with_profiles(calibrate_checkpoint(checkpoint, pool))


def of_wrong_cameras(checkpoint: Checkpoint, pool: Samples) -> Checkpoint:
    """Every camera gets the statistics of its neighbour of the same modality."""
    known = of_its_cameras(checkpoint, pool)
    cameras = sorted({(sample.modality, sample.camera) for sample in pool})
    wrong = {}
    for modality in Modality:
        own = [camera for kind, camera in cameras if kind is modality]
        wrong |= dict(zip(own, own[1:] + own[:1], strict=True))
    names = tuple("/".join([*name.split("/")[:-1], wrong.get(name.split("/")[-1], "")]) for name in known.names)
    # Row i, measured on camera names[i], now answers to another camera; names that nobody asks for stay distinct.
    distinct = tuple(name if not name.endswith("/") and name else f"unused {i}" for i, name in enumerate(names))
    return replace(known, names=distinct, fingerprint=f"{known.fingerprint}-wrong")


ROWS: dict[str, tuple[str, Callable[[Checkpoint, Samples], Checkpoint]]] = {
    "plain BN": ("batch", as_trained),
    "plain BN, statistics of the site (AdaBN)": ("batch", of_the_site),
    "modality BN": ("modality", as_trained),
    "modality BN, statistics of the site": ("modality", of_its_cameras),
    "camera BN, calibrated cameras": ("camera", of_its_cameras),
    "camera BN, the wrong camera's statistics": ("camera", of_wrong_cameras),
}


def score(checkpoint: Checkpoint, samples: Samples) -> Report:
    return evaluate(embed(checkpoint, [sample for sample in samples if sample.split is not Split.TRAIN]))


def measure(runs: Path, data: Path, seeds: list[int]) -> list[dict[str, object]]:
    """One entry a row, site, direction: the scores of every seed, as fractions."""
    sites = {site: people(data / site / "manifest.csv") for site in ("street-a", "street-b")}
    entries: dict[tuple[str, str, str], dict[str, object]] = {}
    for row, (kind, prepare) in ROWS.items():
        for seed in seeds:
            checkpoint = load_checkpoint(runs / f"small-{kind}-{seed}" / "weights.safetensors")
            for site, samples in sites.items():
                pool = [sample for sample in samples if sample.split is Split.TRAIN]
                report = score(prepare(checkpoint, pool), samples)
                for direction in DIRECTIONS:
                    metrics = report["person", direction].metrics
                    key = (row, site, direction)
                    entry = entries.setdefault(
                        key,
                        {"row": row, "site": site, "direction": direction, "rank1": [], "mAP": [], "seeds": seeds,
                         "queries": metrics.queries, "gallery": metrics.gallery},
                    )  # fmt: skip
                    entry["rank1"].append(metrics.rank(1))  # type: ignore[attr-defined]
                    entry["mAP"].append(metrics.mAP)  # type: ignore[attr-defined]
    return list(entries.values())


def cell(entry: dict[str, object]) -> str:
    parts = []
    for key in ("rank1", "mAP"):
        values = [100 * value for value in entry[key]]  # type: ignore[attr-defined]
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        parts.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
    return " / ".join(parts)


def table(entries: list[dict[str, object]], site: str) -> str:
    """Markdown: rank-1 / mAP in percent, mean ± standard deviation over the seeds."""
    lines = [f"| {site} | " + " | ".join(DIRECTIONS) + " |", "|---" * (len(DIRECTIONS) + 1) + "|"]
    for row in ROWS:
        cells = [
            cell(e) for d in DIRECTIONS for e in entries if (e["row"], e["site"], e["direction"]) == (row, site, d)
        ]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data/street"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    entries = measure(options.runs, options.data, options.seeds)
    for site in ("street-a", "street-b"):
        print(table(entries, site), end="\n\n")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(entries, indent=1) + "\n")


if __name__ == "__main__":
    main()
