"""Measure what helps against corrupted images at test time: docs/results/corruption.md.

    python benchmarks/corruption.py --street STREET-B --vehicles VEHICLES --weights FOLDER

STREET-B and VEHICLES are manifests with rows of split train, query and gallery; FOLDER holds OSNet x0.25 checkpoints of
torchreid; what is not given is left out.  Unlabelled crops of split train, corrupted in the same way, are what the
methods measure.  The corrupted images and every figure are kept under benchmarks/results, so a second run continues.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from corruption_report import page

from reid.adaptation.site_adaptation import adapt
from reid.data.corruptions.corrupted_folder import write_corrupted
from reid.data.corruptions.corruption_types import CorruptionPlan
from reid.data.manifest import read_manifest
from reid.evaluation import evaluate
from reid.models.calibration import calibrate_checkpoint, replace_domains
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.norm import Profiles
from reid.records import Embeddings, Modality, Sample, Split
from reid.retrieval.embed import embed

BATCH = 64  # test crops whose statistics a row about batches uses
ADAPTED = 64  # crops of a camera that Tent and the matching of statistics use
DIRTY = CorruptionPlan(("spatter",), 4)  # mud on the lens of one camera
SEEDS = 3


@dataclass(frozen=True, eq=False)
class Place:
    """A network on a data set: the crops that are scored, and the unlabelled crops of the same cameras."""

    name: str
    weights: Path
    scored: Sequence[Sample]
    pool: Sequence[Sample]

    def checkpoint(self) -> Checkpoint:
        return load_checkpoint(self.weights, "osnet_x0_25")


@dataclass(frozen=True, eq=False)
class Trial:
    """Crops of one draw: what the methods may measure, and what is scored; ``clean`` is the pool as it was before."""

    checkpoint: Checkpoint
    clean: Sequence[Sample]
    pool: Sequence[Sample]
    scored: Sequence[Sample]
    seed: int

    def few(self, count: int, pool: Sequence[Sample] | None = None) -> list[Sample]:
        """Draw crops of each camera."""
        cameras = defaultdict(list)
        for sample in self.pool if pool is None else pool:
            cameras[sample.camera].append(sample)
        random = np.random.default_rng(self.seed)
        return [rows[i] for _, rows in sorted(cameras.items()) for i in random.permutation(len(rows))[:count]]

    def calibrated(self, samples: Sequence[Sample], prior: float = 0.0) -> Checkpoint:
        profiles = calibrate_checkpoint(self.checkpoint, samples, prior=prior, prior_from="network", seed=self.seed)
        return self.checkpoint.with_profiles(profiles)

    def embeddings(self, checkpoint: Checkpoint) -> Embeddings:
        return embed(checkpoint, self.scored)

    def renamed(self, names: Sequence[str], prior: float = 0.0) -> Embeddings:
        """Embed the scored crops with the statistics of the groups that ``names`` puts them in."""
        samples = [_with_camera(sample, name) for sample, name in zip(self.scored, names, strict=True)]
        found = embed(self.calibrated(samples, prior), samples)
        return replace(found, samples=tuple(self.scored))


def _with_camera(sample: Sample, camera: str) -> Sample:
    values = {name: getattr(sample, name) for name in Sample.__slots__}
    return Sample(**{**values, "camera": camera})


def by_batch(trial: Trial, prior: float = 0.0) -> Embeddings:
    """Use the statistics of each batch of scored crops, in random order, as a server would receive them."""
    order = np.random.default_rng(trial.seed).permutation(len(trial.scored))
    batches = max(1, len(order) // BATCH)
    names = [""] * len(order)
    for number, rows in enumerate(np.array_split(order, batches)):
        for row in rows.tolist():
            names[row] = f"batch {number}"
    return trial.renamed(names, prior)


def once(trial: Trial, count: int) -> Embeddings:
    """Measure one set of statistics for all cameras on a few crops, and keep it."""
    random = np.random.default_rng(trial.seed)
    drawn = [_with_camera(trial.pool[i], "all") for i in random.permutation(len(trial.pool))[:count]]
    samples = [_with_camera(sample, "all") for sample in trial.scored]
    return replace(embed(trial.calibrated(drawn), samples), samples=tuple(trial.scored))


def by_camera(trial: Trial, count: int, prior: float = 0.0) -> Embeddings:
    return trial.embeddings(trial.calibrated(trial.few(count), prior))


def adapted(trial: Trial, method: str) -> Embeddings:
    return trial.embeddings(adapt(trial.checkpoint, trial.few(ADAPTED), method, epochs=1, seed=trial.seed).checkpoint)


def repaired(trial: Trial, count: int, prior: float = 0.0) -> Embeddings:
    """Keep the clean statistics of all cameras but the dirty one, which is measured again on a few crops."""
    clean = calibrate_checkpoint(trial.checkpoint, trial.few(10**6, trial.clean), seed=trial.seed)
    dirty = sorted({one.camera for one, before in zip(trial.pool, trial.clean, strict=True) if one.path != before.path})
    return trial.embeddings(trial.checkpoint.with_profiles(_measured_again(trial, clean, dirty, count, prior)))


def _measured_again(trial: Trial, clean: Profiles, dirty: Sequence[str], count: int, prior: float) -> Profiles:
    if not count:
        return clean
    crops = [sample for sample in trial.few(count) if sample.camera in dirty]
    base = trial.checkpoint.with_profiles(clean) if prior else trial.checkpoint
    new = calibrate_checkpoint(base, crops, prior=prior, prior_from="network", seed=trial.seed)
    return replace_domains(clean, new)


Row = Callable[[Trial], Embeddings]
ROWS: dict[str, Row] = {
    "nothing": lambda t: t.embeddings(t.checkpoint),
    "statistics of each camera from clean crops": lambda t: t.embeddings(t.calibrated(t.few(10**6, t.clean))),
    "statistics of the batch (Nado), 64 crops": by_batch,
    "statistics of the batch with prior 16 (Schneider)": lambda t: by_batch(t, 16.0),
    "statistics of 32 crops, once (Benz)": lambda t: once(t, 32),
    "statistics of each camera, 8 crops": lambda t: by_camera(t, 8),
    "statistics of each camera, 8 crops, prior 16": lambda t: by_camera(t, 8, 16.0),
    "statistics of each camera, 32 crops": lambda t: by_camera(t, 32),
    "statistics of each camera, up to 256 crops": lambda t: by_camera(t, 256),
    "Tent about the gallery, 64 crops a camera": lambda t: adapted(t, "entropy"),
    "matching of BN statistics, 64 crops a camera": lambda t: adapted(t, "matching"),
}
DIRTY_ROWS: dict[str, Row] = {
    "nothing": ROWS["nothing"],
    "clean statistics of all cameras": lambda t: repaired(t, 0),
    "dirty camera measured again, 8 crops": lambda t: repaired(t, 8),
    "dirty camera measured again, 8 crops, prior 16": lambda t: repaired(t, 8, 16.0),
    "dirty camera measured again, 32 crops": lambda t: repaired(t, 32),
    "dirty camera measured again, up to 256 crops": lambda t: repaired(t, 256),
}


def corrupted(samples: Sequence[Sample], folder: Path, plan: CorruptionPlan, cameras: Sequence[str]) -> list[Sample]:
    manifest = write_corrupted(samples, folder, plan, cameras=cameras)
    paths = [sample.path for sample in read_manifest(manifest)]
    return [
        Sample(**{**{name: getattr(sample, name) for name in Sample.__slots__}, "path": path})
        for sample, path in zip(samples, paths, strict=True)
    ]


def scores(embeddings: Embeddings) -> dict[str, dict[str, float]]:
    """Score the visible crops, plain and with normalized scores."""
    found = {}
    for result in evaluate(embeddings, score_norm="snorm").results:
        metrics = result.metrics
        found[result.score_norm] = {"mINP": metrics.mINP, "mAP": metrics.mAP, "rank1": metrics.rank(1)}
    return found


def measure(place: Place, rows: dict[str, Row], scenario: str, seeds: int, folder: Path) -> None:
    """Measure all rows of a place that are not in its file yet."""
    file = folder / f"{place.name} {scenario}.json".replace(" ", "-").replace(",", "")
    known = json.loads(file.read_text()) if file.exists() else {}
    checkpoint, first = place.checkpoint(), sorted({sample.camera for sample in place.scored})[0]
    for seed in [-1, *range(seeds)]:  # -1: clean
        if scenario == "dirty":
            plan, cameras = replace(DIRTY, seed=max(seed, 0)), [first]
        else:
            plan, cameras = CorruptionPlan(seed=max(seed, 0)), []
        missing = [name for name in rows if f"{name}|{seed}" not in known]
        if not missing:
            continue
        pool, scored = list(place.pool), list(place.scored)
        if seed >= 0:
            images = folder / "images" / f"{place.name} {scenario} {seed}".replace(" ", "-").replace(",", "")
            pool = corrupted(pool, images.with_suffix(".pool"), plan, cameras)
            scored = corrupted(scored, images.with_suffix(".scored"), plan, cameras)
        trial = Trial(checkpoint, place.pool, pool, scored, max(seed, 0))
        for name in missing:
            known[f"{name}|{seed}"] = scores(rows[name](trial))
            file.write_text(json.dumps(known, indent=1))
            print(place.name, scenario, name, seed, known[f"{name}|{seed}"]["none"], flush=True)


def some(samples: Sequence[Sample], category: str, identities: int) -> tuple[list[Sample], list[Sample]]:
    """Divide the visible crops of a category into those of the first identities to score, and those of split train."""
    visible = [s for s in samples if s.category == category and s.modality is Modality.VISIBLE]
    test = [s for s in visible if s.split is not Split.TRAIN]
    kept = set(list(dict.fromkeys(s.identity for s in test))[:identities])
    return [s for s in test if s.identity in kept], [s for s in visible if s.split is Split.TRAIN]


def places(arguments: argparse.Namespace) -> list[Place]:
    found = []
    if arguments.vehicles is not None:
        samples = read_manifest(arguments.vehicles)
        for source in ("msmt17", "market1501"):
            weights = arguments.weights / f"osnet_x0_25_{source}.pth"
            found.append(Place(f"vehicles, {source}", weights, *some(samples, "vehicle", arguments.identities)))
    if arguments.street is not None:
        weights, samples = arguments.weights / "osnet_x0_25_msmt17.pth", read_manifest(arguments.street)
        found.insert(1, Place("street people, msmt17", weights, *some(samples, "person", arguments.people)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--street", type=Path)
    parser.add_argument("--vehicles", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--people", type=int, default=30)
    parser.add_argument("--identities", type=int, default=60, help="Vehicles that are scored.")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "corruption")
    parser.add_argument("--page", type=Path, default=Path(__file__).parents[1] / "docs" / "results" / "corruption.md")
    arguments = parser.parse_args()
    arguments.results.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    found = places(arguments)
    for place in found:
        measure(place, ROWS, "random", arguments.seeds, arguments.results)
        measure(place, DIRTY_ROWS, "dirty", arguments.seeds, arguments.results)
    sizes = "; ".join(f"{one.name}: {len(one.scored)} scored crops, {len(one.pool)} to measure" for one in found)
    arguments.page.write_text(page(arguments.results, sizes), encoding="utf-8")


if __name__ == "__main__":
    main()
