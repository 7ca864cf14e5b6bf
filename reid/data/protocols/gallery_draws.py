"""Which gallery images take part in each trial of a protocol that draws its galleries.

SYSU-MM01 fixes ten permutations of every identity's images in every camera; the trial takes the
first of them.  Other code draws at random instead, which gives other galleries and other scores.
Nothing here knows vectors or metrics.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reid.data.protocols.matlab import read_mat
from reid.data.protocols.protocol_table import Rule
from reid.errors import DataError
from reid.records import Sample

ALL = "all gallery rows"


@dataclass(frozen=True)
class Galleries:
    """``trials``: for each, the positions (in the samples given) of its gallery; ``source`` says how drawn."""

    trials: tuple[tuple[int, ...], ...]
    source: str


def draw_galleries(
    samples: Sequence[Sample], rows: Sequence[int], rule: Rule, permutation: Path | None = None
) -> Galleries:
    """The gallery of every trial, drawn from ``rows``, the positions of the gallery in ``samples``.

    Identities, cameras and pictures are taken in the order of their names.  A group of fewer than
    ``rule.shots`` images gives all it has.
    """
    if rule.gallery == "all":
        return Galleries((tuple(rows),) * rule.trials, ALL)
    groups: dict[tuple[str, str], list[int]] = {}
    for row in sorted(rows, key=lambda row: (samples[row].identity, samples[row].camera, samples[row].path)):
        groups.setdefault((samples[row].identity, samples[row].camera), []).append(row)
    if rule.gallery == "random":
        drawn = tuple(_at_random(groups, rule.shots, seed) for seed in range(rule.trials))
        return Galleries(drawn, f"random, {rule.shots} per identity and camera, seeds 0 to {rule.trials - 1}")
    if permutation is None:
        raise DataError('rule: gallery "permutation" needs a data set with such a file; expected all or random')
    table = _permutations(permutation)
    trials = tuple(_in_order(groups, table, trial, rule.shots, permutation) for trial in range(rule.trials))
    digest = hashlib.sha256(permutation.read_bytes()).hexdigest()[:12]
    return Galleries(trials, f"{permutation.name} (sha256 {digest}), first {rule.shots} per identity and camera")


def _at_random(groups: dict[tuple[str, str], list[int]], shots: int, seed: int) -> tuple[int, ...]:
    """As AGW and its successors draw: one ``random.choice`` after the other, so their galleries come out again."""
    generator = random.Random(seed)
    if shots == 1:
        return tuple(generator.choice(rows) for rows in groups.values())
    return tuple(row for rows in groups.values() for row in generator.sample(rows, min(shots, len(rows))))


def _permutations(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"{path}: no such file; it comes with the authors' evaluation code and fixes the ten galleries")
    cells = read_mat(path).get("rand_perm_cam")
    if cells is None or cells.dtype != object:
        raise DataError(f"{path}: expected the cells rand_perm_cam of the authors' evaluation code")
    return [camera.reshape(-1) for camera in cells.reshape(-1)]


def _in_order(
    groups: dict[tuple[str, str], list[int]], table: list[Any], trial: int, shots: int, path: Path
) -> tuple[int, ...]:
    """``table[camera - 1][identity - 1]`` (trials, images) holds image numbers, 1 being the first by name."""
    chosen: list[int] = []
    for (identity, camera), rows in groups.items():
        try:
            order = [int(number) for number in table[_number(camera) - 1][_number(identity) - 1][trial]]
        except IndexError:
            order = []
        if sorted(order) != list(range(1, len(rows) + 1)):
            raise DataError(
                f"{path}: {camera}, identity {identity}, trial {trial + 1}: lists {len(order)} images,"
                f" the folder holds {len(rows)}; file and pictures are not of the same release"
            )
        chosen += [rows[number - 1] for number in order[:shots]]
    return tuple(chosen)


def _number(name: str) -> int:
    return int("".join(filter(str.isdigit, name)))
