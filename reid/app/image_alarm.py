"""What the gates of a network say about the images of a search: whether they look attacked or damaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import ImageOps

from reid.app.query import Query
from reid.app.served_data import ServedGallery
from reid.data.images import read_image
from reid.errors import DataError
from reid.retrieval.search import UPLOADED


@dataclass(frozen=True)
class ImageAlarm:
    """The answer of the gates.

    Args:
        not_clean: How likely an image is not clean, in 0..1; of several images, the largest.
        threshold: Larger ones raise the alarm.
        false_alarm_rate: The share (0..1) of the clean crops of the training that were to raise it.
    """

    not_clean: float
    threshold: float
    false_alarm_rate: float

    @property
    def is_raised(self) -> bool:
        """Whether the image counts as not clean."""
        return self.not_clean > self.threshold

    @property
    def notes(self) -> list[str]:
        """What a person should know about it, a sentence at most."""
        if not self.is_raised:
            return []
        return [
            "the gates of the network take this image for attacked or damaged (P(not clean)"
            f" {self.not_clean:.3f}, above {self.threshold:.3f}, which {100 * self.false_alarm_rate:g} % of the clean"
            " crops of the training exceed); look at the image before you trust the answers"
        ]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"not_clean": self.not_clean, "not_clean_threshold": self.threshold, "image_alarm": self.is_raised}


def alarm_about(served: ServedGallery, query: Query) -> ImageAlarm | None:
    """Ask the gates of the network of a gallery about the images of a query.

    Args:
        served: The gallery.
        query: Uploaded images, or a crop whose file is asked about.

    Returns:
        The answer; None where the network has no gates for attacks, the gallery holds no network, or the file of the
        crop cannot be read.

    Raises:
        WeightsError: The text that the network keeps about its alarm cannot be read.
    """
    checkpoint = served.checkpoint
    if checkpoint is None:
        return None
    from reid.robustness.gate_alarm import alarm_of, image_probabilities

    alarm = alarm_of(checkpoint)
    if alarm is None:
        return None
    images = [ImageOps.exif_transpose(image).convert("RGB") for image in query.uploads]
    if not images and query.sample.path != UPLOADED:
        try:
            images = [read_image(query.sample.path)]
        except (DataError, OSError):  # its stored embedding is searched for
            return None
    if not images:
        return None
    probability = round(float(image_probabilities(checkpoint, images).max()), 6)
    return ImageAlarm(probability, alarm.threshold, alarm.false_alarm_rate)
