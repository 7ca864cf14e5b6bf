"""Where a training starts from: weights of one's own, or of others, in the place of random ones.

Knows how such weights get into a network that is about to be trained, and how a run notes which ones they were; it
knows nothing of data, epochs or normalization domains (:func:`~reid.norm.convert_norm` hands them to every domain).
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

_NOTED = re.compile(r"(?P<path>.+)#(?P<fingerprint>[0-9a-f]{16})")
_MIXTURE = "(mixture of all domains)"
NONLOCAL = "+nonlocal"  # its blocks change nothing until they are trained, so any ResNet may get them


def open_start(network: Network) -> Checkpoint | None:
    """The weights that ``network.weights`` names, as a network without domains; None for random ones.

    Of weights with domains it has the mixture of all their statistics.  Raises WeightsError when the file is missing,
    is of another backbone, is not the one whose fingerprint stands behind its name, or cannot be trained on.
    """
    if not network.weights:
        return None
    noted = _NOTED.fullmatch(network.weights)
    path = Path(noted["path"] if noted else network.weights)
    if path.suffix.lower() in RUNTIMES:
        raise WeightsError(f"{path}: a graph for another program cannot be trained; start from weights for torch")
    start = _load(path, network.backbone)
    if noted and noted["fingerprint"] != start.fingerprint:
        raise WeightsError(
            f"{path}: these are weights {start.fingerprint}, the run started from {noted['fingerprint']};"
            " restore the file, or train into another folder"
        )
    return replace(start, network=_plain(start), domain_fields=(), domains=())


def note_start(experiment: Experiment, start: Checkpoint | None) -> Experiment:
    """The experiment with the fingerprint of its starting weights behind their name: "weights.pth#0123456789abcdef"."""
    if start is None:
        return experiment
    weights = f"{start.source}#{start.fingerprint}"
    return experiment.model_copy(update={"network": experiment.network.model_copy(update={"weights": weights})})


def transform_of(experiment: Experiment, start: Checkpoint | None) -> EvaluationTransform:
    """How images are prepared: as for the starting weights (mean, deviation, ...), in the size of the experiment."""
    height, width = experiment.data.size
    return replace(EvaluationTransform() if start is None else start.transform, height=height, width=width)


def fill(embedder: Embedder, start: Checkpoint) -> None:
    """Put the starting weights into a fresh ``embedder``, in place.

    The backbone must fit tensor by tensor; non-local blocks that the weights lack stay fresh.  Pooling and neck are
    filled where both networks have the same one, and stay fresh otherwise: networks trained on ImageNet have none.
    """
    for name in ("backbone", "pooling", "neck"):
        ours, theirs = getattr(embedder.spec, name), getattr(start.spec, name)
        if name == "backbone" or ours == theirs:
            part, tensors = embedder.get_submodule(name), table_of(start.network.get_submodule(name))
            if NONLOCAL not in theirs:
                tensors |= {key: tensor for key, tensor in table_of(part).items() if ".attention" in key}
            load_strictly(part, tensors, f"{start.source} into {name} {ours}")


def _load(path: Path, backbone: str) -> Checkpoint:
    """The weights at ``path``; of the backbone without its non-local blocks where they have none."""
    try:
        return load_checkpoint(path, backbone)
    except WeightsError:
        if NONLOCAL not in backbone:
            raise
        return load_checkpoint(path, backbone.replace(NONLOCAL, ""))


def _plain(start: Checkpoint) -> nn.Module:
    """The network without domains; WeightsError where its norms are not BatchNorm."""
    system = system_of(start.network)
    if system != "batch":
        raise WeightsError(
            f'{start.source}: its norms are of the system "{system}", which leaves no BatchNorm to start from;'
            ' take weights trained with norm.system = "batch"'
        )
    return extract(add_domain(start.network, _MIXTURE), _MIXTURE) if start.domains else start.network
