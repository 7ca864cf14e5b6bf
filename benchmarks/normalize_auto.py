"""Judge ``--normalize auto`` by its regret: docs/results/normalize-auto.md.

    python benchmarks/normalize_auto.py --street STREET --vehicles VEHICLES --characters CHARACTERS --weights FOLDER

VEHICLES and CHARACTERS are manifests with rows of split train, query and gallery, FOLDER holds OSNet x0.25 checkpoints
of torchreid; what is not given is left out.  For each place, that is a network on a data set, the script scores every
combination of levels (statistics, centering, and the normalization of scores), and the combination that auto chooses
from the unlabelled crops of split train.  Regret is the mAP that the choice lacks against the best combination.  Labels
are used for scoring only.  What has been measured is kept under benchmarks/results, so a second run continues.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from normalize_auto_report import page

from reid.data.manifest import read_manifest
from reid.evaluation import evaluate
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.records import Embeddings, FloatArray, Sample, Split, domain_of
from reid.retrieval.camera_measurement import CameraMeasurement
from reid.retrieval.camera_normalization import MOST_OF_COHORT, group_crops, normalize_cameras
from reid.retrieval.centering import camera_means, centered
from reid.retrieval.cohort_rows import CohortRows
from reid.retrieval.embed import embed
from reid.retrieval.normalization_candidates import candidate_vectors, draw_compared, vectors_by_halves
from reid.retrieval.normalization_choice import CameraLevels, LevelsChoice, choose_levels, parse_normalization
from reid.retrieval.normalization_report import choose_score_norm
from reid.retrieval.score_normalization import SCORE_NORMS

SHIPPED = Path(__file__).resolve().parents[1] / "demo" / "weights"
SCORED = 40  # people, and vehicles, of a site of the street that are scored


@dataclass(frozen=True, eq=False)
class Place:
    """A network on a data set: unlabelled crops to measure, and labelled ones to score, one list for each result."""

    name: str
    weights: Path
    pool: Sequence[Sample]
    scored: Mapping[str, Sequence[Sample]]

    def checkpoint(self) -> Checkpoint:
        return load_checkpoint(self.weights, "osnet_x0_25" if self.weights.suffix == ".pth" else None)


def vehicles(manifest: Path, weights: Path) -> Place:
    """Two road cameras: the test vehicles, and all vehicles with every crop as a query and in the gallery."""
    samples = read_manifest(manifest)
    test = [sample for sample in samples if sample.split is not Split.TRAIN]
    every = [replace_split(sample, split) for split in (Split.QUERY, Split.GALLERY) for sample in samples]
    return Place(f"vehicles, {weights.stem}", weights, train(samples), {"60 for testing": test, "all 567": every})


def characters(manifest: Path, weights: Path) -> Place:
    """Handwritten characters; the person who drew one takes the part of the camera."""
    samples = [
        Sample(s.path, s.identity, f"drawer {s.path.stem[-2:]}", s.modality, s.category, s.split)
        for s in read_manifest(manifest)
    ]
    return Place(f"characters, {weights.stem}", weights, train(samples), {"by drawer": test_rows(samples)})


def street(folder: Path, site: str, category: str, weights: Path) -> Place:
    """A site of the synthetic street with two infrared cameras among six."""
    samples = [sample for sample in read_manifest(folder / site / "manifest.csv") if sample.category == category]
    chosen = set(sorted({sample.identity for sample in test_rows(samples)})[:SCORED])
    scored = [sample for sample in test_rows(samples) if sample.identity in chosen]
    return Place(f"{site}, {category}, {weights.stem}", weights, train(samples), {"": scored})


def train(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.split is Split.TRAIN]


def test_rows(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.split is not Split.TRAIN]


def replace_split(sample: Sample, split: Split) -> Sample:
    return Sample(sample.path, sample.identity, sample.camera, sample.modality, sample.category, split)


class Vectors:
    """The vectors of the crops of a place, kept in a folder so that a run that was stopped goes on where it was."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.checkpoint = place.checkpoint()
        self.fields = self.checkpoint.domain_fields or ("camera",)
        self.pool = list(place.pool)
        crops = {sample.path: sample for rows in (place.pool, *place.scored.values()) for sample in rows}
        self.samples = list(crops.values())
        self.file = folder / f"{place.name.replace(', ', '-')}.npz"
        self.kept = dict(np.load(self.file)) if self.file.is_file() else {}

    def once(self, name: str, compute: Callable[[], FloatArray]) -> FloatArray:
        """Return what ``compute`` returns, or returned in an earlier run."""
        if name not in self.kept:
            self.kept[name] = compute()
            self.file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(self.file, **self.kept)
        return self.kept[name]

    def by_levels(self) -> dict[str, dict[Path, FloatArray]]:
        """The vector of every crop by each combination of levels; the centers come from the pool."""
        in_pool = {sample.path for sample in self.pool}
        pool = np.array([row for row, sample in enumerate(self.samples) if sample.path in in_pool])
        found = {}
        for statistics in (False, True):
            name = "statistics" if statistics else "none"
            vectors = self.once(name, lambda name=name: self._embed(name))  # type: ignore[misc]
            embeddings = Embeddings(tuple(self.samples), vectors, name)
            moved = centered(embeddings, camera_means(embeddings.select(pool), self.fields), self.fields)
            for one, levels in ((embeddings, CameraLevels(statistics)), (moved, CameraLevels(statistics, True))):
                found[str(levels)] = {s.path: v for s, v in zip(self.samples, one.vectors, strict=True)}
        return found

    def _embed(self, levels: str) -> FloatArray:
        request = parse_normalization(levels)
        profiles, _ = normalize_cameras(self.checkpoint, self.pool, request, domain_fields=self.fields)
        return embed(self.checkpoint.with_profiles(profiles), self.samples).vectors

    def choice(self, by_levels: Mapping[str, Mapping[Path, FloatArray]]) -> LevelsChoice:
        """What ``--normalize auto`` chooses from the pool, as :func:`reid.retrieval.camera_normalization` does."""
        compared = draw_compared(group_crops(self.pool, self.fields, 2))
        measurement = CameraMeasurement(self.checkpoint, self.fields)
        own = measurement.own(list(compared.crops))
        plain = np.stack([by_levels["none"][sample.path] for sample in compared.samples])
        halves = self.once("halves", lambda: vectors_by_halves(measurement, compared, own))
        return choose_levels(candidate_vectors(compared, plain, halves), compared.pairs)


def scores(samples: Sequence[Sample], vectors: FloatArray, cohort: CohortRows) -> dict[str, tuple[float, float]]:
    """The mAP and rank-1, means over the directions, by the normalization of scores."""
    found: dict[str, list[tuple[float, float]]] = {}
    embeddings = Embeddings(tuple(samples), vectors, "vectors")
    for norm in SCORE_NORMS:
        for result in evaluate(embeddings, score_norm=norm, cohort=cohort).results:
            if result.score_norm == norm:
                found.setdefault(norm, []).append((result.metrics.mAP, result.metrics.rank(1)))
    return {norm: (float(np.mean([s[0] for s in rows])), float(np.mean([s[1] for s in rows])))
            for norm, rows in found.items()}  # fmt: skip


def draw_cohort(pool: Sequence[Sample], fields: Sequence[str]) -> list[Sample]:
    """Some crops of each camera, as many as profiles keep."""
    random = np.random.default_rng(0)
    groups = group_crops(pool, fields, 1).values()
    return [rows[row] for rows in groups for row in random.permutation(len(rows))[:MOST_OF_COHORT].tolist()]


def measure(place: Place, folder: Path) -> dict[str, Any]:
    """Everything that the document says about a place."""
    vectors = Vectors(place, folder)
    by_levels = vectors.by_levels()
    choice = vectors.choice(by_levels)
    counts = Counter(domain_of(sample, vectors.fields) for sample in place.pool)
    score_norm, _ = choose_score_norm(counts)
    drawn = draw_cohort(place.pool, vectors.fields)
    cohorts = {
        levels: CohortRows.of_samples(drawn, np.stack([table[sample.path] for sample in drawn]))
        for levels, table in by_levels.items()
    }
    found: dict[str, Any] = {}
    for name, samples in place.scored.items():
        found[name] = {
            levels: scores(samples, np.stack([table[sample.path] for sample in samples]), cohorts[levels])
            for levels, table in by_levels.items()
        }
        chosen = [str(choice.levels.get(domain_of(sample, vectors.fields), CameraLevels())) for sample in samples]
        own = [by_levels[levels][sample.path] for levels, sample in zip(chosen, samples, strict=True)]
        of_drawn = [str(choice.levels.get(domain_of(sample, vectors.fields), CameraLevels())) for sample in drawn]
        kept = np.stack([by_levels[levels][sample.path] for levels, sample in zip(of_drawn, drawn, strict=True)])
        found[name]["auto"] = scores(samples, np.stack(own), CohortRows.of_samples(drawn, kept))
    return {
        "weights": vectors.checkpoint.weights,
        "backbone": vectors.checkpoint.spec.backbone,
        "crops": len(place.pool),
        "cameras": len(counts),
        "levels": {name: str(levels) for name, levels in choice.levels.items()},
        "promised": {str(one.levels): [one.share, one.gain, one.error] for one in choice.candidates},
        "reason": choice.reason,
        "score_norm": score_norm,
        "scores": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--street", type=Path, default=Path("data/street"))
    parser.add_argument("--vehicles", type=Path)
    parser.add_argument("--characters", type=Path)
    parser.add_argument("--weights", type=Path, help="folder of .pth files; the last one is also tried on the street")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/normalize_auto.json"))
    parser.add_argument("--report", type=Path, default=Path("docs/results/normalize-auto.md"))
    parser.add_argument("--vectors", type=Path, default=Path("data/normalize-auto"), help="where vectors are kept")
    parser.add_argument("--again", action="store_true", help="measure also what --json has of the same weights")
    options = parser.parse_args()
    torch.set_num_threads(1)
    published = sorted(options.weights.glob("*.pth")) if options.weights else []
    shipped = [SHIPPED / f"{name}.safetensors" for name in ("street", "small-plain")]
    places = [vehicles(options.vehicles, file) for file in [*published, *shipped] if options.vehicles]
    for category in ("person", "vehicle"):
        places += [street(options.street, "street-b", category, file) for file in [*shipped, *published[-1:]]]
        places += [street(options.street, "street-a", category, file) for file in shipped]
    places += [characters(options.characters, file) for file in published if options.characters]
    results = json.loads(options.json.read_text(encoding="utf-8")) if options.json.is_file() else {}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    for place in places:
        if place.name not in results or options.again:
            results[place.name] = measure(place, options.vectors)
            print(place.name, results[place.name]["reason"], flush=True)
            options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    ordered = {place.name: results[place.name] for place in places}
    options.json.write_text(json.dumps({**ordered, **results}, indent=1) + "\n", encoding="utf-8")
    options.report.write_text(page({**ordered, **results}), encoding="utf-8")


if __name__ == "__main__":
    main()
