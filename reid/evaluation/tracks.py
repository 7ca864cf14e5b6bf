"""Rankings of tracks instead of images: what one camera recorded of one passer-by counts as one answer."""

from __future__ import annotations

import numpy as np

from reid.errors import DataError
from reid.records import Embeddings, IntArray


def track_order(gallery: Embeddings) -> tuple[IntArray, IntArray]:
    """Order the gallery rows so that those of each track are together, for a ranking of tracks instead of images.

    A track is what one camera recorded of one passer-by (Liu et al., "PROVID: Progressive and Multimodal Vehicle
    Reidentification for Large-Scale Urban Surveillance", IEEE Transactions on Multimedia 2018).  Rows with the same
    track name that differ in identity or camera are different tracks.

    Returns:
        The order (G,) int64 of the rows, and the position in it at which each of the T tracks starts, (T,) int64.

    Raises:
        DataError: A row has no track or no camera.  Without a camera it is not known which tracks the query's own
            camera recorded.
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
    return order, np.searchsorted(tracks[order], np.arange(len(numbers))).astype(np.int64)
