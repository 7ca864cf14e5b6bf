"""Which identities a training learns from: those with one image are left out, and some are held out to measure it."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np

from reid.config import Experiment
from reid.errors import DataError
from reid.records import Sample
from reid.training.training_data import TrainingRows

_HELD_OUT = 7  # part of the seed, so that the choice draws other numbers than the batches
MIN_IDENTITIES = 2  # held out of a category, so that there is something to confuse


def choose_rows(rows: TrainingRows, experiment: Experiment) -> tuple[TrainingRows, tuple[Sample, ...], tuple[str, ...]]:
    """Divide the labelled rows into those to learn from and those of held-out identities.

    Args:
        rows: All rows of the training.
        experiment: Says what to do with identities that have one image, and how many identities are held out.

    Returns:
        The rows to learn from, the held-out samples, and sentences about what was left out.

    Raises:
        DataError: Identities have one image and ``data.singletons`` is "error", or nothing remains to learn from.
    """
    rows, notes = leave_out_singletons(rows, experiment.data.singletons)
    if not experiment.data.held_out:
        return rows, (), notes
    held_out = hold_out(rows.samples, experiment.data.held_out, experiment.train.seed)
    chosen = set(map(_key, held_out))
    rows = replace(rows, samples=tuple(sample for sample in rows.samples if _key(sample) not in chosen))
    held_out = tuple(sample for sample in held_out if not sample.generated)  # they are queries and a gallery
    known = set(rows.domain_names) if rows.domain_fields else set()
    usable = tuple(sample for sample, name in zip(held_out, _domains(rows, held_out), strict=True) if name in known)
    usable = usable if rows.domain_fields else held_out
    identities = len({_key(sample) for sample in usable})
    notes += (f"held out: {identities} identities with {len(usable)} images, to measure epochs",)
    return rows, usable, notes


def leave_out_singletons(rows: TrainingRows, policy: str) -> tuple[TrainingRows, tuple[str, ...]]:
    """Leave out the identities that have one image, from which no matching can be learned.

    Args:
        rows: All rows of the training.
        policy: "leave out", or "error" to refuse them.

    Returns:
        The other rows, and a sentence with the number of those left out, where there are any.

    Raises:
        DataError: The policy is "error" and there are such identities, all of which the message names; or no other
            identity remains.
    """
    counts = Counter(map(_key, rows.samples))
    single = sorted(key for key, count in counts.items() if count == 1 and key[1])
    if not single:
        return rows, ()
    total = f"{len(single)} of {len(counts)} identities have one training image"
    if policy == "error":
        names = ", ".join(f"{identity} ({category})" for category, identity in single)
        raise DataError(f'{total}: {names}; add images, or set data.singletons = "leave out"')
    kept = tuple(sample for sample in rows.samples if counts[_key(sample)] > 1 or not sample.identity)
    if not kept:
        raise DataError(f"{total}; learning to match needs identities with two: add images")
    return replace(rows, samples=kept), (f'{total} and are left out (data.singletons = "leave out")',)


def hold_out(samples: tuple[Sample, ...], fraction: float, seed: int) -> tuple[Sample, ...]:
    """Choose whole identities by chance: a fraction of those of each category, at least two.

    The choice depends on the names of the identities and the seed only, not on the order of the rows.

    Raises:
        DataError: A category has too few identities to hold two out and to learn from two.

    Example:
        >>> from pathlib import Path
        >>> samples = tuple(Sample(Path(f"{i}.jpg"), identity=str(i // 2)) for i in range(10))
        >>> len({sample.identity for sample in hold_out(samples, 0.4, seed=0)})
        2
    """
    identities = defaultdict[str, set[str]](set)
    for sample in samples:
        identities[sample.category].add(sample.identity)
    chosen: set[tuple[str, str]] = set()
    for category in sorted(identities):
        names = sorted(identities[category])
        count = max(MIN_IDENTITIES, round(fraction * len(names)))
        if len(names) - count < MIN_IDENTITIES:
            raise DataError(
                f'data.held_out = {fraction}: category "{category}" has {len(names)} identities with two images or'
                f" more, too few to hold {count} out; lower it, or set it to 0"
            )
        drawn = np.random.default_rng([seed, _HELD_OUT]).permutation(len(names))[:count]
        chosen |= {(category, names[number]) for number in drawn}
    return tuple(sample for sample in samples if _key(sample) in chosen)


def _key(sample: Sample) -> tuple[str, str]:
    return sample.category, sample.identity


def _domains(rows: TrainingRows, samples: tuple[Sample, ...]) -> tuple[str, ...]:
    """Name the normalization domains of held-out samples as those of the other labelled rows are named."""
    return replace(rows, samples=(*rows.samples, *samples), unlabelled=rows.unlabelled).domain_names[
        len(rows.samples) : len(rows.samples) + len(samples)
    ]
