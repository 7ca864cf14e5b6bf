"""Boxes as every detector gives them: inside the picture, best first, one a person."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torchvision.ops import nms

from reid.records import FloatArray

OVERLAP = 0.6  # of two boxes that overlap more, the weaker one shows the same person


def tidy(boxes: Any, scores: Any, size: tuple[int, int]) -> FloatArray:
    """(N, 5) float32 left, top, right, bottom, score, the best first, from ``boxes`` (M, 4) and ``scores`` (M,).

    Boxes are cut at the borders of the picture, whose (height, width) is ``size``; what is left empty, what is not
    finite and what a better box covers is dropped.
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
