"""Adapt a network to a site from unlabelled crops: the entry to all methods."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from reid.adaptation.adaptation_state import load_state, run_key, save_state
from reid.adaptation.agreement import share_in_site
from reid.adaptation.contrast_rounds import EPOCHS, STEPS, ContrastRounds, EpochFigures, Watch
from reid.adaptation.entropy import fit_entropy
from reid.adaptation.matching import fit_statistics
from reid.adaptation.site_crops import SiteCrops, choose_domain_fields, joined, read_site, with_camera
from reid.adaptation.site_network import SiteNetwork
from reid.data.loading import Progress
from reid.errors import ConfigError, DataError, unknown_name
from reid.models.checkpoint import Checkpoint
from reid.models.runtime import UNCALIBRATED
from reid.records import FloatArray, IntArray, Sample, domain_of

RECIPE = "adaptation"  # key of the free text of a checkpoint: how it was adapted, as JSON
FEWEST_OF_DOMAIN = 2  # crops; one image has no variance to measure
LABELLED_PREFIX = "labelled "  # of a camera of the labelled site whose name the other site has as well


@dataclass(frozen=True)
class Options:
    """What a method is asked for; see :func:`adapt`.  ``steps`` is the number of updates in an epoch."""

    epochs: int = EPOCHS
    steps: int = STEPS
    seed: int = 0
    labelled: Sequence[Sample] = ()
    workers: int = 0
    state: Path | None = None
    on_start: Callable[[int], object] | None = None
    progress: Progress | None = None
    on_epoch: Callable[[EpochFigures], object] | None = None


@dataclass(frozen=True, eq=False)
class Adaptation:
    """The result of an adaptation.

    Attributes:
        checkpoint: The adapted network with the statistics of its cameras, or the calibrated one where ``notes`` say
            why it was not adapted.
        method: A key of ``METHODS``.
        crops: The crops of the site, without identities.
        kept_epoch: The epoch of training whose network was kept; 0 is the calibrated network.
        history: The clusters of every epoch; () for methods without clusters.
        notes: One sentence for everything that did not go as asked.
    """

    checkpoint: Checkpoint
    method: str
    crops: SiteCrops
    kept_epoch: int = 0
    history: tuple[EpochFigures, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_adapted(self) -> bool:
        """Whether the weights changed; otherwise the checkpoint is the calibrated network."""
        return self.kept_epoch > 0

    @property
    def verdict(self) -> str:
        """One line that says what came out."""
        result = "not adapted, the calibrated network is given back"
        if self.method == "statistics":
            result = "calibrated"
        elif self.is_adapted:
            result = f"adapted by {self.method}" + (f", epoch {self.kept_epoch} is kept" if self.history else "")
        return f"{result}: {'; '.join(self.notes)}" if self.notes else result

    def to_json(self) -> dict[str, object]:
        """Return what came out as plain values; the weights are left out."""
        return {
            "method": self.method,
            "adapted": self.is_adapted,
            "kept_epoch": self.kept_epoch,
            "verdict": self.verdict,
            "notes": list(self.notes),
            "fingerprint": self.checkpoint.fingerprint,
            "domains": list(self.checkpoint.domains),
            "crops": len(self.crops),
            "epochs": [figures.to_json() for figures in self.history],
        }


def adapt(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    method: str = "cluster",
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
    labelled: Sequence[Sample] = (),
    workers: int = 0,
    state: Path | None = None,
    on_start: Callable[[int], object] | None = None,
    progress: Progress | None = None,
    on_epoch: Callable[[EpochFigures], object] | None = None,
) -> Adaptation:
    """Adapt a network to a site from unlabelled crops.

    The identities of ``samples`` are never looked at.  Where a method cannot work, such as clusters of crops that show
    each person once, the result is the calibrated network and says why.

    Args:
        checkpoint: The network; it stays as it is.  One that another program runs cannot be adapted.
        samples: Crops of all cameras of the site; at least 2 of each camera.
        method: A key of ``METHODS``: "cluster", "statistics", "entropy" or "matching".
        epochs: Epochs of training at most.
        seed: Decides what is random.
        labelled: Samples of a labelled site, whose identities are used; "cluster" then trains one network for both,
            with statistics of each camera and a scale and shift of each site.
        workers: Threads that decode images ahead.
        state: The file for the state of an unfinished run, which the same call continues; None keeps no state.
        on_start: Is called with the number of units of all work, when the images are in memory.
        progress: Is called with units of work done.
        on_epoch: Is called with the figures of every clustering.

    Returns:
        The adapted checkpoint, with the statistics of the site's cameras and a fingerprint of its own, and how it came
        about.

    Raises:
        ConfigError: The method is unknown, or the network cannot be adapted by it.
        DataError: There are no samples, a camera has a single crop, or an image cannot be read.

    Example:
        >>> import reid
        >>> checkpoint = reid.load_checkpoint()  # the shipped weights
        >>> samples = reid.read_samples("crops/manifest.csv")  # doctest: +SKIP
        >>> reid.adapt(checkpoint, samples, epochs=4).checkpoint.save(Path("site.safetensors"))  # doctest: +SKIP
    """
    options = Options(epochs, STEPS, seed, labelled, workers, state, on_start, progress, on_epoch)
    if method not in METHODS:
        raise ConfigError(unknown_name("method", method, METHODS))
    if checkpoint.runtime:
        raise ConfigError(f"{checkpoint.source}: cannot be adapted, {UNCALIBRATED}")
    if options.labelled and method != "cluster":
        raise ConfigError(f'a labelled site is used by the method "cluster" only, not by "{method}"')
    _check_samples(checkpoint, samples)
    found = METHODS[method](checkpoint, samples, options)
    return _with_recipe(found, checkpoint, options)


def _check_samples(checkpoint: Checkpoint, samples: Sequence[Sample]) -> None:
    if not samples:
        raise DataError("adapt: got no samples; expected unlabelled crops of all cameras of the site")
    fields = site_fields(checkpoint, samples)
    names, counts = np.unique([domain_of(sample, fields) for sample in samples], return_counts=True)
    if counts.min() < FEWEST_OF_DOMAIN:
        name = names[counts.argmin()]
        raise DataError(
            f'adapt: expected at least {FEWEST_OF_DOMAIN} crops of each camera, got {counts.min()} of "{name}"; add'
            " crops of it, or leave it out"
        )


def site_fields(checkpoint: Checkpoint, samples: Sequence[Sample]) -> tuple[str, ...]:
    """Return the fields that name the domains of the adapted network: those of the checkpoint, or chosen ones.

    Raises:
        DataError: The network normalizes by camera, and a crop does not name its camera.
    """
    chosen = choose_domain_fields(samples)
    fields = checkpoint.domain_fields or chosen
    if "camera" in fields and not chosen:
        raise DataError(
            f"{samples[0].path}: the camera is empty, but these weights normalize by {'/'.join(fields)};"
            " fill in the cameras, or start from weights without cameras"
        )
    return fields


def embed_site(checkpoint: Checkpoint, crops: SiteCrops, *, calibrated: bool = False) -> FloatArray:
    """Embed the crops of a site, (N, D) float32.

    Args:
        checkpoint: The network.
        crops: The crops.
        calibrated: Whether to measure the statistics of the site's cameras before; otherwise those of the checkpoint
            are used.
    """
    network = SiteNetwork(checkpoint, crops)
    if calibrated:
        network.measure()
    return network.embed()


def adapt_by_statistics(checkpoint: Checkpoint, samples: Sequence[Sample], options: Options) -> Adaptation:
    """Measure the statistics of every camera, and change nothing else: calibration."""
    crops = read_site(samples, checkpoint.transform, site_fields(checkpoint, samples), workers=options.workers)
    if options.on_start is not None:
        options.on_start(len(crops))
    network = SiteNetwork(checkpoint, crops)
    notes = () if network.has_statistics else (f"{checkpoint.spec.backbone} has no BatchNorm, so nothing changes",)
    network.measure(options.seed, options.progress)
    return Adaptation(network.to_checkpoint(checkpoint, {}), "statistics", crops, notes=notes)


def adapt_by_clusters(checkpoint: Checkpoint, samples: Sequence[Sample], options: Options) -> Adaptation:
    """Adapt by cluster contrast with the normalization of each camera (:mod:`reid.adaptation.contrast_rounds`)."""
    crops = read_site(samples, checkpoint.transform, site_fields(checkpoint, samples), workers=options.workers)
    site, identities, sites = crops, None, None
    if options.labelled:
        site, identities, sites = _with_labelled(checkpoint, crops, options)
    network = SiteNetwork(checkpoint, site, sites=sites)
    rounds = ContrastRounds(
        network, epochs=options.epochs, steps=options.steps, seed=options.seed, identities=identities
    )
    if options.on_start is not None:
        options.on_start(rounds.units)
    settings = {
        "epochs": options.epochs,
        "steps": options.steps,
        "seed": options.seed,
        "identities": None if identities is None else identities.tolist(),
    }
    key = run_key(checkpoint.fingerprint, site.samples, settings)
    path = options.state
    state = None if path is None else load_state(path, key)
    save = None if path is None else lambda state: save_state(path, key, state)
    state = rounds.run(state or rounds.first_state(), Watch(options.progress, options.on_epoch, save))
    return Adaptation(
        network.to_checkpoint(checkpoint, {}),
        "cluster",
        crops,
        state.kept_epoch,
        tuple(state.history),
        tuple(state.notes),
    )


def adapt_by_entropy(checkpoint: Checkpoint, samples: Sequence[Sample], options: Options) -> Adaptation:
    """Fit scales and shifts to the neighbours of each crop (:mod:`reid.adaptation.entropy`)."""

    def fit(network: SiteNetwork) -> tuple[str, ...]:
        resets = fit_entropy(network, options.epochs, options.seed, options.progress)
        return (f"the fit returned to its start {resets} times",) if resets else ()

    return _adapt_if_neighbours_agree(checkpoint, samples, options, "entropy", fit)


def adapt_by_matching(checkpoint: Checkpoint, samples: Sequence[Sample], options: Options) -> Adaptation:
    """Fit the first layers to the stored statistics of the last norms (:mod:`reid.adaptation.matching`)."""

    def fit(network: SiteNetwork) -> tuple[str, ...]:
        fit_statistics(network, options.epochs, options.seed, options.progress)
        return ()

    return _adapt_if_neighbours_agree(checkpoint, samples, options, "matching", fit)


def _adapt_if_neighbours_agree(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    options: Options,
    method: str,
    fit: Callable[[SiteNetwork], tuple[str, ...]],
) -> Adaptation:
    """Fit a copy of the network, and keep it if more crops are mutual neighbours across cameras than before.

    With one camera, or without cameras, there is nothing to compare, and the fitted network is kept.
    """
    crops = read_site(samples, checkpoint.transform, site_fields(checkpoint, samples), workers=options.workers)
    calibrated, fitted = SiteNetwork(checkpoint, crops), SiteNetwork(checkpoint, crops)
    if not calibrated.has_statistics:
        raise ConfigError(f"{method}: {checkpoint.spec.backbone} has no BatchNorm; use cluster")
    if options.on_start is not None:
        options.on_start(len(crops) * (4 + 5 * options.epochs))
    calibrated.measure(options.seed, options.progress)
    notes = fit(fitted)
    before, after = (share_in_site(network.embed(options.progress), crops) for network in (calibrated, fitted))
    if after < before:
        reason = f"crops of two cameras that are mutual neighbours fell from {before:.1%} to {after:.1%}"
        return Adaptation(calibrated.to_checkpoint(checkpoint, {}), method, crops, notes=(*notes, reason))
    notes = (*notes, f"crops of two cameras that are mutual neighbours: {before:.1%}, then {after:.1%}")
    return Adaptation(fitted.to_checkpoint(checkpoint, {}), method, crops, options.epochs, notes=notes)


def _with_labelled(
    checkpoint: Checkpoint, crops: SiteCrops, options: Options
) -> tuple[SiteCrops, IntArray, torch.Tensor]:
    """Join the crops of the site with those of a labelled one.

    Returns:
        All crops; (N,) int64, the number of each crop's identity, -1 for the site without labels; (G,) int64, the
        site of each domain.
    """
    if "camera" not in crops.domain_fields:
        raise ConfigError("a labelled site needs a network with statistics per camera, and crops that name theirs")
    unnamed = next((sample for sample in options.labelled if not (sample.identity and sample.camera)), None)
    if unnamed is not None:
        raise DataError(f"{unnamed.path}: a sample of the labelled site needs an identity and a camera")
    taken = set(crops.camera_names)
    labelled = [
        with_camera(sample, LABELLED_PREFIX + sample.camera) if sample.camera in taken else sample
        for sample in options.labelled
    ]
    other = read_site(labelled, checkpoint.transform, crops.domain_fields, workers=options.workers)
    together = joined(crops, other)
    _, numbers = np.unique([sample.identity for sample in labelled], return_inverse=True)
    identities = np.concatenate([np.full(len(crops), -1, np.int64), numbers.astype(np.int64)])
    sites = torch.tensor([int(name not in crops.domains) for name in together.domains])
    return together, identities, sites


def _with_recipe(found: Adaptation, checkpoint: Checkpoint, options: Options) -> Adaptation:
    """Write into the free text of the checkpoint how it came about."""
    recipe = {
        "method": found.method,
        "adapted": found.is_adapted,
        "kept_epoch": found.kept_epoch,
        "epochs": options.epochs,
        "steps": options.steps,
        "seed": options.seed,
        "crops": len(found.crops),
        "from": checkpoint.fingerprint,
        "notes": list(found.notes),
    }
    extra = {**checkpoint.extra, RECIPE: json.dumps(recipe)}
    return replace(found, checkpoint=replace(found.checkpoint, extra=extra))


METHODS: Mapping[str, Callable[[Checkpoint, Sequence[Sample], Options], Adaptation]] = {
    "cluster": adapt_by_clusters,
    "statistics": adapt_by_statistics,
    "entropy": adapt_by_entropy,
    "matching": adapt_by_matching,
}
