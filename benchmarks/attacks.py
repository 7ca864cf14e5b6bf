"""Measure attacks on queries, their transfer between networks, and trainings against them: docs/results/attacks.md.

    python benchmarks/attacks.py --street FOLDER --vehicles VEHICLES --weights FOLDER

FOLDER of the street holds ``street-a`` and ``street-b``; VEHICLES is a manifest with rows of split query and gallery;
FOLDER of the weights holds OSNet x0.25 checkpoints of torchreid. What is not given is left out. Every figure is kept
under benchmarks/results, so a second run continues.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attacks_report import page

from reid.config import parse_config
from reid.data.corruptions.corrupted_folder import write_corrupted
from reid.data.corruptions.corruption_types import CorruptionPlan
from reid.data.manifest import read_manifest
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.norm import extract
from reid.pipeline import shipped_weights
from reid.records import Embeddings, Modality, Sample, Split
from reid.retrieval.embed import embed
from reid.robustness.attack_aims import aim_vectors
from reid.robustness.attack_methods import METHODS, AttackPlan
from reid.robustness.attack_scores import score_attack
from reid.robustness.attacked_folder import write_attacked
from reid.robustness.gate_alarm import alarm_of, probabilities_of
from reid.training.training_run import train

PLANS: dict[str, AttackPlan] = {
    "odfa ifgsm linf 8": AttackPlan("odfa", "ifgsm", "linf", 8),
    "random linf 8": AttackPlan("odfa", "random", "linf", 8, 10),
    "odfa mifgsm linf 8": AttackPlan("odfa", "mifgsm", "linf", 8),
    "odfa ifgsm linf 2": AttackPlan("odfa", "ifgsm", "linf", 2),
    "odfa ifgsm linf 4": AttackPlan("odfa", "ifgsm", "linf", 4),
    "odfa fgsm linf 8": AttackPlan("odfa", "fgsm", "linf", 8),
    "self ifgsm linf 8": AttackPlan("self", "ifgsm", "linf", 8),
    "push ifgsm linf 8": AttackPlan("push", "ifgsm", "linf", 8),
    "pull ifgsm linf 8": AttackPlan("pull", "ifgsm", "linf", 8),
    "odfa ifgsm l2 2": AttackPlan("odfa", "ifgsm", "l2", 2),
    "odfa ifgsm l1 2": AttackPlan("odfa", "ifgsm", "l1", 2),
    "odfa ifgsm linf 16": AttackPlan("odfa", "ifgsm", "linf", 16),
    "odfa pgd linf 8": AttackPlan("odfa", "pgd", "linf", 8),
    "universal odfa linf 8": AttackPlan("odfa", "ifgsm", "linf", 8, 2, universal=True),
}
TRANSFERRED = ("odfa ifgsm linf 8", "odfa mifgsm linf 8", "odfa ifgsm linf 16")
DEFENCES: dict[str, dict[str, Any]] = {
    "plain": {"defence": {"method": "none"}},
    "free": {"defence": {"method": "free"}},
    "shared": {"defence": {"method": "shared"}},
    "gated": {"norm": {"system": "gated_first", "affine": "domain"}, "defence": {"method": "gated"}},
    "anti_collapse": {"defence": {"method": "anti_collapse"}},
}
# What trained networks meet: stronger than in the training, where three steps are made.
TESTS: dict[str, AttackPlan] = {
    "odfa linf 4": AttackPlan("odfa", "ifgsm", "linf", 4, 10),
    "self linf 4": AttackPlan("self", "pgd", "linf", 4, 10),
    "self l2 4": AttackPlan("self", "pgd", "l2", 4, 10),
    "self l1 4": AttackPlan("self", "pgd", "l1", 4, 10),
}
Rows = list[Sample]


@dataclass(frozen=True, eq=False)
class Place:
    """Queries and gallery, the networks that see them, and crops to make universal noise on."""

    name: str
    queries: Rows
    gallery: Rows
    pool: Rows
    networks: dict[str, Checkpoint]


def embedded(checkpoint: Checkpoint, samples: Sequence[Sample], _title: str) -> Embeddings:
    return embed(checkpoint, samples)


class Figures:
    """The figures of a file, which are written as they come."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    def add(self, key: str, measure: Callable[[], object]) -> None:
        if key in self.known:
            return
        started = time.perf_counter()
        self.known[key] = measure()
        self.file.write_text(json.dumps(self.known, indent=1))
        print(f"{time.perf_counter() - started:6.1f} s  {self.file.stem}  {key}  {self.known[key]}", flush=True)


def attacked(checkpoint: Checkpoint, place: Place, plan: AttackPlan, folder: Path) -> Rows:
    """Attack the queries of a place, in a folder that a later run continues."""
    other = None
    if METHODS[plan.method].needs_gallery:
        other = aim_vectors(plan.method, embed(checkpoint, place.queries), embed(checkpoint, place.gallery))
    samples = [*place.queries, *place.gallery]
    rows = range(len(place.queries))
    manifest = write_attacked(checkpoint, samples, rows, folder, plan, other=other, noise_from=place.pool)
    return list(read_manifest(manifest)[: len(place.queries)])


def scores(checkpoint: Checkpoint, place: Place, changed: Rows) -> dict[str, float]:
    found = score_attack(checkpoint, place.queries, changed, place.gallery, embedded)
    (one,) = found.results
    return {
        "cosine": found.cosine,
        "changed": found.changed,
        "clean_rank1": one.clean_rank1,
        "clean_mAP": one.clean_mAP,
        "rank1": one.attacked_rank1,
        "mAP": one.attacked_mAP,
    }


def measure_plan(place: Place, plan_name: str, folder: Path, limit: float) -> None:
    """Attack every network of a place by one plan, and try some of the images on the others."""
    figures = Figures(folder / f"{slug(place.name)}.json")
    figures.add("queries", lambda: len(place.queries))
    figures.add("gallery", lambda: len(place.gallery))
    for name, checkpoint in place.networks.items():
        targets = place.networks if plan_name in TRANSFERRED else {name: checkpoint}
        keys = [f"{plan_name}|{name}|{target}" for target in targets]
        if all(key in figures.known for key in keys) or time.monotonic() > limit:
            continue
        images = folder / "images" / slug(f"{place.name} {name} {plan_name}")
        changed = attacked(checkpoint, place, PLANS[plan_name], images)
        for key, target in zip(keys, targets.values(), strict=True):
            figures.add(key, partial(scores, target, place, changed))


def measure_defences(street: Path, start: Path, folder: Path, seeds: int, limit: float) -> None:
    """Train against attacks on street-a, and attack the results, on people who took no part."""
    figures = Figures(folder / "defences.json")
    samples = visible(read_manifest(street / "street-a" / "manifest.csv"), "person")
    place = Place("street-a people", *some(samples, 30, 1), [], {})
    figures.add("queries", lambda: len(place.queries))
    figures.add("gallery", lambda: len(place.gallery))
    for seed in range(seeds):
        for name in DEFENCES:
            weights = folder / "runs" / f"{name}-{seed}" / "weights.safetensors"
            if not weights.exists():
                if time.monotonic() > limit:
                    continue
                started = time.perf_counter()
                train(experiment(name, seed, street, start), weights.parent)
                figures.add(f"seconds|{name}|{seed}", partial(round, time.perf_counter() - started, 1))
            checkpoint = load_checkpoint(weights)
            measure_defence(figures, checkpoint, place, f"{name}|{seed}", folder)
            if name == "gated":
                known = {branch: branch_of(checkpoint, branch) for branch in checkpoint.domains}
                for test in TESTS:
                    measure_test(figures, known[test.split()[1]], place, test, f"branch known|{seed}", folder)
                figures.add(f"clean|branch known|{seed}", partial(scores, known["clean"], place, place.queries))
                figures.add(f"alarm|{seed}", partial(alarms, checkpoint, place, street, folder, seed))


def measure_defence(figures: Figures, checkpoint: Checkpoint, place: Place, key: str, folder: Path) -> None:
    figures.add(f"clean|{key}", partial(scores, checkpoint, place, place.queries))
    for test in TESTS:
        measure_test(figures, checkpoint, place, test, key, folder)


def measure_test(figures: Figures, checkpoint: Checkpoint, place: Place, test: str, key: str, folder: Path) -> None:
    if f"{test}|{key}" in figures.known:
        return
    images = folder / "images" / slug(f"defence {key} {test}")
    changed = attacked(checkpoint, place, TESTS[test], images)
    figures.add(f"{test}|{key}", partial(scores, checkpoint, place, changed))


def branch_of(checkpoint: Checkpoint, branch: str) -> Checkpoint:
    """The network with the statistics of one branch: what a gate that is always right would give."""
    return checkpoint.with_network(extract(checkpoint.network, branch), (), {})


def alarms(checkpoint: Checkpoint, place: Place, street: Path, folder: Path, seed: int) -> dict[str, float]:
    """The share of crops that raise the alarm: clean ones of known and of new cameras, corrupted and attacked ones."""
    alarm = alarm_of(checkpoint)
    if alarm is None:
        raise SystemExit("the gated network has no alarm")
    other = visible(read_manifest(street / "street-b" / "manifest.csv"), "person")
    corrupted = write_corrupted(place.gallery[:200], folder / "images" / f"corrupted-{seed}", CorruptionPlan(seed=seed))
    crops = {
        "clean, cameras of the training": place.gallery,
        "clean, cameras of street-b": some(other, 30, 1)[1],
        "corrupted, cameras of the training": list(read_manifest(corrupted)),
    }
    for test in TESTS:
        images = folder / "images" / slug(f"defence gated|{seed} {test}")
        crops[f"attacked, {test}"] = list(read_manifest(images / "manifest.csv")[: len(place.queries)])
    raised = {
        name: float((probabilities_of(checkpoint, rows) > alarm.threshold).mean()) for name, rows in crops.items()
    }
    return {"threshold": alarm.threshold, "stated rate": alarm.false_alarm_rate, **raised}


def experiment(name: str, seed: int, street: Path, start: Path) -> Any:
    table: dict[str, Any] = {
        "data": {
            "manifests": [str(street / "street-a" / "manifest.csv")],
            "categories": ["person"],
            "size": [96, 48],
        },
        "network": {"backbone": "osnet_x0_25", "weights": str(start)},
        "train": {
            "seed": seed,
            "epochs": 12,
            "identities_per_batch": 8,
            "images_per_identity": 4,
            "visits": 1,
            "balance": "camera",
            "learning_rate": 1e-3,
            "warmup_epochs": 1,
            "triplet_start": 0,
            "triplet_ramp": 1,
            "threads": 1,
            "device": "cpu",
        },
        "augment": {"pad": 4, "erase": 0.0},
    }
    return parse_config({**table, **DEFENCES[name]}, "benchmarks/attacks.py")


def slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text)


def visible(samples: Sequence[Sample], category: str) -> Rows:
    return [s for s in samples if s.category == category and s.modality is Modality.VISIBLE]


def some(samples: Rows, identities: int, each: int) -> tuple[Rows, Rows]:
    """The first ``each`` queries of the first identities, and all gallery crops of these identities."""
    queries, gallery = ([s for s in samples if s.split is split] for split in (Split.QUERY, Split.GALLERY))
    kept = list(dict.fromkeys(s.identity for s in queries))[:identities]
    chosen = [s for name in kept for s in [q for q in queries if q.identity == name][:each]]
    return chosen, [s for s in gallery if s.identity in set(kept)]


def places(arguments: argparse.Namespace) -> list[Place]:
    def public(source: str) -> Checkpoint:
        return load_checkpoint(arguments.weights / f"osnet_x0_25_{source}.pth", "osnet_x0_25")

    networks = {f"OSNet {source}": public(source) for source in ("msmt17", "market1501")}
    found = []
    if arguments.street is not None:
        samples = read_manifest(arguments.street / "street-a" / "manifest.csv")
        people = visible(samples, "person")
        pool = [s for s in people if s.split is Split.TRAIN][:64]
        shipped = load_checkpoint(shipped_weights())
        chosen, gallery = some(people, arguments.people, 1)
        seen = {"ResNet shipped": shipped, "OSNet msmt17": networks["OSNet msmt17"]}
        found.append(Place("street-a people", chosen, gallery, pool, seen))
    if arguments.vehicles is not None:
        samples = list(read_manifest(arguments.vehicles))
        pool = [s for s in samples if s.split is Split.TRAIN][:48]
        chosen = some(samples, arguments.identities, 1)[0]
        gallery = [s for s in samples if s.split is Split.GALLERY]
        found.append(Place("vehicles", chosen, gallery, pool, networks))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--street", type=Path)
    parser.add_argument("--vehicles", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--people", type=int, default=30, help="People of the street who are queries.")
    parser.add_argument("--identities", type=int, default=30, help="Vehicles that are queries.")
    parser.add_argument("--seeds", type=int, default=1, help="Seeds of the trainings.")
    parser.add_argument("--minutes", type=float, default=90.0, help="Begin nothing new after so many minutes.")
    parser.add_argument("--only", choices=["attacks", "defences", "page"])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "attacks")
    parser.add_argument("--page", type=Path, default=Path(__file__).parents[1] / "docs" / "results" / "attacks.md")
    arguments = parser.parse_args()
    (arguments.results / "images").mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    np.seterr(all="raise")
    limit = time.monotonic() + 60 * arguments.minutes
    if arguments.street is not None and arguments.only in (None, "defences"):
        start = shipped_weights().with_name("small-plain.safetensors")
        measure_defences(arguments.street, start, arguments.results, arguments.seeds, limit)
    if arguments.only in (None, "attacks"):
        found = places(arguments)
        for plan_name in PLANS:
            for place in found:
                measure_plan(place, plan_name, arguments.results, limit)
    arguments.page.write_text(page(arguments.results), encoding="utf-8")


if __name__ == "__main__":
    main()
