"""Find people in a whole frame that a visitor uploads, so that one of them can be searched for."""

from __future__ import annotations

import numpy as np
from PIL import Image

from reid.app.upload_images import WIDEST_PERSON
from reid.errors import ReidError

MOST_PEOPLE = 8
MARGIN = 0.05  # of the height and the width of a person, added on each side


def people_in(image: Image.Image) -> list[Image.Image]:
    """Return crops of the people in a frame, the surest first.

    An image that is no wider than a person, and a program without a detector, have none.

    Example:
        >>> people_in(Image.new("RGB", (64, 128)))
        []
    """
    if image.width <= WIDEST_PERSON * image.height:
        return []
    from reid.data.video.detectors import open_detector

    try:
        detector = open_detector()
        boxes = detector(np.asarray(image))
    except ReidError:  # OpenCV is not installed, or has no detector
        return []
    crops = []
    for left, top, right, bottom, score in boxes[:MOST_PEOPLE].tolist():
        if score < detector.min_score:
            continue
        across, down = MARGIN * (right - left), MARGIN * (bottom - top)
        crops.append(image.crop((
            max(int(left - across), 0), max(int(top - down), 0), min(int(right + across), image.width),
            min(int(bottom + down), image.height),
        )))  # fmt: skip
    return crops
