"""Measure which normalizations tame a small GAN: docs/results/generation.md.

    python benchmarks/generation.py --data STREET-A/manifest.csv --steps 3000 --rates 1e-4 4e-4 1e-3 --seeds 3

Every generator is trained against every discriminator at 64 x 32, at every learning rate and with every seed, on the
crops of split train.  The table has the diversity at the end, the collapses, and three distances between drawn and
recorded crops by embeddings of the shipped network.  Trainings resume, and every figure is kept under
benchmarks/results, so a second run continues.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import median

import torch

from reid.data.manifest import read_manifest
from reid.errors import ConfigError
from reid.generation.drawn_crops import at_drawn_size, write_drawn
from reid.generation.generator_networks import DISCRIMINATORS, GENERATORS
from reid.generation.generator_training import COLLAPSED, Stage, is_collapsed, train_generator
from reid.generation.sample_scores import compare_samples, floor_scores
from reid.generation.step_training import StepPlan, trained_samples
from reid.pipeline import load_checkpoint, with_unseen_cameras
from reid.records import FloatArray, Sample
from reid.retrieval.embed import embed

Figures = dict[str, float]


def features(samples: Sequence[Sample]) -> FloatArray:
    """Embed crops at the size of drawn ones, as if from one unknown camera."""
    rows = [Sample(sample.path) for sample in samples]
    checkpoint = with_unseen_cameras(load_checkpoint(), rows, "prior")
    return embed(checkpoint, rows, change=at_drawn_size).vectors


def measure(
    samples: Sequence[Sample], recorded: FloatArray, stage: Stage, plan: StepPlan, folder: Path, count: int
) -> Figures:
    """Train one cell of the grid, draw crops with it, and compare them with the recorded ones."""
    try:
        weights = train_generator(samples, folder / "run", plan, stage)
    except ConfigError as error:
        if "diverged" not in str(error):
            raise
        return {"diverged": 1.0}
    history = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    manifest = write_drawn(weights, folder / "drawn", count, plan.seed)
    scores = compare_samples(recorded, features(read_manifest(manifest)), plan.seed)
    last = {name: value for name, value in history[-1].items() if name.startswith("layer_")}
    smallest = [value for name, value in last.items() if name.endswith("smallest") and not name.startswith("layer_4")]
    return {
        "diverged": 0.0,
        "collapsed": float(is_collapsed(history)),
        "diversity": history[-1]["diversity"],
        "largest": max(value for name, value in last.items() if name.endswith("largest")),
        "smallest": min(smallest),
        "largest at first": max(value for name, value in history[0].items() if name.endswith("largest")),
        **asdict(scores),
    }


def page(found: Mapping[str, Figures], floor: Figures, words: str) -> str:
    """Write the results page."""
    cells: dict[tuple[str, str, str], list[Figures]] = {}
    for key, figures in sorted(found.items()):
        generator, discriminator, rate, _ = key.split("|")
        cells.setdefault((generator, discriminator, rate), []).append(figures)
    lines = [
        "# Which normalizations tame a small GAN",
        "",
        "One stage of a generator and a discriminator at 64 x 32 ([how it is built](../generation.md)). Every row is a",
        "generator against a discriminator at a learning rate. Distances are between drawn and recorded crops of split",
        "train, by embeddings of the shipped network, both at 64 x 32; smaller is better, and for the AUC 0.5 is best.",
        f"Diversity is the distance between drawn crops over that between recorded ones; below {COLLAPSED} a generator",
        "counts as collapsed. Singular values are those of the discriminator's weights as matrices, the largest of all",
        "layers after the first round and at the end, and the smallest of its convolutions at the end.",
        "",
        words,
        "",
        "| generator | discriminator | learning rate | seeds | collapsed | diversity | Frechet | KID | AUC | largest"
        " singular value, first → last | smallest |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (generator, discriminator, rate), runs in cells.items():
        whole = [figures for figures in runs if not figures["diverged"]]
        failed = sum(figures.get("collapsed", 1.0) for figures in runs)
        shown = [f"{failed:.0f} of {len(runs)}"]
        if whole:
            mid = {name: median(figures[name] for figures in whole) for name in whole[0]}
            shown += [
                f"{mid['diversity']:.2f}",
                f"{mid['frechet']:.3f}",
                f"{mid['kernel']:.4f}",
                f"{mid['auc']:.3f}",
                f"{mid['largest at first']:.2f} → {mid['largest']:.2f}",
                f"{mid['smallest']:.2f}",
            ]
        lines.append(f"| {generator} | {discriminator} | {rate} | {len(runs)} | {' | '.join(shown)} |")
    kernel = f"{floor['kernel']:.4f}"
    lines += [
        f"| two halves of the recorded crops | | | | | | {floor['frechet']:.3f} | {kernel} | {floor['auc']:.3f} | | |",
        "",
        "With several seeds, all figures but the collapses are medians.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rates", nargs="+", default=["1e-4", "4e-4", "1e-3"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=500, help="Crops to draw.")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "generation")
    parser.add_argument("--page", type=Path, default=Path(__file__).parents[1] / "docs" / "results" / "generation.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    samples = [sample for sample in trained_samples(read_manifest(arguments.data)) if sample.category == "person"]
    arguments.results.mkdir(parents=True, exist_ok=True)
    file = arguments.results / f"{arguments.steps}-steps.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    recorded = features(samples)
    words = (
        f"Street-a, {len(samples)} crops of people, {arguments.steps} steps of {arguments.batch} crops,"
        f" {arguments.count} drawn crops."
    )
    for seed, rate, generator, discriminator in product(
        range(arguments.seeds), arguments.rates, GENERATORS, DISCRIMINATORS
    ):
        key = f"{generator}|{discriminator}|{rate}|{seed}"
        if key not in known:
            plan = StepPlan(arguments.steps, arguments.batch, float(rate), seed, max(1, arguments.steps // 8))
            folder = arguments.results / f"{arguments.steps}" / key.replace("|", "-")
            stage = Stage(generator, discriminator)
            known[key] = measure(samples, recorded, stage, plan, folder, arguments.count)
            file.write_text(json.dumps(known, indent=1))
            print(key, known[key], flush=True)
    arguments.page.write_text(page(known, asdict(floor_scores(recorded)), words), encoding="utf-8")


if __name__ == "__main__":
    main()
