"""The places of benchmarks/label_free.py: unlabelled crops to adapt to, and labelled crops of others to score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reid.data.manifest import read_manifest
from reid.data.protocols.protocol_table import Rule
from reid.records import Modality, Sample, Split

APART, MIXED = Rule(), Rule(modalities="mixed")


@dataclass(frozen=True, eq=False)
class Place:
    """A site or data set.

    Attributes:
        name: Its name in the results.
        pool: Crops whose labels are not used.
        scored: Queries and gallery; nobody of them is in the pool unless the place says so.
        rules: The rules to score by.
    """

    name: str
    pool: Sequence[Sample]
    scored: Sequence[Sample]
    rules: tuple[Rule, ...] = (APART,)


def street(name: str, folder: Path) -> dict[str, Place]:
    """The people of a site of the street: with all cameras, with the visible ones, and with thinned crops."""
    people = [sample for sample in read_manifest(folder / "manifest.csv") if sample.category == "person"]
    pool, scored = of_split(people, Split.TRAIN), [sample for sample in people if sample.split is not Split.TRAIN]
    every = {
        "": Place(name, pool, scored, (APART, MIXED)),
        "visible": Place(f"{name} visible", visible(pool), visible(scored)),
        "uneven": Place(f"{name}, unequal numbers of crops", unequal_numbers(pool), scored, (APART, MIXED)),
        "one camera": Place(f"{name}, half of the people in one camera", one_camera(pool), scored, (APART, MIXED)),
        "transductive": Place(f"{name}, adapted to the scored crops", unlabelled(scored), scored, (APART, MIXED)),
    }
    return {f"{name} {kind}".strip(): place for kind, place in every.items()}


def vehicles(folder: Path) -> Place:
    """Two road cameras: 507 vehicles to adapt to, and 60 others to score."""
    samples = read_manifest(folder / "manifest.csv")
    return Place("vehicles", of_split(samples, Split.TRAIN), [s for s in samples if s.split is not Split.TRAIN])


def characters(folder: Path) -> Place:
    """Handwritten characters without cameras: 40 to adapt to, and 40 others to score."""
    samples = read_manifest(folder / "manifest.csv")
    scored = [sample for sample in samples if sample.split is not Split.TRAIN]
    return Place("characters", of_split(samples, Split.TRAIN), scored)


def of_split(samples: Sequence[Sample], split: Split) -> list[Sample]:
    return [sample for sample in samples if sample.split is split]


def visible(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.modality is Modality.VISIBLE]


def unlabelled(samples: Sequence[Sample]) -> list[Sample]:
    """The same crops as a pool: each image once, of split train and without an identity."""
    images = {sample.path: sample for sample in samples}.values()
    return [Sample(s.path, "", s.camera, s.modality, s.category, Split.TRAIN) for s in images]


def unequal_numbers(samples: Sequence[Sample], seed: int = 0) -> list[Sample]:
    """Keep of each person and camera 1 to all crops, each number as likely."""
    random = np.random.default_rng(seed)
    return _keep(samples, lambda rows: random.permutation(rows)[: random.integers(1, len(rows) + 1)].tolist())


def one_camera(samples: Sequence[Sample], seed: int = 0) -> list[Sample]:
    """Keep every second person in one camera only, drawn at random."""
    random = np.random.default_rng(seed)
    cameras = sorted({sample.camera for sample in samples})
    people = sorted({sample.identity for sample in samples})
    only = {person: cameras[random.integers(len(cameras))] for person in people[::2]}
    return [sample for sample in samples if only.get(sample.identity, sample.camera) == sample.camera]


def _keep(samples: Sequence[Sample], choose: Callable[[list[int]], list[int]]) -> list[Sample]:
    groups: dict[tuple[str, str], list[int]] = {}
    for row, sample in enumerate(samples):
        groups.setdefault((sample.identity, sample.camera), []).append(row)
    return [samples[row] for row in sorted(row for rows in groups.values() for row in choose(rows))]


def all_places(
    streets: Mapping[str, Path], vehicle_folder: Path | None, character_folder: Path | None
) -> dict[str, Place]:
    """The places by name; what is not given is left out."""
    found = {}
    for name, folder in streets.items():
        found |= street(name, folder)
    found |= {"vehicles": vehicles(vehicle_folder)} if vehicle_folder else {}
    return found | ({"characters": characters(character_folder)} if character_folder else {})
