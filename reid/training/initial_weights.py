"""Where a training starts: from random numbers, or from weights of an own or a published network.

:func:`~reid.norm.convert_norm` hands the loaded weights to every normalization domain.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from torch import nn

from reid.config import Experiment, Network
from reid.data.transforms import EvaluationTransform
from reid.errors import WeightsError
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.models.embedder import Embedder
from reid.models.runtime import RUNTIMES
from reid.models.weights.tensor_tables import load_strictly, table_of
from reid.norm import add_domain, extract, system_of

NONLOCAL = "+nonlocal"  # its blocks change nothing until they are trained, so any ResNet may get them

_WITH_FINGERPRINT = re.compile(r"(?P<path>.+)#(?P<fingerprint>[0-9a-f]{16})")
_MIXTURE = "(mixture of all domains)"


def load_initial_weights(network: Network) -> Checkpoint | None:
    """Load the weights that ``network.weights`` names, as a network without domains.

    A network with domains becomes one without: it gets the mixture of the statistics of all its domains.

    Returns:
        The checkpoint; None where a training starts from random numbers.

    Raises:
        WeightsError: The file is missing, is of another backbone, has another fingerprint than the one behind its
            name, or cannot be trained.
    """
    if not network.weights:
        return None
    match = _WITH_FINGERPRINT.fullmatch(network.weights)
    path = Path(match["path"] if match else network.weights)
    if path.suffix.lower() in RUNTIMES:
        raise WeightsError(f"{path}: a graph for another program cannot be trained; start from weights for torch")
    start = _load(path, network.backbone)
    if match and match["fingerprint"] != start.fingerprint:
        raise WeightsError(
            f"{path}: these are weights {start.fingerprint}, the run started from {match['fingerprint']};"
            " restore the file, or train into another folder"
        )
    return replace(start, network=_without_domains(start), domain_fields=(), domains=())


def record_initial_weights(experiment: Experiment, start: Checkpoint | None) -> Experiment:
    """Write the fingerprint of the initial weights behind their name: "weights.pth#0123456789abcdef"."""
    if start is None:
        return experiment
    weights = f"{start.source}#{start.fingerprint}"
    return experiment.model_copy(update={"network": experiment.network.model_copy(update={"weights": weights})})


def make_transform(experiment: Experiment, start: Checkpoint | None) -> EvaluationTransform:
    """Make the image preparation: that of the initial weights (mean, deviation, ...) in the size of the experiment."""
    height, width = experiment.data.size
    return replace(EvaluationTransform() if start is None else start.transform, height=height, width=width)


def fill_embedder(embedder: Embedder, start: Checkpoint) -> None:
    """Copy the initial weights into a new ``embedder``, in place.

    The backbone must fit tensor by tensor; non-local blocks that the weights lack stay as they are. Pooling and neck
    are copied where both networks have the same one, and stay as they are otherwise: networks trained on ImageNet have
    none.

    Raises:
        WeightsError: A tensor does not fit.
    """
    for name in ("backbone", "pooling", "neck"):
        ours, theirs = getattr(embedder.spec, name), getattr(start.spec, name)
        if name == "backbone" or ours == theirs:
            part, tensors = embedder.get_submodule(name), table_of(start.network.get_submodule(name))
            if NONLOCAL not in theirs:
                tensors |= {key: tensor for key, tensor in table_of(part).items() if ".attention" in key}
            load_strictly(part, tensors, f"{start.source} into {name} {ours}")


def _load(path: Path, backbone: str) -> Checkpoint:
    """Load the weights at ``path``, as the backbone without non-local blocks if they have none."""
    try:
        return load_checkpoint(path, backbone)
    except WeightsError:
        if NONLOCAL not in backbone:
            raise
        return load_checkpoint(path, backbone.replace(NONLOCAL, ""))


def _without_domains(start: Checkpoint) -> nn.Module:
    """Return the network without domains; WeightsError where its norms are not BatchNorm."""
    system = system_of(start.network)
    if system != "batch":
        raise WeightsError(
            f'{start.source}: its norms are of the system "{system}", which leaves no BatchNorm to start from;'
            ' take weights trained with norm.system = "batch"'
        )
    return extract(add_domain(start.network, _MIXTURE), _MIXTURE) if start.domains else start.network
