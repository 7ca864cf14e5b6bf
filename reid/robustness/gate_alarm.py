"""The gates of a network as an alarm: how sure they are that an image was attacked, or is not as clean as in training.

Gated BN (Liu et al. 2020) has a branch for clean images and one for each attack, and a gate in a layer says how likely
each branch is.  The alarm is one minus the probability of "clean", the mean over the gates.  Its threshold is a number
that a stated share of clean crops exceed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from reid.data.loading import load_batches
from reid.data.transforms import EvaluationTransform
from reid.errors import ConfigError, WeightsError
from reid.models.checkpoint import Checkpoint
from reid.norm import Given, domains_of
from reid.norm.assignment import DomainGate, gate_logits
from reid.norm.calibrate import device_of
from reid.records import FloatArray, Sample
from reid.structured_text import parse_json

CLEAN = "clean"
BRANCHES = (CLEAN, "l1", "l2", "linf")  # the domains of a network whose gates know attacks
ALARM = "gate alarm"  # key of the free text of a checkpoint: the threshold, and how it was measured
FALSE_ALARM_RATE = 0.01
MEASURED = 2048  # crops on which a training measures the threshold
_BATCH = 64


@dataclass(frozen=True)
class GateAlarm:
    """From which probability an image counts as not clean.

    Attributes:
        threshold: A probability in 0..1; larger ones raise the alarm.
        false_alarm_rate: The share (0..1) of clean crops that were to raise it.
        images: On how many clean crops it was measured.
    """

    threshold: float
    false_alarm_rate: float
    images: int

    def text(self) -> str:
        """Return it as text that a checkpoint keeps."""
        return json.dumps(asdict(self))

    def is_raised(self, probability: float) -> bool:
        """Whether an image with this probability of not being clean raises the alarm."""
        return probability > self.threshold


def knows_attacks(network: nn.Module) -> bool:
    """Whether the gates of a network tell attacked images from clean ones."""
    return CLEAN in domains_of(network) and any(isinstance(module, DomainGate) for module in network.modules())


def attack_probability(network: nn.Module, images: Tensor) -> Tensor:
    """Compute how likely images are not clean, by the gates of a network.

    Args:
        network: A network in evaluation mode whose gates know attacks.
        images: (B, 3, H, W) float32, prepared for the network.

    Returns:
        (B,) float32 in 0..1: one minus the probability of the clean branch, the mean over the gates.

    Raises:
        ConfigError: The network has no such gates.
    """
    if not knows_attacks(network):
        raise ConfigError('this network has no gates for attacks; train one with defence.method = "gated"')
    clean = domains_of(network).index(CLEAN)
    with torch.no_grad(), gate_logits(network) as found:
        Given(network)(images)
    return 1 - torch.stack([torch.softmax(logits.float(), 1)[:, clean] for logits in found]).mean(0)


def alarm_of(checkpoint: Checkpoint) -> GateAlarm | None:
    """Return the alarm of a checkpoint; None where its network has no gates for attacks.

    Raises:
        WeightsError: The text that the file keeps about it cannot be read.
    """
    if ALARM not in checkpoint.extra or not knows_attacks(checkpoint.network):
        return None
    try:
        return GateAlarm(**parse_json(checkpoint.extra[ALARM]))
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{checkpoint.source}: its gate alarm cannot be read ({error}); train it again") from error


def measure_threshold(probabilities: FloatArray, false_alarm_rate: float = FALSE_ALARM_RATE) -> GateAlarm:
    """Find the smallest threshold that at most a share of clean crops exceed.

    Args:
        probabilities: (N,) float, of clean crops.
        false_alarm_rate: The share, above 0 and below 1.

    Returns:
        The alarm.

    Raises:
        ConfigError: The rate is out of range, or there are no crops.

    Example:
        >>> measure_threshold(np.arange(100, dtype=np.float32) / 100, 0.05).threshold
        0.94
    """
    if not 0 < false_alarm_rate < 1:
        raise ConfigError(f"gate alarm: expected a false-alarm rate above 0 and below 1, got {false_alarm_rate:g}")
    if not len(probabilities):
        raise ConfigError("gate alarm: there are no clean crops to measure its threshold on")
    ordered = np.sort(probabilities)
    allowed = int(false_alarm_rate * len(ordered) + 1e-9)  # so many may exceed it
    threshold = round(float(ordered[len(ordered) - 1 - allowed]), 6)
    return GateAlarm(threshold, false_alarm_rate, len(ordered))


def measure_on_crops(network: nn.Module, crops: Tensor, transform: EvaluationTransform) -> GateAlarm:
    """Measure the threshold on clean crops (N, 3, H, W) uint8 of a training, at most 2048 of them."""
    step = -(-len(crops) // MEASURED)
    chosen = crops[::step]
    batches = (transform.normalise(part) for part in torch.split(chosen, _BATCH))
    return measure_threshold(_all_probabilities(network.eval(), batches))


def probabilities_of(checkpoint: Checkpoint, samples: Sequence[Sample]) -> FloatArray:
    """Compute how likely the crops of samples are not clean, (N,) float32.

    Raises:
        ConfigError: The network has no gates for attacks.
        DataError: An image cannot be read.
    """
    batches = load_batches(samples, checkpoint.transform, batch_size=_BATCH)
    return _all_probabilities(checkpoint.network, (batch.images for batch in batches))


def image_probabilities(checkpoint: Checkpoint, images: Sequence[Image.Image]) -> FloatArray:
    """Compute how likely upright RGB images in memory are not clean, (N,) float32.

    Raises:
        ConfigError: The network has no gates for attacks.
    """
    transform = checkpoint.transform
    prepared = (transform.normalise(transform.resize(image)[None]) for image in images)
    return _all_probabilities(checkpoint.network, prepared)


def _all_probabilities(network: nn.Module, batches: Iterable[Tensor]) -> FloatArray:
    device = device_of(network)
    found = [attack_probability(network, images.to(device)).cpu().numpy() for images in batches]
    return np.concatenate(found) if found else np.empty(0, np.float32)
