"""Bring the boxes of a detector into a common form: inside the image, best first, one for each person."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torchvision.ops import nms

from reid.records import FloatArray

OVERLAP = 0.6  # intersection over union from which the weaker of two boxes is taken to show the same person


def tidy(boxes: Any, scores: Any, size: tuple[int, int]) -> FloatArray:
    """Clip boxes to the image and drop those that are empty, not finite, or covered by a better box.

    Args:
        boxes: (M, 4) left, top, right, bottom in pixels.
        scores: (M,).
        size: Height and width of the image.

    Returns:
        (N, 5) float32, left, top, right, bottom and score, best first.

    Example:
        >>> tidy([[-5, 0, 20, 30], [-4, 0, 20, 30]], [0.5, 0.75], (60, 100)).tolist()
        [[0.0, 0.0, 20.0, 30.0, 0.75]]
    """
    rows = np.concatenate(
        [np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(scores, np.float32).reshape(-1, 1)], axis=1
    )
    rows = rows[np.isfinite(rows).all(axis=1)]
    rows[:, 0:4:2] = rows[:, 0:4:2].clip(0, size[1])
    rows[:, 1:4:2] = rows[:, 1:4:2].clip(0, size[0])
    rows = rows[(rows[:, 2] > rows[:, 0]) & (rows[:, 3] > rows[:, 1])]
    rows = rows[np.argsort(-rows[:, 4], kind="stable")]
    kept = nms(torch.from_numpy(rows[:, :4]), torch.from_numpy(rows[:, 4]), OVERLAP)
    best: FloatArray = rows[np.sort(kept.numpy())]
    return best
