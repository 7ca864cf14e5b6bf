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
import time
from collections.abc import Iterator, Mapping, Sequence
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
from reid.retrieval.camera_normalization import normalize_cameras
from reid.retrieval.centering import camera_means, centered
from reid.retrieval.embed import embed
from reid.retrieval.normalization_choice import CameraLevels, parse_normalization
from reid.retrieval.score_normalization import SCORE_NORMS

SHIPPED = Path(__file__).resolve().parents[1] / "demo" / "weights"
SCORED = 40  # people, and vehicles, of a site of the street that are scored
LEVELS = (CameraLevels(), CameraLevels(centering=True), CameraLevels(True), CameraLevels(True, True))


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


def variants(
    place: Place, checkpoint: Checkpoint, fields: Sequence[str]
) -> Iterator[tuple[CameraLevels, dict[Path, FloatArray]]]:
    """The vector of every crop by each combination of levels; the centers come from the pool."""
    crops = {sample.path: sample for rows in (place.pool, *place.scored.values()) for sample in rows}
    samples, in_pool = list(crops.values()), {sample.path for sample in place.pool}
    pool = np.array([row for row, sample in enumerate(samples) if sample.path in in_pool])
    for statistics in (False, True):
        request = parse_normalization("statistics" if statistics else "none")
        profiles, _ = normalize_cameras(checkpoint, place.pool, request, domain_fields=fields)
        vectors = embed(checkpoint.with_profiles(profiles), samples)
        moved = centered(vectors, camera_means(vectors.select(pool), fields), fields)
        for one, levels in ((vectors, CameraLevels(statistics)), (moved, CameraLevels(statistics, True))):
            yield levels, {sample.path: vector for sample, vector in zip(samples, one.vectors, strict=True)}


def scores(samples: Sequence[Sample], vectors: FloatArray) -> dict[str, tuple[float, float]]:
    """The mAP and rank-1, means over the directions, by the normalization of scores."""
    found: dict[str, list[tuple[float, float]]] = {}
    embeddings = Embeddings(tuple(samples), vectors, "vectors")
    for norm in SCORE_NORMS:
        for result in evaluate(embeddings, score_norm=norm).results:
            if result.score_norm == norm:
                found.setdefault(norm, []).append((result.metrics.mAP, result.metrics.rank(1)))
    return {norm: (float(np.mean([s[0] for s in rows])), float(np.mean([s[1] for s in rows])))
            for norm, rows in found.items()}  # fmt: skip


def measure(place: Place) -> dict[str, Any]:
    """Everything that the document says about a place."""
    began = time.process_time()
    checkpoint = place.checkpoint()
    fields = checkpoint.domain_fields or ("camera",)
    profiles, report = normalize_cameras(checkpoint, place.pool, parse_normalization("auto"), domain_fields=fields)
    cost = time.process_time() - began
    table = dict(variants(place, checkpoint, fields))
    chosen = {camera.camera: camera.levels for camera in report.cameras}
    by_name = {str(levels): vectors for levels, vectors in table.items()}
    found: dict[str, Any] = {}
    for name, samples in place.scored.items():
        found[name] = {
            str(levels): scores(samples, np.stack([vectors[sample.path] for sample in samples]))
            for levels, vectors in table.items()
        }
        own = [by_name[chosen[domain_of(sample, fields)]][sample.path] for sample in samples]
        found[name]["auto"] = scores(samples, np.stack(own))
    return {
        "weights": checkpoint.weights,
        "backbone": checkpoint.spec.backbone,
        "seconds": round(time.process_time() - began),
        "seconds of auto": round(cost),
        "crops": len(place.pool),
        "report": report.to_json(),
        "score_norm": profiles.score_norm,
        "scores": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--street", type=Path, default=Path("data/street"))
    parser.add_argument("--vehicles", type=Path)
    parser.add_argument("--characters", type=Path)
    parser.add_argument("--weights", type=Path, help="folder of .pth files")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/normalize_auto.json"))
    parser.add_argument("--report", type=Path, default=Path("docs/results/normalize-auto.md"))
    parser.add_argument("--again", action="store_true", help="measure also what --json has of the same weights")
    options = parser.parse_args()
    torch.set_num_threads(1)
    published = sorted(options.weights.glob("*.pth")) if options.weights else []
    shipped = [SHIPPED / f"{name}.safetensors" for name in ("street", "small-plain")]
    places = [vehicles(options.vehicles, file) for file in published if options.vehicles]
    for site in ("street-b", "street-a"):
        for category in ("person", "vehicle"):
            places += [street(options.street, site, category, file) for file in shipped]
    places += [characters(options.characters, file) for file in published if options.characters]
    places += [street(options.street, site, "person", file) for site in ("street-b", "street-a") for file in published]
    results = json.loads(options.json.read_text(encoding="utf-8")) if options.json.is_file() else {}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    for place in places:
        if place.name not in results or options.again:
            results[place.name] = measure(place)
            print(place.name, f"{results[place.name]['seconds']} s", flush=True)
            options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    ordered = {place.name: results[place.name] for place in places}
    options.json.write_text(json.dumps({**ordered, **results}, indent=1) + "\n", encoding="utf-8")
    options.report.write_text(page({**ordered, **results}), encoding="utf-8")


if __name__ == "__main__":
    main()
