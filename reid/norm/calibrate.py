"""Statistics of cameras (or modalities, sites) from unlabelled images: AdaBN (Li et al. 2016) per domain.

``calibrate`` measures, ``Profiles`` is what it measured (a value that can be saved), ``install`` makes
a network that uses it.  The network measured is never changed.  No identity labels are needed.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from reid.errors import DataError, WeightsError
from reid.norm.condition import Given, current_condition
from reid.norm.convert import (
    camera_batchnorm,
    convert_norm,
    domains_of,
    norm_layers,
    replace_modules,
    select_rows,
    with_row,
)
from reid.norm.layer import DomainBatchNorm
from reid.norm.stats import Stats, moments, pool

FORMAT = "reid-profiles-1"
Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Profiles:
    """The statistics of named domains in every norm layer of one network.

    ``mean`` and ``var`` hold (G, C) per layer name, ``var`` biased (over exactly these images); ``images``
    (G,) says how many images each domain of ``names`` was measured on; ``weights`` is the fingerprint of
    the weights they belong to ("" when not known) and ``by`` the fields of a sample that name its domain.
    """

    names: tuple[str, ...]
    images: tuple[int, ...]
    mean: Mapping[str, Tensor]
    var: Mapping[str, Tensor]
    weights: str = ""
    by: tuple[str, ...] = field(default=("camera",))

    def save(self, path: Path) -> None:
        """Write to a safetensors file, in one move."""
        tensors = {f"{layer}.running_mean": t.contiguous() for layer, t in self.mean.items()}
        tensors |= {f"{layer}.running_var": t.contiguous() for layer, t in self.var.items()}
        header = {"names": self.names, "images": self.images, "weights": self.weights, "by": self.by}
        header["digest"] = _digest(tensors)
        part = path.with_name(path.name + ".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, part, metadata={"format": FORMAT, "profiles": json.dumps(header)})
            part.replace(path)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise WeightsError(f"{path}: cannot be written ({error}); choose another place or free space") from error

    @classmethod
    def load(cls, path: Path) -> Profiles:
        """Read what :meth:`save` wrote; WeightsError when the file is something else."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError) as error:
            raise WeightsError(
                f'{path}: cannot read camera profiles ({error}); make them with "reid calibrate"'
            ) from error
        if metadata.get("format") != FORMAT:
            raise WeightsError(f'{path}: expected camera profiles written by "reid calibrate", got another file')
        header = json.loads(metadata["profiles"])
        if header["digest"] != _digest(tensors):
            raise WeightsError(f"{path}: damaged, its statistics are not those that were saved; calibrate again")
        mean = {k.removesuffix(".running_mean"): t for k, t in tensors.items() if k.endswith(".running_mean")}
        var = {k.removesuffix(".running_var"): t for k, t in tensors.items() if k.endswith(".running_var")}
        names, images = tuple(header["names"]), tuple(header["images"])
        return cls(names, images, mean, var, header["weights"], tuple(header["by"]))


def calibrate(
    network: nn.Module,
    batches: Batches,
    names: Sequence[str],
    *,
    minimum: int = 2,
    weights: str = "",
    by: Sequence[str] = ("camera",),
) -> Profiles:
    """Measure the statistics of the domains ``names`` in every norm layer of ``network``.

    ``network`` may be plain or converted.  ``batches`` yields (images (B, 3, H, W), labels (B,) int64
    into ``names``), once through.  Each batch is normalized with its own moments, so that a
    layer sees what it will see once the layers before it are calibrated; what is kept are the moments of
    all images together, merged exactly (averaging batch variances would lose the variance between batches).
    Batches should hold many images of each of their domains: sort by domain, shuffle in time.
    Raises DataError when a domain has fewer than ``minimum`` images.
    """
    measured = _measuring_copy(network, tuple(names))
    found: dict[str, Stats] = {}
    hooks = [
        layer.register_forward_pre_hook(partial(_collect, found, name, len(names)))
        for name, layer in norm_layers(measured).items()
    ]
    given = Given(measured)
    with torch.inference_mode():
        for images, labels in batches:
            given(images, labels)
    for hook in hooks:
        hook.remove()
    images_seen = _image_counts(found, names, minimum)
    mean = {layer: stats.mean.clone() for layer, stats in found.items()}
    var = {layer: stats.var.clone() for layer, stats in found.items()}
    return Profiles(tuple(names), images_seen, mean, var, weights, tuple(by))


def install(network: nn.Module, profiles: Profiles) -> nn.Module:
    """A copy of ``network`` with the domains of ``profiles`` replaced or added, by name.

    A plain network becomes a converted one that knows just those domains.  Raises WeightsError when the
    layers of the profiles are not the layers of the network.
    """
    new = convert_norm(network, camera_batchnorm(profiles.names)) if not domains_of(network) else copy.deepcopy(network)
    layers = norm_layers(new)
    if set(layers) != set(profiles.mean):
        raise WeightsError(
            f"profiles of {len(profiles.mean)} norm layers do not fit a network with {len(layers)}:"
            " they were measured on another network; calibrate again with these weights"
        )
    names = {id(layer): name for name, layer in layers.items()}

    def renew(_: str, module: nn.Module) -> nn.Module | None:
        return _with_profiles(module, names[id(module)], profiles) if isinstance(module, DomainBatchNorm) else None

    return replace_modules(new, renew)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 in hex over names and values, in the order of the names."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return found.hexdigest()


def _measuring_copy(network: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """A copy with exactly the domains ``names`` that normalizes by the batch and updates nothing."""
    copied = copy.deepcopy(network).eval()
    if not domains_of(copied):
        copied = convert_norm(copied, camera_batchnorm(names))

    def rename(_: str, module: nn.Module) -> nn.Module | None:
        return _with_domains(module, names) if isinstance(module, DomainBatchNorm) else None

    measuring = replace_modules(copied, rename)
    for layer in norm_layers(measuring).values():
        layer.momentum = 0.0
        layer.train()
    return measuring


def _with_domains(layer: DomainBatchNorm, names: tuple[str, ...]) -> DomainBatchNorm:
    """The layer with the domains ``names``: known ones keep their rows, new ones get the mixture of all."""
    for name in names:
        if name not in layer.domains:
            layer = with_row(layer, name, None)
    return select_rows(layer, names)


def _collect(found: dict[str, Stats], name: str, groups: int, _layer: nn.Module, inputs: tuple[Tensor]) -> None:
    """Merge the moments of a layer's input, per domain of the batch, into what was found so far."""
    condition = current_condition()
    x = inputs[0][(...,) + (None,) * (4 - inputs[0].dim())]
    labels = condition.domain if condition is not None else None
    if not isinstance(labels, Tensor):
        labels = torch.full((len(x),), int(labels or 0))
    stats = pool(*moments(x), labels, groups)
    found[name] = found[name].merge(stats) if name in found else stats


def _image_counts(found: Mapping[str, Stats], names: Sequence[str], minimum: int) -> tuple[int, ...]:
    mass = next(iter(found.values())).mass.tolist() if found else [0.0] * len(names)
    counts = tuple(int(m) for m in mass)
    short = [f"{name} ({count})" for name, count in zip(names, counts, strict=True) if count < minimum]
    if short:
        raise DataError(
            f"calibration: expected at least {minimum} images of each camera, too few of: {', '.join(short)}"
        )
    return counts


def _with_profiles(layer: DomainBatchNorm, name: str, profiles: Profiles) -> DomainBatchNorm:
    mean, var = profiles.mean[name], profiles.var[name]
    if mean.shape != (len(profiles.names), layer.channels):
        raise WeightsError(f"profiles of {name}: expected {layer.channels} channels, got {mean.shape[-1]}")
    names = layer.domains + tuple(n for n in profiles.names if n not in layer.domains)
    new = _with_domains(layer, names)
    with torch.no_grad():
        for row, domain in enumerate(profiles.names):
            at = names.index(domain)
            new.running_mean.view(len(names), -1)[at] = mean[row]
            new.running_var.view(len(names), -1)[at] = var[row]
    return new
