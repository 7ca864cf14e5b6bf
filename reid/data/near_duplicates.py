"""Images that are nearly the same as others, for commands that list them or stop at one.

Collections hold the same picture under several names: saved again, resized, or as the next frame of a video.  Without
:func:`duplicates_handled_by` nobody looks for them, which is the usual policy, "keep".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from reid.errors import DataError
from reid.records import Sample

if TYPE_CHECKING:
    from torch import Tensor

KEEP, LIST, STOP = NEAR_POLICIES = ("keep", "list", "stop")
SHOWN = 20  # pairs that :meth:`NearDuplicates.lines` names
ROWS, COLUMNS, CELLS = 8, 8, 8  # of differences of brightness, and cells of mean colour in each direction
MOST_BITS = 3  # of the 64 signs of differences that may be others
MOST_DIFFERENCE = 0.12  # of the deviation of the colours of the cells, by which they may differ on average
LEAST_DEVIATION = 8.0  # levels of 255; images that are flatter count as having it
WORDS = 4  # into which the signs are cut; images with at most WORDS - 1 other signs have one word in common
MOST_COMPARED = 256  # earlier images with the same word that an image is compared with, the last ones


@dataclass
class NearDuplicates:
    """The images that are nearly the same as one that was read before.

    Two images are nearly the same if the signs of the differences between neighbouring cells of brightness (a
    difference hash of 64 bits) are others in at most three places, and the mean colours of 64 cells differ by at most
    an eighth of their deviation.  Images of different cameras can be nearly the same, too.

    Attributes:
        stops: Whether the first such image is an error.
        pairs: The path of each, and of the earlier image that it resembles.

    Example:
        >>> import torch
        >>> found, random = NearDuplicates(), torch.Generator().manual_seed(0)
        >>> image = torch.randint(0, 200, (3, 64, 32), generator=random, dtype=torch.uint8)
        >>> found.add(Sample(Path("1.jpg")), image)
        >>> found.add(Sample(Path("2.jpg")), image + 1)
        >>> found.lines()
        ['1 image is nearly the same as another:', '  2.jpg: as 1.jpg']
    """

    stops: bool = False
    pairs: dict[Path, Path] = field(default_factory=dict)
    _paths: list[Path] = field(default_factory=list)
    _known: set[Path] = field(default_factory=set)
    _signs: list[int] = field(default_factory=list)
    _colours: list[npt.NDArray[np.float32]] = field(default_factory=list)
    _by_word: defaultdict[tuple[int, int], list[int]] = field(default_factory=lambda: defaultdict(list))

    def add(self, sample: Sample, crop: Tensor) -> None:
        """Compare an image (3, H, W) uint8 with those before it, once for each path.

        Raises:
            DataError: It is nearly the same as another one, and ``stops``.
        """
        if sample.path in self._known:
            return
        self._known.add(sample.path)
        signs, colours = _signs_of(crop), _colours_of(crop)
        words = [(number, signs >> (16 * number) & 0xFFFF) for number in range(WORDS)]
        for other in dict.fromkeys(one for word in words for one in reversed(self._by_word[word][-MOST_COMPARED:])):
            near = (signs ^ self._signs[other]).bit_count() <= MOST_BITS
            if near and _are_near(colours, self._colours[other]):
                self._note(sample.path, self._paths[other])
                return
        for word in words:
            self._by_word[word].append(len(self._paths))
        self._paths.append(sample.path)
        self._signs.append(signs)
        self._colours.append(colours)

    def _note(self, path: Path, other: Path) -> None:
        if self.stops:
            raise DataError(
                f"{path}: is nearly the same image as {other}; remove one of them, or pass --near-duplicates list"
            )
        self.pairs[path] = other

    def __len__(self) -> int:
        return len(self.pairs)

    def lines(self) -> list[str]:
        """Describe them for a person; nothing where there are none."""
        if not self.pairs:
            return []
        what = "image is" if len(self) == 1 else "images are"
        shown = [f"  {path}: as {other}" for path, other in list(self.pairs.items())[:SHOWN]]
        rest = [f"  ... and {len(self) - SHOWN} more"] if len(self) > SHOWN else []
        return [f"{len(self)} {what} nearly the same as another:", *shown, *rest]


def _signs_of(crop: Tensor) -> int:
    """Return 64 bits: whether each cell is clearly brighter than the one to its left."""
    cells = _mean_cells(crop, (ROWS, COLUMNS + 1)).mean(axis=0)
    return int.from_bytes(np.packbits(np.diff(cells, axis=1) > 1).tobytes(), "big")


def _colours_of(crop: Tensor) -> npt.NDArray[np.float32]:
    """Return the mean colours (3 CELLS CELLS,) of the cells of an image."""
    return _mean_cells(crop, (CELLS, CELLS)).reshape(-1)


def _are_near(colours: npt.NDArray[np.float32], others: npt.NDArray[np.float32]) -> bool:
    difference = float(np.abs(colours - others).mean())
    return difference <= MOST_DIFFERENCE * max(LEAST_DEVIATION, float(min(colours.std(), others.std())))


def _mean_cells(crop: Tensor, size: tuple[int, int]) -> npt.NDArray[Any]:
    from torch.nn.functional import adaptive_avg_pool2d

    means: npt.NDArray[Any] = adaptive_avg_pool2d(crop.float(), size).numpy()
    return means


_CURRENT: ContextVar[NearDuplicates | None] = ContextVar("near_duplicates", default=None)


def current_near_duplicates() -> NearDuplicates | None:
    """Return where images are compared; None where nobody looks for such that are nearly the same."""
    return _CURRENT.get()


@contextmanager
def duplicates_handled_by(near: NearDuplicates | None) -> Iterator[None]:
    """Compare the images that are read inside the ``with`` block; None compares none."""
    token = _CURRENT.set(near)
    try:
        yield
    finally:
        _CURRENT.reset(token)
