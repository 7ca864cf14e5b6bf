"""The jobs of benchmarks/label_free.py: a network at a place, normalized or adapted in one way, and its scores."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from label_free_places import Place

from reid.adaptation.contrast_rounds import EPOCHS
from reid.adaptation.site_adaptation import RECIPE, adapt, adapt_by_clusters
from reid.adaptation.site_adaptation import Options as AdaptationOptions
from reid.data.protocols.data_sets import Scoring
from reid.evaluation import Reranking, evaluate
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.norm import extract
from reid.norm.convert import take_rows
from reid.records import Embeddings, Sample, UnseenCameraPolicy
from reid.retrieval.camera_normalization import normalize_cameras
from reid.retrieval.embed import embed

SHIPPED = Path(__file__).resolve().parents[1] / "demo" / "weights"
IN_PROGRAM = {"shipped": "street", "small, BN": "small-plain", "small, camera BN": "small-camera"}
PLAIN, CSLS, SNORM, METRIC, JACCARD = "cosine", "csls", "snorm", "learned metric", "rerank camera"
AS_IT_IS, CALIBRATED, ADAPTED, MIXED_BATCHES = "as it is", "calibrated", "adapted", "adapted, mixed batches"
LEVELS = {CALIBRATED: "statistics", "centered": "centering", "both": "statistics+centering", "auto": "auto"}
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Job:
    """One network at one place, normalized or adapted in one way."""

    place: str
    network: str
    level: str
    seed: int = 0
    epochs: int = EPOCHS

    @property
    def name(self) -> str:
        fewer = f", {self.epochs} epochs" if self.is_adaptation and self.epochs != EPOCHS else ""
        return f"{self.place}|{self.network}|{self.level}{fewer}|{self.seed}"

    @property
    def is_adaptation(self) -> bool:
        return self.level in (ADAPTED, MIXED_BATCHES)


def all_jobs(places: Mapping[str, Place], networks: Sequence[str]) -> list[Job]:
    """The jobs in the order of their worth."""
    fixed = (AS_IT_IS, *LEVELS)
    streets = [name for name in places if f"{name} visible" in places]
    jobs = [Job(place, "shipped", level) for place in streets for level in fixed]
    jobs += [Job(place, "shipped", ADAPTED, seed) for seed in SEEDS for place in streets]
    jobs += [Job(place, "shipped", MIXED_BATCHES, seed) for seed in SEEDS for place in streets[:1]]
    for name in networks:
        jobs += [Job(f"{place} visible", name, level) for place in streets[:1] for level in (*fixed, ADAPTED)]
        jobs += [Job("vehicles", name, level) for level in (*fixed, ADAPTED)]
        jobs.append(Job("characters", name, AS_IT_IS))
    kinds = ("uneven", "one camera", "transductive")
    jobs += [Job(f"{place} {kind}", "shipped", level) for place in streets[:1] for kind in kinds
             for level in ("calibrated", ADAPTED)]  # fmt: skip
    return [job for job in jobs if job.place in places]


class Measurement:
    """Measures jobs; keeps vectors and adapted networks in a folder."""

    def __init__(self, places: Mapping[str, Place], weights: Path | None, kept: Path) -> None:
        self.places, self.weights, self.kept = places, weights, kept

    def checkpoint(self, name: str) -> Checkpoint:
        """A network as it was published; unknown cameras get the mixture of those that it knows."""
        if name in IN_PROGRAM:
            return load_checkpoint(SHIPPED / f"{IN_PROGRAM[name]}.safetensors")
        return load_checkpoint((self.weights or Path()) / f"osnet_x0_25_{name}.pth", "osnet_x0_25")

    def file_of(self, job: Job) -> Path:
        """Where the adapted network of a job is kept."""
        return self.kept / "adapted" / f"{job.name.replace('|', ',')}.safetensors"

    def prepared(self, job: Job) -> tuple[Checkpoint, dict[str, Any]]:
        """The network of a job, and how it came about."""
        checkpoint, place = self.checkpoint(job.network), self.places[job.place]
        if job.level == AS_IT_IS:
            named = checkpoint.with_unseen_camera_policy(UnseenCameraPolicy.PRIOR) if checkpoint.domains else checkpoint
            return named, {}
        if job.level in LEVELS:
            profiles, report = normalize_cameras(checkpoint, place.pool, LEVELS[job.level])
            return checkpoint.with_profiles(profiles), {"normalization": report.to_json()}
        return self.adapted(job, checkpoint, place)

    def adapted(self, job: Job, checkpoint: Checkpoint, place: Place) -> tuple[Checkpoint, dict[str, Any]]:
        """The adapted network of a job, from the folder if it is there."""
        file = self.file_of(job)
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            start = time.process_time()
            state = file.with_suffix(".state")
            continued = state.is_file()
            if job.level == MIXED_BATCHES:
                found = adapt_in_mixed_batches(checkpoint, place.pool, job, state)
            else:
                found = adapt(checkpoint, place.pool, epochs=job.epochs, seed=job.seed, state=state).checkpoint
            seconds = {} if continued else {"cpu seconds": f"{time.process_time() - start:.0f}"}
            extra = {**found.extra, **seconds}
            replace(found, extra=extra).save(file)
            state.unlink(missing_ok=True)
        found = load_checkpoint(file)
        about = {"adaptation": json.loads(found.extra[RECIPE])}
        if "cpu seconds" in found.extra:
            about["cpu_seconds"] = int(found.extra["cpu seconds"])
        return found, about

    def vectors(self, job: Job) -> tuple[Embeddings, dict[str, Any]]:
        """Embed what is scored at the place of a job."""
        file = self.kept / "vectors" / f"{job.name.replace('|', ',')}.npz"
        samples = tuple(self.places[job.place].scored)
        if not file.is_file():
            checkpoint, about = self.prepared(job)
            found = embed(checkpoint, samples)
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(file, vectors=found.vectors, about=json.dumps({**about, "fingerprint": found.fingerprint}))
        with np.load(file) as kept:
            about = json.loads(str(kept["about"]))
            return Embeddings(samples, kept["vectors"], about["fingerprint"]), about

    def measure(self, job: Job) -> dict[str, Any]:
        """Everything that the page says about a job."""
        place = self.places[job.place]
        embeddings, about = self.vectors(job)
        scores: dict[str, dict[str, list[float]]] = {}
        notes: dict[str, list[str]] = {}
        for rule in place.rules:
            for scoring, how in SCORINGS.items():
                report = evaluate(embeddings, scoring=Scoring(rule), **how)
                wanted = [r for r in report.results if bool(r.reranking) == ("reranking" in how)]
                if "score_norm" in how:
                    wanted = [result for result in wanted if result.score_norm == how["score_norm"]]
                for result in wanted:
                    metrics = result.metrics
                    figures = [metrics.rank(1), metrics.mAP, metrics.queries - metrics.queries_without_match]
                    scores.setdefault(scoring, {})[result.direction] = figures
                if report.notes:
                    notes.setdefault(scoring, []).extend(report.notes)
        crops = {"pool": len(place.pool), "scored": len(place.scored)}
        return {**about, "crops": crops, "scores": scores, "notes": notes}


SCORINGS: Mapping[str, dict[str, Any]] = {
    PLAIN: {},
    CSLS: {"score_norm": "csls"},
    SNORM: {"score_norm": "snorm"},
    METRIC: {"reranking": Reranking(learn_metric=True)},
    JACCARD: {"reranking": Reranking(by_camera=True)},
}


def adapt_in_mixed_batches(checkpoint: Checkpoint, pool: Sequence[Sample], job: Job, state: Path) -> Checkpoint:
    """Adapt with one set of statistics for all cameras, of the whole batch in training; the cameras stay known.

    A network with statistics per camera starts from their mixture.
    """
    import reid.adaptation.site_adaptation as module

    plain = checkpoint
    if checkpoint.domains:
        mixed = extract(take_rows(checkpoint.network, ("all",), [None]), "all")
        plain = checkpoint.with_network(mixed, (), checkpoint.extra)
    fields = module.site_fields
    module.site_fields = lambda *_: ()
    try:
        return adapt_by_clusters_with_recipe(plain, pool, AdaptationOptions(job.epochs, seed=job.seed, state=state))
    finally:
        module.site_fields = fields


def adapt_by_clusters_with_recipe(
    checkpoint: Checkpoint, pool: Sequence[Sample], options: AdaptationOptions
) -> Checkpoint:
    found = adapt_by_clusters(checkpoint, pool, options)
    recipe = {
        "method": "cluster",
        "epochs": options.epochs,
        "kept_epoch": found.kept_epoch,
        "adapted": found.is_adapted,
        "notes": found.notes,
    }
    return replace(found.checkpoint, extra={**found.checkpoint.extra, RECIPE: json.dumps(recipe)})
