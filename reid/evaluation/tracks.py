"""Tracks instead of images as the answers of a gallery, as VeRi-776's authors rank them.

A track is what one camera saw of one passer-by; a query is as similar to it as to its most similar
image (Liu et al., "PROVID: Progressive and Multimodal Vehicle Reidentification for Large-Scale Urban
Surveillance", IEEE Transactions on Multimedia 2018).  Nothing here knows which tracks are right.
"""

from __future__ import annotations

import numpy as np

from reid.errors import DataError
from reid.evaluation.score_blocks import ScoreBlocks, Vectors
from reid.records import Embeddings, IntArray


def by_track(gallery: Embeddings) -> tuple[Embeddings, IntArray]:
    """``gallery`` with the rows of each track together, and where each of the T tracks starts, (T,) int64.

    Rows of one track name that differ in identity or camera are different tracks.  A row without a
    track or without a camera is a DataError: without a camera nobody can say which tracks are the query's own.
    """
    for field in ("track", "camera"):
        unknown = [sample.path for sample in gallery.samples if not getattr(sample, field)]
        if unknown:
            raise DataError(
                f"rule: ranked=track needs the {field} of every gallery row; {len(unknown)} of {len(gallery)} have"
                f" none, such as {unknown[0]}; fill in the column {field}, or rank images"
            )
    names = [(sample.track, sample.identity, sample.camera) for sample in gallery.samples]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    tracks = np.array([numbers[name] for name in names], np.int64)
    order = np.argsort(tracks, kind="stable").astype(np.int64)
    return gallery.select(order), np.searchsorted(tracks[order], np.arange(len(numbers))).astype(np.int64)


def best_of_tracks(scores: ScoreBlocks, starts: IntArray) -> ScoreBlocks:
    """The scores (B, T) of tracks that start at the columns ``starts`` (T,) of ``scores`` (B, G): their maxima."""

    def best(start: int, stop: int) -> Vectors:
        return np.maximum.reduceat(scores(start, stop), starts, axis=1)

    return best
