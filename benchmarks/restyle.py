"""Measure whether crops in the style of other cameras help a training: docs/results/restyle.md.

    reid synth data/street
    reid synth data/street-train --identities 0 --train-identities 400 --train-vehicles 0 --site street-a
    python benchmarks/restyle.py --seeds 3

Crops of two labelled cameras are restyled to two others, and scripts/experiments/generation/restyle.toml is trained.
Restyled crops and trainings are kept under runs/restyle, so the same command continues after an interruption.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reid.cli.sweep import _provenance
from reid.data.images import read_image
from reid.data.manifest import read_manifest, write_manifest
from reid.files import write_whole
from reid.generation.camera_style import CameraStyle, measure_style, style_distance
from reid.generation.restyle_plan import RestylePlan
from reid.generation.restyled_folder import to_pixels
from reid.generation.restyling import RestyleRequest, restyle_crops
from reid.pipeline import shipped_weights
from reid.records import Modality, Sample, Split
from reid.training.sweep import page, run_sweep
from reid.training.sweep_file import load_sweep

LABELLED, OTHERS = ("a1", "a2"), ("a3", "a4")
METHODS = ("moments", "adain")
WORK = Path("runs/restyle")
SWEEP = Path(__file__).parents[1] / "scripts/experiments/generation/restyle.toml"
SHOWN = 200  # crops of a camera whose distance is measured


def visible_people(manifest: Path) -> list[Sample]:
    """The crops of split train that visible cameras took of people."""
    rows = [s for s in read_manifest(manifest) if s.category == "person" and s.split is Split.TRAIN]
    return [sample for sample in rows if sample.modality is Modality.VISIBLE]


def restyle_all(samples: Sequence[Sample]) -> None:
    """Write the manifest of the labelled cameras, and restyle their crops by each method."""
    WORK.mkdir(parents=True, exist_ok=True)
    write_manifest([sample for sample in samples if sample.camera in LABELLED], WORK / "labelled.csv")
    for method in METHODS:
        restyle_crops(samples, RestylePlan(LABELLED, OTHERS), RestyleRequest(method, shipped_weights()), WORK / method)


def pixel_style(samples: Sequence[Sample]) -> CameraStyle:
    return measure_style(to_pixels(read_image(sample.path))[None] for sample in samples[:SHOWN])


def mean_distance(samples: Sequence[Sample], style: CameraStyle) -> float:
    found = [style_distance(to_pixels(read_image(sample.path))[None], style) for sample in samples[:SHOWN]]
    return sum(float(one) for one in found) / len(found)


def distance_table(samples: Sequence[Sample]) -> str:
    """How far crops are from the style of their target, before and after; and how far the target's own crops are."""
    lines = ["| distance of crops to the pixel style of | " + " | ".join(OTHERS) + " |", "|---|---|---|"]
    of_camera = {camera: [s for s in samples if s.camera == camera] for camera in (*LABELLED, *OTHERS)}
    styles = {camera: pixel_style(of_camera[camera]) for camera in OTHERS}
    rows = {
        "its own crops": of_camera,
        "crops of a1": dict.fromkeys(OTHERS, of_camera["a1"]),
        "crops of a2": dict.fromkeys(OTHERS, of_camera["a2"]),
    }
    for method in METHODS:
        made = read_manifest(WORK / method / "manifest.csv")
        rows[f"restyled by {method}"] = {camera: [s for s in made if s.camera == camera] for camera in OTHERS}
    for name, crops in rows.items():
        found = " | ".join(f"{mean_distance(crops[camera], styles[camera]):.2f}" for camera in OTHERS)
        lines.append(f"| {name} | {found} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, default=Path("data/street-train/street-a/manifest.csv"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report", type=Path, default=Path("docs/results/restyle.md"))
    options = parser.parse_args()
    samples = visible_people(options.train)
    restyle_all(samples)
    sweep = load_sweep(SWEEP, options.seeds)
    outcome = run_sweep(sweep, WORK / "sweep", progress=True, say=lambda line: print(line, file=sys.stderr))
    people = tuple(score for score in outcome.scores if score.category == "person")  # the sites have vehicles as well
    outcome = replace(outcome, scores=people)
    stamp = {**_provenance(), "command": f"`python benchmarks/restyle.py --seeds {options.seeds}`"}
    text = page(sweep, outcome, {"training": f"{len({s.identity for s in samples})} people", **stamp})
    text = text.replace("\nRank-1 / mAP", f"\n{distance_table(samples)}\n\nRank-1 / mAP", 1)
    write_whole(options.report, lambda part: part.write_text(text, encoding="utf-8"), private=False)
    print(text)


if __name__ == "__main__":
    main()
