"""Divide the identities of a small data set into those for training and those for testing.

VIPeR, PRID and i-LIDS come without a division: it is customary to draw ten and to report the mean.  GRID comes with ten
partitions of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from reid.data.protocols.matlab import read_mat
from reid.data.protocols.protocol_table import Division, fill
from reid.errors import DataError
from reid.records import Sample, Split


def divide(samples: Sequence[Sample], division: Division, root: Path, words: Mapping[str, str]) -> tuple[Sample, ...]:
    """Move the samples of the training identities to the train split.

    Only identities with a query and a gallery image are divided, or with ``division.pair`` those with two images.
    Other gallery samples stay as distractors, other queries are left out.

    Args:
        samples: Samples of the splits query and gallery.
        division: How they are divided.
        root: The folder of the data set, which holds the file of partitions.
        words: Words for the template of the seed.

    Returns:
        The divided samples.

    Raises:
        DataError: There are too few identities, or the file of partitions is not readable.
    """
    number = int(fill(division.seed, words))
    people = _people(samples, division.pair)
    if len(people) <= division.train:
        raise DataError(f"{root}: {len(people)} people with two images, too few to train on {division.train} of them")
    if division.partitions:
        training = _partition(root / division.partitions, number, people)
    else:
        drawn = np.random.default_rng(number).permutation(len(people))[: division.train]
        training = frozenset(people[i] for i in drawn)
    known = frozenset(people)
    kept = [
        replace(sample, split=Split.TRAIN) if sample.identity in training else sample
        for sample in samples
        if sample.identity in known or sample.split is not Split.QUERY
    ]
    return tuple(_draw_pairs(kept, number) if division.pair else kept)


def _people(samples: Sequence[Sample], pair: bool) -> list[str]:
    names = [s.identity for s in samples if s.split is Split.GALLERY]
    if pair:
        return sorted({name for name in names if names.count(name) > 1})
    return sorted({s.identity for s in samples if s.split is Split.QUERY} & set(names))


def _partition(path: Path, number: int, people: Sequence[str]) -> frozenset[str]:
    """Read the training identities of partition ``number``, counted from 1, from GRID's ``trainIdxAll``.

    Each of its cells is a struct whose third field lists the identities.
    """
    try:
        entry = read_mat(path)["trainIdxAll"].reshape(-1)[number - 1].reshape(-1)[0]
        listed = {int(index) for index in list(entry.values())[2].reshape(-1)}
    except (KeyError, IndexError, AttributeError, ValueError) as error:
        raise DataError(f"{path}: expected ten partitions in trainIdxAll, as GRID's authors list them") from error
    return frozenset(name for name in people if int(name) in listed)


def _draw_pairs(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Draw one image of each test identity as the query and another as the gallery; leave out the others."""
    generator = np.random.default_rng([seed, 1])
    kept = [sample for sample in samples if sample.split is Split.TRAIN]
    rows: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.split is Split.GALLERY:
            rows.setdefault(sample.identity, []).append(sample)
    for name in sorted(name for name in rows if len(rows[name]) > 1):
        first, second = generator.permutation(len(rows[name]))[:2]
        kept += [replace(rows[name][first], split=Split.QUERY), rows[name][second]]
    return kept
