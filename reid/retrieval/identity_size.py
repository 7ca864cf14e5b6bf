"""How many crops an identity has in a camera, estimated without labels, and what follows for lists of neighbours.

Re-ranking and expansion average over neighbours. With more neighbours than an identity has crops, they average
different identities and spoil the ranking. The estimate groups crops whose camera-aware Jaccard similarity is at least
``SAME`` and counts the members of the groups. It starts with averages over two crops, which cannot make groups of their
own, and takes longer lists only where the shorter ones found groups that fill them.

Measured on the synthetic street and on two-camera images of vehicles, both thinned to 1, 2, 3 and 4 crops of an
identity in a camera and to 1 to 4 at random, the estimate never takes one crop for several and is at most 2 too low.
Where a network finds few crops of the same identity at all, several crops count as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from reid.records import IntArray
from reid.retrieval.camera_jaccard import jaccard_of_lists
from reid.retrieval.camera_neighbours import CameraNeighbours, Similarity, own_and_other_neighbours

if TYPE_CHECKING:
    import scipy.sparse

SAME = 0.6  # the Jaccard similarity from which two crops join a group
SEVERAL = 1.15  # members of a group in a camera, the mean from which identities have more than one crop in a camera
FEWEST_CROPS = 100  # lists of fewer crops hold a large share of all crops, so that groups grow together
MOST_OTHERS = 20  # neighbours in other cameras; the value of the paper for six cameras

FIRST_LISTS = ((4, 4), (1, 1))
LONGER_LISTS = {2: ((4, 8), (2, 4)), 4: ((8, 8), (4, 4)), 8: ((16, 16), (8, 8))}
"""k1 and k2 by the number of crops in a camera from which the lists are used."""

LONGEST_OWN, LONGEST_OTHERS = 17, MOST_OTHERS + 1  # of the lists of neighbours that everything here reads


@dataclass(frozen=True)
class IdentitySize:
    """How many crops an identity has.

    Args:
        crops: In a camera that shows it, the median over the crops in groups; 1 where there are no groups.
        others: In all other cameras together, the median over the crops in groups.
        groups: The number of groups.
        grouped: The share of crops in groups.
    """

    crops: int
    others: int
    groups: int
    grouped: float

    @property
    def k1(self) -> tuple[int, int]:
        """The lengths k1 of camera-aware Jaccard similarity for identities of this size."""
        return max(4, self.crops), int(np.clip(self.others, 4, MOST_OTHERS))

    @property
    def k2(self) -> tuple[int, int]:
        """The lengths k2 of camera-aware Jaccard similarity: half an identity, and half of k1 at most."""
        if self.crops < 2:
            return 1, 1
        return max(2, round(self.crops / 2)), max(2, round(min(self.others, MOST_OTHERS) / 2))


def lists_for_estimate(similarity: Similarity, cameras: IntArray) -> CameraNeighbours:
    """Find the lists of neighbours that :func:`estimate_identity_size` and re-ranking read, in one pass."""
    return own_and_other_neighbours(similarity, cameras, LONGEST_OWN, LONGEST_OTHERS)


def estimate_identity_size(near: CameraNeighbours, cameras: IntArray) -> IdentitySize:
    """Estimate how many crops an identity has in a camera, and in the other cameras.

    Args:
        near: The lists of N crops, from :func:`lists_for_estimate` with similarities that are normalized for each pair
            of cameras.
        cameras: (N,) int64, the camera of each crop.

    Returns:
        The estimate. Fewer than ``FEWEST_CROPS`` crops say too little, so they count as one crop in a camera.

    Example:
        >>> from reid.retrieval.camera_neighbours import cosine_blocks
        >>> random = np.random.default_rng(0)
        >>> identity, cameras = np.repeat(np.arange(30), 6), np.tile(np.arange(2), 90)
        >>> vectors = random.standard_normal((30, 32))[identity] + 0.4 * random.standard_normal((180, 32))
        >>> vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        >>> near = lists_for_estimate(cosine_blocks(vectors), cameras)
        >>> size = estimate_identity_size(near, cameras)
        >>> size.crops, size.others, size.groups
        (3, 3, 30)
    """
    size, mean = _measure_groups(jaccard_of_lists(near, *FIRST_LISTS, SAME), cameras)
    if mean < SEVERAL or len(cameras) < FEWEST_CROPS:
        return IdentitySize(1, size.others, size.groups, size.grouped)
    crops = 2
    for least, lists in LONGER_LISTS.items():
        if crops >= least:
            size, _ = _measure_groups(jaccard_of_lists(near, *lists, SAME), cameras)
            crops = size.crops
    return size


def _measure_groups(similar: scipy.sparse.csr_matrix, cameras: IntArray) -> tuple[IdentitySize, float]:
    """Group crops that are connected by entries of ``similar``; return sizes, and the mean number in a camera."""
    from scipy.sparse.csgraph import connected_components

    _, group = connected_components(similar, directed=False)
    sizes = np.bincount(group)
    inside = sizes[group] > 1
    if not inside.any():
        return IdentitySize(1, 0, 0, 0.0), 1.0
    pairs = np.stack([group[inside], cameras[inside]], axis=1)
    _, inverse, counts = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
    own = counts[inverse.reshape(-1)]
    size = IdentitySize(
        max(1, int(np.median(own))),
        int(np.median(sizes[group[inside]] - own)),
        int(np.count_nonzero(sizes > 1)),
        float(inside.mean()),
    )
    return size, float(counts.mean())
