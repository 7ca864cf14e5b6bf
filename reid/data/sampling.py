"""Choose the images of a training batch: P identities of one category with K images each, and unlabelled images.

Every batch is a function of the seed and the epoch, so that a training that is continued gets the same batches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal, TypeVar

import numpy as np

from reid.errors import ConfigError, DataError, unknown_name
from reid.records import IntArray, Sample

Balance = Literal["modality", "camera"]
_BALANCES = ("modality", "camera")
_T = TypeVar("_T")


def identity_classes(samples: Sequence[Sample]) -> tuple[IntArray, tuple[tuple[str, str], ...]]:
    """Number the identities of samples as classes, in the order of their names.

    The same identity in two categories makes two classes.

    Args:
        samples: N samples.

    Returns:
        The class of each sample, (N,) int64, and for each class its (category, identity).

    Raises:
        DataError: A sample has no identity.

    Example:
        >>> from pathlib import Path
        >>> samples = [Sample(Path(f"{i}.jpg"), name) for i, name in enumerate(("bo", "anna", "bo"))]
        >>> classes, names = identity_classes(samples)
        >>> classes.tolist(), names
        ([1, 0, 1], (('person', 'anna'), ('person', 'bo')))
    """
    for sample in samples:
        if not sample.identity:
            raise DataError(f"{sample.path}: no identity; training needs one for every image of the train split")
    names = tuple(sorted({(s.category, s.identity) for s in samples}))
    index = {name: i for i, name in enumerate(names)}
    return np.array([index[s.category, s.identity] for s in samples], dtype=np.int64), names


class BalancedBatches:
    """Batches of P different identities with K images each, all of one category.

    The K images of an identity are spread as evenly as possible, first over its modalities (K/2 visible and K/2
    infrared where it has both) and then over its cameras.  An image stands twice in a batch only if its identity has
    fewer than K images.  Categories take turns in proportion to their numbers of images.

    Args:
        samples: The images to choose from.
        identities_per_batch: P.
        images_per_identity: K.
        seed: Together with the number of the epoch it decides every batch.
        balance: "camera" spreads the images over cameras only.
        visits: About how many times an epoch shows every identity.

    Raises:
        ConfigError: A number is below 1, or ``balance`` is unknown.
        DataError: There are no images, too few identities for a batch, or an identity with a single image.

    Example:
        >>> from pathlib import Path
        >>> samples = [Sample(Path(f"{i}.jpg"), identity=str(i // 2)) for i in range(8)]
        >>> batches = BalancedBatches(samples, identities_per_batch=2, images_per_identity=2, seed=0)
        >>> len(batches), [sorted(batch.tolist()) for batch in batches.epoch(0)]
        (2, [[0, 1, 4, 5], [2, 3, 6, 7]])
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        identities_per_batch: int,
        images_per_identity: int,
        seed: int,
        *,
        balance: Balance = "modality",
        visits: int = 1,
    ) -> None:
        _check_balance(balance)
        numbers = {"identities_per_batch": identities_per_batch, "images_per_identity": images_per_identity}
        for name, number in (numbers | {"visits": visits}).items():
            if number < 1:
                raise ConfigError(f"{name}: expected at least 1, got {number}")
        if not samples:
            raise DataError("no training images: the train split is empty")
        self.identities_per_batch = identities_per_batch
        self.images_per_identity = images_per_identity
        self.seed = seed
        self._targets, self._names = identity_classes(samples)
        self._groups = _images_by_camera(samples, self._targets, by_modality=balance == "modality")
        self._check_images()
        self._classes = _classes_by_category(self._names)
        self._check_identities()
        self._quota = self._batches_by_category(visits)

    def __len__(self) -> int:
        return sum(self._quota.values())

    def epoch(self, number: int) -> list[IntArray]:
        """Choose the batches of an epoch; the same number gives the same batches.

        Args:
            number: The epoch, from 0.

        Returns:
            ``len(self)`` arrays (P*K,) int64 of positions in ``samples``; the K images of an identity are neighbours.
        """
        rng = np.random.default_rng([self.seed, number])
        schedule = [category for category, count in self._quota.items() for _ in range(count)]
        rng.shuffle(schedule)
        identities = {c: self._identity_batches(self._classes[c], n, rng) for c, n in self._quota.items()}
        return [self._choose_images(next(identities[category]), rng) for category in schedule]

    def _choose_images(self, classes: Sequence[int], rng: np.random.Generator) -> IntArray:
        k = self.images_per_identity
        return np.concatenate([np.resize(_spread(self._groups[c], k, rng), k) for c in classes])

    def _identity_batches(self, classes: IntArray, count: int, rng: np.random.Generator) -> Iterator[list[int]]:
        """Yield ``count`` lists of P different classes: shuffled rounds, cut so that no batch repeats a class."""
        p = self.identities_per_batch
        queue: list[int] = []
        for _ in range(count):
            batch, queue = queue[:p], queue[p:]
            if len(batch) < p:
                taken, fresh = set(batch), rng.permutation(classes).tolist()
                early = [c for c in fresh if c not in taken]
                need = p - len(batch)
                batch = batch + early[:need]
                queue = early[need:] + [c for c in fresh if c in taken]
            yield batch

    def _batches_by_category(self, visits: int) -> dict[str, int]:
        """Divide the batches of an epoch among categories by their images: largest remainders, at least one each."""
        images: dict[str, int] = defaultdict(int)
        for target in self._targets:
            images[self._names[target][0]] += 1
        total = max(round(visits * len(self._names) / self.identities_per_batch), 1)
        shares = {category: total * images[category] / len(self._targets) for category in self._classes}
        quota = {category: int(share) for category, share in shares.items()}
        by_remainder = sorted(shares, key=lambda category: (quota[category] - shares[category], category))
        for category in by_remainder[: total - sum(quota.values())]:
            quota[category] += 1
        return {category: max(count, 1) for category, count in quota.items()}

    def _check_images(self) -> None:
        single = [c for c, groups in self._groups.items() if sum(len(i) for g in groups for i in g) < 2]
        if single and self.images_per_identity > 1:
            more = f" (and {len(single) - 1} more identities)" if len(single) > 1 else ""
            category, identity = self._names[single[0]]
            raise DataError(
                f'identity "{identity}" of category "{category}"{more} has one training image; '
                "learning to match needs at least two: add images or take it out of the train split"
            )

    def _check_identities(self) -> None:
        for category, classes in self._classes.items():
            if len(classes) < self.identities_per_batch:
                raise DataError(
                    f'category "{category}" has {len(classes)} training identities but a batch needs '
                    f"{self.identities_per_batch}; lower identities_per_batch or add identities"
                )


class UnlabelledBatches:
    """Batches of images that are drawn without regard to identities.

    They are spread as the images of one identity are in :class:`BalancedBatches`: first over modalities, unless
    ``balance`` is "camera", and then over cameras.  An image stands twice in a batch only if there are fewer than
    ``count`` images.

    Args:
        samples: The images to draw from.
        count: Images in a batch.
        seed: Together with the number of the epoch it decides every batch.
        balance: "camera" spreads the images over cameras only.

    Raises:
        ConfigError: ``balance`` is unknown.
        DataError: There are no images, or ``count`` is below 1.
    """

    def __init__(self, samples: Sequence[Sample], count: int, seed: int, *, balance: Balance = "modality") -> None:
        _check_balance(balance)
        if not samples or count < 1:
            raise DataError(f"unlabelled batches: expected images to draw from, got {len(samples)} for {count} a batch")
        self.count, self.seed = count, seed
        one_class = np.zeros(len(samples), dtype=np.int64)
        self._images = _images_by_camera(samples, one_class, by_modality=balance == "modality")[0]

    def epoch(self, number: int, batches: int) -> list[IntArray]:
        """Draw ``batches`` batches of epoch ``number``: arrays (count,) int64 of positions in ``samples``."""
        rng = np.random.default_rng([self.seed, number, 1])  # another stream than that of the labelled batches
        drawn = [_spread(self._images, self.count, rng) for _ in range(batches)]
        return [np.resize(np.array(rows, dtype=np.int64), self.count) for rows in drawn]


def _check_balance(balance: str) -> None:
    if balance not in _BALANCES:
        raise ConfigError(unknown_name("balance", balance, _BALANCES))


def _classes_by_category(names: Sequence[tuple[str, str]]) -> dict[str, IntArray]:
    found: dict[str, list[int]] = defaultdict(list)
    for number, (category, _) in enumerate(names):
        found[category].append(number)
    return {category: np.array(classes, dtype=np.int64) for category, classes in found.items()}


def _images_by_camera(
    samples: Sequence[Sample], targets: IntArray, *, by_modality: bool
) -> dict[int, list[list[IntArray]]]:
    """Group the positions of images by class, then by modality, then by camera."""
    found: dict[int, dict[str, dict[str, list[int]]]] = {}
    for position, (sample, target) in enumerate(zip(samples, targets.tolist(), strict=True)):
        outer = str(sample.modality) if by_modality else ""
        # A camera is one sensor; one that delivers both visible and infrared light counts as two.
        inner = f"{sample.modality}/{sample.camera}"
        found.setdefault(target, {}).setdefault(outer, {}).setdefault(inner, []).append(position)
    return {
        target: [[np.array(images, dtype=np.int64) for images in cameras.values()] for cameras in modalities.values()]
        for target, modalities in found.items()
    }


def _spread(modalities: Sequence[Sequence[IntArray]], count: int, rng: np.random.Generator) -> list[int]:
    """Draw at most ``count`` different images, taking turns over modalities and within each over cameras."""
    shuffled = [[rng.permutation(images).tolist() for images in _shuffled(m, rng)] for m in modalities]
    orders = [_take_turns(cameras) for cameras in shuffled]
    return list(islice(_take_turns(_shuffled(orders, rng)), count))


def _shuffled(items: Sequence[_T], rng: np.random.Generator) -> list[_T]:
    return [items[i] for i in rng.permutation(len(items))]


def _take_turns(sources: Iterable[Iterable[int]]) -> Iterator[int]:
    """Yield one item of each source in turn; leave out a source that has no more."""
    waiting = [iter(source) for source in sources]
    while waiting:
        unfinished = []
        for source in waiting:
            for item in islice(source, 1):
                unfinished.append(source)
                yield item
        waiting = unfinished
