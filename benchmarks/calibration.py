"""Measure what camera statistics of unlabelled crops bring, and how many crops they need: docs/results/calibration.md.

    python benchmarks/calibration.py --street data/street --vehicles VEHICLES --weights FOLDER

VEHICLES is a manifest of two cameras with rows of split train, query and gallery, FOLDER holds OSNet x0.25 checkpoints
of torchreid; without the two only the street is measured, with the shipped weights.  Measured are: the
network as it is, embeddings centered per camera, one set of statistics for the whole site (AdaBN, Li et al. 2016),
statistics per camera from batches merged exactly or averaged, with and without the neck, drawn towards the network's
own (Schneider et al. 2020), and from more and more crops, taken at random or in the order of time.  Labels are used for
scoring only.  Images are decoded once; the document holds nothing beyond what is written under benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calibration_report import page

from reid.data.loading import domain_indices, load_crops
from reid.data.manifest import read_manifest
from reid.data.street.generation import StreetPlan
from reid.evaluation import evaluate
from reid.models.calibration import own_profiles, replace_domains
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.norm import Profiles, calibrate
from reid.norm.statistics import Statistics
from reid.pipeline import make_street
from reid.records import Embeddings, FloatArray, Sample, Split, domain_of
from reid.retrieval.centering import camera_means, centered
from reid.training.score_tables import Score, entries

SHIPPED = Path(__file__).resolve().parents[1] / "demo" / "weights"
BATCH, SMALL_BATCH = 128, 16
COUNTS = (8, 16, 32, 64, 128, 256, 512, 1000)
PRIORS = (8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
FEW = 16  # crops that a prior is tried with
SEEDS = 3
SCORED = 40  # people of the street that are scored
STREET = ("street.safetensors", "small-plain.safetensors")
MORE = StreetPlan(identities=0, train_identities=250, vehicles=0, train_vehicles=0, sites=("street-b",))
DIRECTIONS = ("visible->visible", "infrared->visible", "visible->infrared")

Found = tuple[str, Score]  # part of the document, score


@dataclass(frozen=True, eq=False)
class Trial:
    """One network on one data set: ``pool`` has the unlabelled crops of every camera, in the order of time (or of the
    manifest), ``train`` those of them that are of split train; ``coarse`` halves the points of the curves."""

    site: str
    checkpoint: Checkpoint
    domain_fields: tuple[str, ...]
    pool: Mapping[str, Sequence[Sample]]
    train: Mapping[str, Sequence[Sample]]
    asked: Sequence[Sample]
    more: Mapping[str, Sequence[Sample]] = field(default_factory=dict)  # other samples for the methods, by site
    coarse: bool = False
    decoded: dict[Path, torch.Tensor] = field(default_factory=dict)

    def images(self, samples: Sequence[Sample]) -> torch.Tensor:
        """Prepared images (B, 3, H, W)."""
        transform = self.checkpoint.transform
        new = [sample for sample in samples if sample.path not in self.decoded]
        self.decoded.update(zip((s.path for s in new), load_crops(new, transform, workers=1), strict=True))
        return transform.normalise(torch.stack([self.decoded[sample.path] for sample in samples]))

    def embed(self, used: Checkpoint, samples: Sequence[Sample]) -> Embeddings:
        parts = []
        for start in range(0, len(samples), 64):
            rows = samples[start : start + 64]
            labels = domain_indices(rows, used.domain_fields, used.domains) if used.domain_fields else None
            parts.append(used.embed(self.images(rows), labels).numpy())
        vectors: FloatArray = np.concatenate(parts)
        return Embeddings(tuple(samples), vectors, used.fingerprint)

    def measured(self, samples: Sequence[Sample], name: str, batch: int) -> list[Profiles]:
        """The statistics of every batch on its own, as those of a domain ``name``; batches are of even size."""
        network, found = self.checkpoint.network, []
        for rows in np.array_split(np.arange(len(samples)), -(-len(samples) // batch)):
            images = self.images([samples[row] for row in rows])
            batches = [(images, torch.zeros(len(images), dtype=torch.int64))]
            weights = self.checkpoint.weights
            found.append(
                calibrate(network, batches, [name], minimum=1, weights=weights, domain_fields=self.domain_fields)
            )
        return found

    def own(self) -> Profiles:
        names = sorted({domain_of(sample, self.domain_fields) for sample in self.asked} | set(self.pool))
        return own_profiles(self.checkpoint, names, self.domain_fields)


def exact(parts: Sequence[Profiles]) -> Profiles:
    return reduce(Profiles.merge, parts)


def averaged(parts: Sequence[Profiles]) -> Profiles:
    """Batch means and batch variances averaged: what lies between the batches is lost."""
    mean, var = (
        {layer: torch.stack([getattr(p, key)[layer] for p in parts]).mean(0) for layer in parts[0].mean}
        for key in ("mean", "var")
    )
    return replace(parts[0], images=(sum(p.images[0] for p in parts),), mean=mean, var=var)


def joined(profiles: Sequence[Profiles]) -> Profiles:
    return reduce(Profiles.merge, profiles)  # of different cameras, so nothing mixes


def one_for_all(profiles: Profiles, names: Sequence[str]) -> Profiles:
    mean, var = (
        {layer: t.repeat(len(names), 1) for layer, t in table.items()} for table in (profiles.mean, profiles.var)
    )
    return replace(profiles, domains=tuple(names), images=profiles.images * len(names), mean=mean, var=var)


def only_layers(measured: Profiles, own: Profiles, keep: Callable[[str], bool]) -> Profiles:
    """``measured`` in the layers to keep, ``own`` in the others."""
    old = own.select(measured.domains)
    mean, var = (
        {layer: (new if keep(layer) else before)[layer] for layer in new}
        for new, before in ((measured.mean, old.mean), (measured.var, old.var))
    )
    return replace(measured, mean=mean, var=var)


def towards_own(measured: Profiles, own: Profiles, prior: float) -> Profiles:
    """As if ``prior`` of its images were the network's own: means and variances on a line (Schneider et al. 2020)."""
    old, found = own.select(measured.domains), {}
    share = torch.tensor([images / (images + prior) for images in measured.images])[:, None]
    for layer in measured.mean:
        source, target = (Statistics(p.mean[layer], p.var[layer], torch.ones(len(p.domains))) for p in (old, measured))
        found[layer] = source.interpolate(target, share)
    mean, var = ({layer: getattr(stats, key) for layer, stats in found.items()} for key in ("mean", "var"))
    return replace(measured, mean=mean, var=var)


def methods(trial: Trial) -> Iterator[Found]:
    """Every method, on all crops of split train: there is no choice of crops, so no spread."""
    own, random = trial.own(), np.random.default_rng(0)
    before = trial.checkpoint.with_profiles(own)
    train = {name: [rows[i] for i in random.permutation(len(rows))] for name, rows in trial.train.items()}
    parts = {name: trial.measured(rows, name, BATCH) for name, rows in train.items()}
    small = {name: trial.measured(rows, name, SMALL_BATCH) for name, rows in train.items()}
    site = [sample for rows in train.values() for sample in rows]
    site = [site[i] for i in random.permutation(len(site))]
    whole = joined([exact(p) for p in parts.values()])
    variants = {
        "plain": own,
        "one set for the site (AdaBN)": one_for_all(exact(trial.measured(site, "site", BATCH)), own.domains),
        f"per camera, batches of {BATCH} merged exactly": whole,
        f"per camera, batches of {BATCH} averaged": joined([averaged(p) for p in parts.values()]),
        f"per camera, batches of {SMALL_BATCH} merged exactly": joined([exact(p) for p in small.values()]),
        f"per camera, batches of {SMALL_BATCH} averaged": joined([averaged(p) for p in small.values()]),
        "per camera, all but the neck": only_layers(whole, own, lambda layer: not layer.startswith("neck")),
        "per camera, the neck alone": only_layers(whole, own, lambda layer: layer.startswith("neck")),
    }
    means = camera_means(trial.embed(before, site), trial.domain_fields)
    for row, profiles in variants.items():
        used = before.with_profiles(replace_domains(own, profiles))
        asked = {trial.site: trial.asked} | (dict(trial.more) if row in list(variants)[:3] else {})
        for place, samples in asked.items():
            yield from _scores(trial, "methods", place, samples, row, 0, used)
            if row == "plain":
                yield from _scores(trial, "methods", place, samples, "plain, centered per camera", 0, used, means)


def curves(trial: Trial) -> Iterator[Found]:
    """Ever more crops of each camera, at random and in order, and few crops with a prior."""
    own, step = trial.own(), 2 if trial.coarse else 1
    most = max(len(rows) for rows in trial.pool.values())
    counts = [count for count in COUNTS[::step] if count < most]
    before = trial.checkpoint.with_profiles(own)

    def measured(rows: Mapping[str, Sequence[Sample]], count: int) -> Profiles:
        return joined([exact(trial.measured(rows[name][:count], name, BATCH)) for name in rows])

    def scored(part: str, row: str, seed: int, profiles: Profiles) -> Iterator[Found]:
        used = before.with_profiles(replace_domains(own, profiles))
        return _scores(trial, part, trial.site, trial.asked, row, seed, used)

    for part in ("crops", "prior"):
        yield from _scores(trial, part, trial.site, trial.asked, "none", 0, before)
    for seed in range(SEEDS):
        random = np.random.default_rng(seed)
        pool = {name: [rows[i] for i in random.permutation(len(rows))] for name, rows in trial.pool.items()}
        for count in counts:
            yield from scored("crops", f"{count}, at random", seed, measured(pool, count))
        few = measured(pool, FEW)
        for prior in (0.0, *PRIORS[::step]):
            yield from scored("prior", f"N = {prior:g}", seed, towards_own(few, own, prior))
    for count in counts:
        yield from scored("crops", f"{count}, in order", 0, measured(trial.pool, count))
    yield from scored("crops", f"all ({most})", 0, measured(trial.pool, most))


def _scores(
    trial: Trial,
    part: str,
    site: str,
    samples: Sequence[Sample],
    row: str,
    seed: int,
    used: Checkpoint,
    means: Mapping[str, FloatArray] | None = None,
) -> Iterator[Found]:
    embeddings = trial.embed(used, samples)
    if means is not None:
        embeddings = centered(embeddings, means, trial.domain_fields)
    for way, rows in ways(samples).items():
        for result in evaluate(replace(embeddings, samples=tuple(rows))).results:
            direction, m = way or result.direction, result.metrics
            if way or direction in DIRECTIONS:
                score = Score(row, site, result.category, direction, seed, m.rank(1), m.mAP, m.queries, m.gallery)
                yield part, score


def ways(samples: Sequence[Sample]) -> dict[str, Sequence[Sample]]:
    """Both directions where one camera asks another; else the samples as they are."""
    asking, asked = ({s.camera for s in samples if s.split is split} for split in (Split.QUERY, Split.GALLERY))
    if len(asking) != 1 or len(asked) != 1 or asking == asked:
        return {"": samples}
    (one,), (other,) = asking, asked
    turned = {Split.QUERY: Split.GALLERY, Split.GALLERY: Split.QUERY}
    swapped = [replace(sample, split=turned[sample.split]) for sample in samples]
    return {f"{one}->{other}": samples, f"{other}->{one}": swapped}


def by_camera(samples: Sequence[Sample], domain_fields: Sequence[str]) -> dict[str, list[Sample]]:
    """The samples of each camera in the order of time, where it is known."""
    found: dict[str, list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda s: 0.0 if s.time is None else s.time.timestamp()):
        found[domain_of(sample, domain_fields)].append(sample)
    return dict(sorted(found.items()))


def street(folder: Path, more: Path, weights: Path) -> Trial:
    """People of street-b in ``folder``; the unlabelled crops of its split train are the first of those in ``more``."""
    checkpoint = load_checkpoint(weights)
    domain_fields = checkpoint.domain_fields or ("camera",)
    people, others = (
        [sample for sample in read_manifest(place / "street-b" / "manifest.csv") if sample.category == "person"]
        for place in (folder, more)
    )
    train = [sample for sample in people if sample.split is Split.TRAIN]
    pool = [sample for sample in others if sample.split is Split.TRAIN]
    scored = set(sorted({sample.identity for sample in people if sample.split is not Split.TRAIN})[:SCORED])
    asked = [sample for sample in people if sample.identity in scored]
    kind = "statistics per " + "/".join(checkpoint.domain_fields) if checkpoint.domain_fields else "plain BN"
    site = f"street-b, {weights.stem} ({checkpoint.spec.backbone}, {kind})"
    return Trial(
        site, checkpoint, domain_fields, by_camera(pool, domain_fields), by_camera(train, domain_fields), asked
    )


def vehicles(manifest: Path, weights: Path) -> Trial:
    samples, domain_fields = read_manifest(manifest), ("camera",)
    train = by_camera([sample for sample in samples if sample.split is Split.TRAIN], domain_fields)
    asked = [sample for sample in samples if sample.split is not Split.TRAIN]
    (asking,) = {sample.camera for sample in asked if sample.split is Split.QUERY}
    split = {True: Split.QUERY, False: Split.GALLERY}
    everything = [replace(sample, split=split[sample.camera == asking]) for sample in samples]
    more = {f"all vehicles, {weights.stem}": everything}
    name = f"test vehicles, {weights.stem}"
    return Trial(name, load_checkpoint(weights, "osnet_x0_25"), domain_fields, train, train, asked, more, coarse=True)


def measure(trial: Trial, say: Callable[[str], object]) -> dict[str, Any]:
    """The scores of every part of the document, as fractions, and what they cost."""
    found: dict[str, list[Score]] = defaultdict(list)
    began = time.process_time()
    for source in (methods, curves):
        for part, score in source(trial):
            found[part].append(score)
        say(f"{trial.site}: {source.__name__} after {time.process_time() - began:.0f} s of one core")
    trial.decoded.clear()
    scores = {part: [asdict(entry) for entry in entries(rows)] for part, rows in found.items()}
    return {"weights": trial.checkpoint.weights, "seconds": round(time.process_time() - began), "scores": scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--street", type=Path, default=Path("data/street"))
    parser.add_argument("--more", type=Path, default=Path("data/street-calibration"), help="drawn where it is missing")
    parser.add_argument("--vehicles", type=Path)
    parser.add_argument("--weights", type=Path, help="folder of .pth files")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/calibration.json"))
    parser.add_argument("--report", type=Path, default=Path("docs/results/calibration.md"))
    parser.add_argument("--again", action="store_true", help="measure also what --json has of the same weights")
    options = parser.parse_args()
    torch.set_num_threads(1)
    make_street(options.more, MORE)
    trials = [street(options.street, options.more, SHIPPED / file) for file in STREET]
    if options.vehicles and options.weights:
        trials += [vehicles(options.vehicles, file) for file in sorted(options.weights.glob("*.pth"))]
    before = json.loads(options.json.read_text(encoding="utf-8")) if options.json.is_file() else {}
    kept = {site: result for site, result in before.items() if not site.startswith("street-b")}
    results: dict[str, Any] = {}
    known = kept
    options.json.parent.mkdir(parents=True, exist_ok=True)
    for trial in trials:
        old = before.get(trial.site)
        if old is None or old["weights"] != trial.checkpoint.weights or options.again:
            old = measure(trial, lambda line: print(line, flush=True))
        results[trial.site] = old
        known = {**results, **kept, **results}  # the street first; vehicles stay where they are not at hand now
        options.json.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text(page(known), encoding="utf-8")


if __name__ == "__main__":
    main()
