"""Which images make a training batch: P identities of one kind of object, K images each, and unlabelled ones.

Knows labels only.  Every batch is a function of (seed, epoch), so that a resumed training sees
the same batches.
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
    """Class of every sample and the classes' names.

    Returns ``(targets, names)``: ``targets`` (N,) int64, ``targets[i]`` is the class of
    ``samples[i]``; ``names[c]`` is the (domain, identity) of class c.  Classes are sorted by
    name; the same identity in two domains makes two classes.
    """
    for sample in samples:
        if not sample.identity:
            raise DataError(f"{sample.path}: no identity; training needs one for every image of the train split")
    names = tuple(sorted({(s.category, s.identity) for s in samples}))
    index = {name: i for i, name in enumerate(names)}
    return np.array([index[s.category, s.identity] for s in samples], dtype=np.int64), names


class BalancedBatches:
    """Batches of P distinct identities with K images each, all of one domain (kind of object).

    The K images of an identity are spread over its modalities first (K/2 visible and K/2 infrared
    where it has both; ``balance="camera"`` leaves this step out) and within them over its cameras,
    as evenly as they go; an image stands twice only if the identity has fewer than K.  Domains
    take turns in proportion to their numbers of images.  An epoch shows every identity about
    ``visits`` times.

    ``batches.epoch(e)`` is a list of ``len(batches)`` int64 arrays (P*K,): positions in
    ``samples``, the K images of an identity side by side.
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
        self._groups = _camera_groups(samples, self._targets, by_modality=balance == "modality")
        self._check_images()
        self._classes = _classes_by_domain(self._names)
        self._check_identities()
        self._quota = self._batches_by_domain(visits)

    def __len__(self) -> int:
        return sum(self._quota.values())

    def epoch(self, number: int) -> list[IntArray]:
        """The batches of epoch ``number`` (0, 1, ...), the same whenever asked."""
        rng = np.random.default_rng([self.seed, number])
        schedule = [domain for domain, count in self._quota.items() for _ in range(count)]
        rng.shuffle(schedule)
        identities = {d: self._identity_batches(self._classes[d], n, rng) for d, n in self._quota.items()}
        return [self._images(next(identities[domain]), rng) for domain in schedule]

    def _images(self, classes: Sequence[int], rng: np.random.Generator) -> IntArray:
        k = self.images_per_identity
        return np.concatenate([np.resize(_spread(self._groups[c], k, rng), k) for c in classes])

    def _identity_batches(self, classes: IntArray, count: int, rng: np.random.Generator) -> Iterator[list[int]]:
        """``count`` lists of P distinct classes: shuffled rounds, cut without a repeat inside a batch."""
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

    def _batches_by_domain(self, visits: int) -> dict[str, int]:
        """Batches an epoch for each domain: in proportion to images, largest remainders, at least one."""
        images: dict[str, int] = defaultdict(int)
        for target in self._targets:
            images[self._names[target][0]] += 1
        total = max(round(visits * len(self._names) / self.identities_per_batch), 1)
        shares = {domain: total * images[domain] / len(self._targets) for domain in self._classes}
        quota = {domain: int(share) for domain, share in shares.items()}
        by_remainder = sorted(shares, key=lambda domain: (quota[domain] - shares[domain], domain))
        for domain in by_remainder[: total - sum(quota.values())]:
            quota[domain] += 1
        return {domain: max(count, 1) for domain, count in quota.items()}

    def _check_images(self) -> None:
        lone = [c for c, groups in self._groups.items() if sum(len(i) for g in groups for i in g) < 2]
        if lone and self.images_per_identity > 1:
            more = f" (and {len(lone) - 1} more identities)" if len(lone) > 1 else ""
            domain, identity = self._names[lone[0]]
            raise DataError(
                f'identity "{identity}" of domain "{domain}"{more} has one training image; '
                "learning to match needs at least two: add images or take it out of the train split"
            )

    def _check_identities(self) -> None:
        for domain, classes in self._classes.items():
            if len(classes) < self.identities_per_batch:
                raise DataError(
                    f'domain "{domain}" has {len(classes)} training identities but a batch needs '
                    f"{self.identities_per_batch}; lower identities_per_batch or add identities"
                )


class UnlabelledBatches:
    """``count`` images for every batch, drawn without a look at identities.

    They are spread as the images of one identity are in :class:`BalancedBatches`: over modalities first (unless
    ``balance`` is "camera"), then over cameras; an image stands twice in a batch only if there are fewer.
    """

    def __init__(self, samples: Sequence[Sample], count: int, seed: int, *, balance: Balance = "modality") -> None:
        _check_balance(balance)
        if not samples or count < 1:
            raise DataError(f"unlabelled batches: expected images to draw from, got {len(samples)} for {count} a batch")
        self.count, self.seed = count, seed
        together = np.zeros(len(samples), dtype=np.int64)
        self._images = _camera_groups(samples, together, by_modality=balance == "modality")[0]

    def epoch(self, number: int, batches: int) -> list[IntArray]:
        """For each of ``batches`` batches of epoch ``number``: positions (count,) int64 in ``samples``."""
        rng = np.random.default_rng([self.seed, number, 1])  # another stream than that of the labelled batches
        drawn = [_spread(self._images, self.count, rng) for _ in range(batches)]
        return [np.resize(np.array(rows, dtype=np.int64), self.count) for rows in drawn]


def _check_balance(balance: str) -> None:
    if balance not in _BALANCES:
        raise ConfigError(unknown_name("balance", balance, _BALANCES))


def _classes_by_domain(names: Sequence[tuple[str, str]]) -> dict[str, IntArray]:
    found: dict[str, list[int]] = defaultdict(list)
    for number, (domain, _) in enumerate(names):
        found[domain].append(number)
    return {domain: np.array(classes, dtype=np.int64) for domain, classes in found.items()}


def _camera_groups(
    samples: Sequence[Sample], targets: IntArray, *, by_modality: bool
) -> dict[int, list[list[IntArray]]]:
    """For each class: modalities, in each its cameras, for each camera the positions of its images."""
    found: dict[int, dict[str, dict[str, list[int]]]] = {}
    for position, (sample, target) in enumerate(zip(samples, targets.tolist(), strict=True)):
        outer = str(sample.modality) if by_modality else ""
        # A camera is one sensor; one that delivers both kinds of light counts as two.
        inner = f"{sample.modality}/{sample.camera}"
        found.setdefault(target, {}).setdefault(outer, {}).setdefault(inner, []).append(position)
    return {
        target: [[np.array(images, dtype=np.int64) for images in cameras.values()] for cameras in modalities.values()]
        for target, modalities in found.items()
    }


def _spread(modalities: Sequence[Sequence[IntArray]], count: int, rng: np.random.Generator) -> list[int]:
    """At most ``count`` distinct images, taking turns over modalities, and in each over cameras."""
    shuffled = [[rng.permutation(images).tolist() for images in _in_any_order(m, rng)] for m in modalities]
    orders = [_take_turns(cameras) for cameras in shuffled]
    return list(islice(_take_turns(_in_any_order(orders, rng)), count))


def _in_any_order(items: Sequence[_T], rng: np.random.Generator) -> list[_T]:
    return [items[i] for i in rng.permutation(len(items))]


def _take_turns(sources: Iterable[Iterable[int]]) -> Iterator[int]:
    """One item of each source in turn; a source that ran dry is left out."""
    waiting = [iter(source) for source in sources]
    while waiting:
        alive = []
        for source in waiting:
            for item in islice(source, 1):
                alive.append(source)
                yield item
        waiting = alive
