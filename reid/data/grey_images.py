"""Notice cameras whose images are grey, as those of infrared cameras are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reid.data.images import read_image
from reid.errors import DataError
from reid.records import Modality, Sample

SAMPLED = 5  # images of each camera that are opened
MOST_CAMERAS = 50
GREY = (
    1.5  # mean difference between the channels of a pixel, in 0..255; compression makes a grey image a little coloured
)


def grey_cameras(samples: Sequence[Sample]) -> list[str]:
    """Find the cameras of which a sample of visible images is grey.

    Args:
        samples: The samples of a folder; images that cannot be read are passed over.

    Returns:
        The names of the cameras, "" for images of unknown cameras.
    """
    cameras: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.modality is Modality.VISIBLE:
            cameras.setdefault(sample.camera, []).append(sample)
    found = []
    for camera, rows in list(cameras.items())[:MOST_CAMERAS]:
        chosen = [rows[i] for i in np.linspace(0, len(rows) - 1, min(SAMPLED, len(rows))).astype(int).tolist()]
        greys = [grey for sample in chosen if (grey := _is_grey(sample)) is not None]
        if greys and all(greys):
            found.append(camera)
    return found


def _is_grey(sample: Sample) -> bool | None:
    try:
        image = read_image(sample.path)
    except (DataError, OSError):
        return None
    image.thumbnail((128, 128))
    pixels = np.asarray(image, dtype=np.int16)
    return float(np.ptp(pixels, axis=2).mean()) <= GREY
