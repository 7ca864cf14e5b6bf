"""Restyle the crops of a data set: train or load what the method needs, then write every crop."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from reid.data.changed_images import begin_folder
from reid.data.loading import load_crops
from reid.data.selection import calibration_samples
from reid.errors import ConfigError, DataError, WeightsError
from reid.generation.restyle_plan import GRAM, MOMENTS, RestylePlan, style_name
from reid.generation.restyle_training import FEWEST, RestyleRecipe, camera_classes, train_restyler
from reid.generation.restyled_folder import (
    RESTYLER,
    SETTINGS,
    Restyle,
    moments_restyle,
    network_restyle,
    write_restyled,
)
from reid.generation.restyler import Restyler, gram_restyler, load_restyler
from reid.generation.restyling_network import first_norm, stem_of
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.norm import Profiles
from reid.records import Sample, domain_of


@dataclass(frozen=True)
class RestyleRequest:
    """How crops are restyled.

    Attributes:
        method: A name of :data:`~reid.generation.restyle_plan.METHODS`.
        weights: The frozen network, whose stem the maps come from.
        backbone: The network of weights that do not name it.
        restyler: A trained restyler; None trains one in the folder of the crops.
        profiles: Camera profiles of the frozen network, from which adain takes the styles of their cameras.
        epochs: Epochs of a training.
        seed: The seed of a training.
        sources: The names of the data, for the record of a training.
    """

    method: str
    weights: Path
    backbone: str | None = None
    restyler: Path | None = None
    profiles: tuple[Path, ...] = ()
    epochs: int = 10
    seed: int = 0
    sources: tuple[str, ...] = ("crops",)


def restyle_crops(samples: Sequence[Sample], plan: RestylePlan, request: RestyleRequest, out: Path) -> Path:
    """Restyle crops and write them with a manifest; an interrupted run continues.

    Args:
        samples: All rows of the data.
        plan: Which crops are restyled to which cameras.
        request: The method and what it needs.
        out: The folder to write to.

    Returns:
        The manifest.

    Raises:
        ConfigError: Options do not fit together, or the folder holds something else.
        DataError: No crop can be restyled, or an image cannot be read.
        WeightsError: The network, the restyler or the profiles cannot be used.
    """
    pairs = plan.pairs(samples)
    _check_options(request)
    settings = {**_settings(request), **plan.summary(pairs)}
    if request.method == MOMENTS:
        return _write(pairs, moments_restyle(samples, pairs), out, settings)
    if request.restyler is not None:
        restyler = _load(request.restyler, request.method)
    elif request.method == GRAM:
        restyler = _measured(load_checkpoint(request.weights, request.backbone), samples, pairs)
    else:
        restyler = _trained(samples, pairs, request, out, settings)
    _check_styles(restyler, pairs)
    return _write(pairs, network_restyle(restyler), out, settings)


def _write(pairs: Sequence[tuple[Sample, Sample]], restyle: Restyle, out: Path, settings: dict[str, object]) -> Path:
    with tqdm(desc="restyling", total=len(pairs), unit="img", dynamic_ncols=True) as bar:
        return write_restyled(pairs, restyle, out, settings, progress=bar.update)


def _check_options(request: RestyleRequest) -> None:
    if request.restyler is not None and request.method in (MOMENTS, GRAM):
        raise ConfigError(f"--restyler: {request.method} uses none; name the method that the restyler was trained with")
    if request.profiles and request.method != "adain":
        raise ConfigError(f"--profiles: a profile holds means and variances, which adain uses; got {request.method}")


def _settings(request: RestyleRequest) -> dict[str, object]:
    """What decides the restyled crops, beside the crops themselves."""
    if request.method == MOMENTS:
        return {"method": MOMENTS}
    files = (request.weights, *request.profiles, *([request.restyler] if request.restyler else []))
    digests = [hashlib.sha256(_content(path)).hexdigest()[:16] for path in files]
    return {"method": request.method, "files": digests, "epochs": request.epochs, "seed": request.seed}


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error


def _load(path: Path, method: str) -> Restyler:
    restyler = load_restyler(path)
    if restyler.method != method:
        raise ConfigError(f"{path}: trained for {restyler.method}; give --method {restyler.method}")
    return restyler


def _trained(
    samples: Sequence[Sample],
    pairs: Sequence[tuple[Sample, Sample]],
    request: RestyleRequest,
    out: Path,
    settings: dict[str, object],
) -> Restyler:
    """Train a restyler in the folder of the crops, after everything that can be wrong has been checked."""
    checkpoint = load_checkpoint(request.weights, request.backbone)
    stem_of(checkpoint.network, checkpoint.source)
    found = [_profiles_of(path, checkpoint) for path in request.profiles]
    categories = {sample.category for sample, _ in pairs}
    crops = camera_classes([sample for sample in calibration_samples(samples) if sample.category in categories])
    begin_folder(out, SETTINGS, settings)
    recipe = RestyleRecipe(request.method, request.epochs, request.seed)
    restyler = train_restyler(checkpoint, crops, recipe, out / RESTYLER, sources=request.sources, progress=True)
    for profiles in found:
        restyler = _with_profiles(restyler, checkpoint, profiles, pairs)
    return restyler


def _measured(checkpoint: Checkpoint, samples: Sequence[Sample], pairs: Sequence[tuple[Sample, Sample]]) -> Restyler:
    """Measure the styles of the targets for the optimization of Gram matrices."""
    crops = []
    for name in sorted({style_name(target) for _, target in pairs}):
        own = calibration_samples([sample for sample in samples if style_name(sample) == name])
        if len(own) < FEWEST:
            raise DataError(f"{name}: {len(own)} crop; its style is measured on {FEWEST} or more")
        crops.append((name, load_crops(own, checkpoint.transform)))
    return gram_restyler(checkpoint, crops)


def _profiles_of(path: Path, checkpoint: Checkpoint) -> Profiles:
    profiles = Profiles.load(path)
    if profiles.weights not in ("", checkpoint.weights, checkpoint.fingerprint):
        raise WeightsError(
            f"{path}: profiles of weights {profiles.weights} do not fit {checkpoint.source} ({checkpoint.fingerprint});"
            " calibrate with these weights"
        )
    return profiles


def _with_profiles(
    restyler: Restyler, checkpoint: Checkpoint, profiles: Profiles, pairs: Sequence[tuple[Sample, Sample]]
) -> Restyler:
    """Take the styles of the targets from their profiles, where these have them."""
    for target in {style_name(target): target for _, target in pairs}.values():
        domain = domain_of(target, profiles.domain_fields)
        if domain in profiles.domains:
            restyler = restyler.with_profile(profiles, domain, style_name(target), first_norm(checkpoint.network)[0])
    return restyler


def _check_styles(restyler: Restyler, pairs: Sequence[tuple[Sample, Sample]]) -> None:
    for _, target in pairs:
        if style_name(target) not in restyler.styles:
            raise DataError(
                f"the restyler does not know {style_name(target)}, it knows {', '.join(restyler.styles)}; train one on"
                " crops of this camera"
            )
