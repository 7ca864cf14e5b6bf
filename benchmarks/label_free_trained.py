"""Networks of one training recipe at a site of which there are crops, and none: benchmarks/label_free.py --trained.

The folder is that of the runs of scripts/experiments/trained-alike.toml.  Without crops of the site, a network with
statistics per camera of its training mixes all of them (by likeness, or as DSON was published, equally).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from label_free_measure import CSLS, LEVELS, PLAIN, SNORM, Job, Measurement
from label_free_probes import asked_crops
from label_free_report import cell

from reid.data.protocols.data_sets import Scoring
from reid.data.protocols.protocol_table import Rule
from reid.evaluation import evaluate
from reid.evaluation.analysis.probes import probe_network
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.retrieval.camera_normalization import normalize_cameras
from reid.retrieval.embed import embed
from reid.training.score_tables import markdown
from reid.training.site_statistics import STATISTICS

NO_CROPS = "no crops"
WITH_CROPS = ("calibrated", "centered", "both")
NETWORKS = {  # folder of runs -> its name and its statistics without crops of the site
    "bn": ("BN", "kept"),
    "ibn": ("IBN", "kept"),
    "mixstyle": ("MixStyle", "kept"),
    "isw": ("ISW", "kept"),
    "camera-bn": ("Camera BN", "mixture"),
    "dson": ("DSON", "ensemble"),
    "resnet-of-timm": ("ResNet of timm, BatchNorm", "kept"),
    "convnext-of-timm": ("ConvNeXt of timm, LayerNorm", "kept"),
}
PROBED = ("bn", "ibn", "camera-bn")
PROBED_LEVELS = (NO_CROPS, "calibrated")
SCORINGS = {PLAIN: "none", CSLS: "csls", SNORM: "snorm"}
VISIBLE, ACROSS = "visible->visible", "infrared->visible"
Results = Mapping[str, Any]


def trained_jobs(runs: Path) -> Iterator[tuple[str, Path, str]]:
    """Yield name, weights and level of every measurement of which the training is there."""
    files = {folder: sorted(runs.glob(f"{folder}-[0-9]*/weights.safetensors")) for folder in NETWORKS}
    for level in (NO_CROPS, "both", "calibrated", "centered"):
        for folder, found in files.items():
            for weights in found:
                yield f"{folder}|{level}|{weights.parent.name.rpartition('-')[2]}", weights, level
    for folder in PROBED:
        for weights in files[folder][:1]:
            for level in PROBED_LEVELS:
                yield f"probe|{folder}|{level}", weights, level


def measure_trained(measurement: Measurement, place: str, name: str, weights: Path, level: str) -> Any:
    """The scores of a network at a place, or what its layers that normalize know."""
    here = measurement.places[place]
    folder = name.split("|")[1] if name.startswith("probe|") else name.split("|")[0]
    if name.startswith("probe|"):
        visible = measurement.places[f"{place} visible"]
        known = at_level(load_checkpoint(weights), level, folder, Job(f"{place} visible", folder, level), measurement)
        if level == NO_CROPS and folder == "camera-bn":
            return []  # it runs an image once for each camera of the training
        return [one.to_json() for one in probe_network(known, asked_crops(visible.scored), norms=True)]
    checkpoint = at_level(load_checkpoint(weights), level, folder, Job(place, folder, level), measurement)
    embeddings = embed(checkpoint, tuple(here.scored))
    scores: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for scoring, norm in SCORINGS.items():
        for result in evaluate(embeddings, scoring=Scoring(Rule()), score_norm=norm).results:
            if result.score_norm == norm:
                found = result.metrics
                figures = [found.rank(1), found.mAP, found.queries - found.queries_without_match]
                scores[scoring][result.direction] = figures
    return {"scores": scores, "fingerprint": embeddings.fingerprint}


def at_level(checkpoint: Checkpoint, level: str, folder: str, job: Job, measurement: Measurement) -> Checkpoint:
    """The network as a site without crops takes it, or normalized with the crops of a place."""
    if level == NO_CROPS:
        return STATISTICS[NETWORKS[folder][1]](checkpoint, ())
    profiles, _ = normalize_cameras(checkpoint, measurement.places[job.place].pool, LEVELS.get(level, level))
    return checkpoint.with_profiles(profiles)


ABOUT = """\
What crops of a site are worth against layers that are made for sites without any: all networks are trained alike on
600 people of street-a at 64x32 pixels, 25 epochs, no setting tuned for one of them
([the recipe](../../scripts/experiments/trained-alike.toml)), and scored on street-b. "No crops" uses none of its
crops, so no camera is known: the statistics are those that training left; camera BN mixes all cameras of the training
by likeness, and DSON with equal weights. "Calibrated", "centered" and "both" use the 960 unlabelled crops of others.
CSLS uses the other crops of the gallery and their cameras, also where no crops were measured before. The figures are
far below those of the shipped network, which has seen more images at twice the size. Rank-1 / mAP in percent."""
LAYERNORM = """\
The last two rows are the question whether a LayerNorm network needs statistics of cameras: a ConvNeXt has none to
measure between its stages (calibrating changes the BatchNorm of its neck only), a ResNet of like size has BatchNorm
everywhere. Both gain, the ResNet more than twice as much: mAP from visible to visible rises by 5.8 and by 14.4 points,
and by 10.0 and 18.0 with CSLS. One seed, weak networks: the direction counts, not the digits."""
NORMS = """\
A linear function of the mean and the deviation of each channel is asked, before and after the first normalization layer
of each block, for the camera and for the person (`reid cameras probe --norms`; visible crops of street-b). Shares
told rightly, in percent, before -> after. In IBN, the first half of the channels of the blocks of layer1 to layer3 has
instance norm, which makes mean and deviation equal for all images."""


def sections(results: Results) -> list[str]:
    """The part of the page about these networks; [] where nothing was measured."""
    scored = {name: result for name, result in results.items() if not name.startswith("probe|")}
    if not scored:
        return []
    parts = ["## Trained alike: sites without crops, and LayerNorm", ABOUT]
    levels = (NO_CROPS, *WITH_CROPS)
    for direction in (VISIBLE, ACROSS):
        rows = []
        for folder, (title, _) in NETWORKS.items():
            by_level = {level: [r for n, r in scored.items() if n.startswith(f"{folder}|{level}|")] for level in levels}
            if not by_level[NO_CROPS]:
                continue
            wanted = [(NO_CROPS, PLAIN), *((level, PLAIN) for level in WITH_CROPS)]
            wanted += [(NO_CROPS, CSLS), ("both", CSLS), ("both", SNORM)]
            cells = [cell(by_level[level], scoring, direction) if by_level[level] else "" for level, scoring in wanted]
            seeds = len(by_level[NO_CROPS])
            rows.append([title + (f" ({seeds} seeds)" if seeds > 1 else ""), *cells])
        head = [f"street-b, {direction}", *levels, f"{NO_CROPS}, csls", "both, csls", "both, snorm"]
        parts.append(markdown(head, rows))
    parts += [LAYERNORM, *probe_sections(results)]
    missing = [title for folder, (title, _) in NETWORKS.items() if not any(n.startswith(f"{folder}|") for n in scored)]
    note = f"Not trained yet: {', '.join(missing)}. " if missing else ""
    return [*parts, f"{note}Measured with one seed for each network unless a row says otherwise."]


def probe_sections(results: Results) -> Iterator[str]:
    probes = {name: rows for name, rows in results.items() if name.startswith("probe|") and rows}
    if not probes:
        return
    yield NORMS
    for what, key in (("camera", "camera"), ("person", "identity")):
        table, heads = [], [""]
        for name, rows in probes.items():
            _, folder, level = name.split("|")
            shares = {row["stage"]: 100 * row[key] for row in rows}
            layers = [stage.removesuffix(" before") for stage in shares if stage.endswith("bn1 before")]
            heads = [f"{what} told (chance {100 * rows[0][f'{key}_chance']:.1f})"]
            heads += [layer.removeprefix("backbone.") for layer in layers]
            cells = [f"{shares[f'{layer} before']:.1f} -> {shares[f'{layer} after']:.1f}" for layer in layers]
            table.append([f"{NETWORKS[folder][0]}, {level}", *cells])
        yield markdown(heads, table)
