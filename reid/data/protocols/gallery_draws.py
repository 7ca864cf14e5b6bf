"""Choose the gallery images of each trial of a protocol that draws its galleries.

SYSU-MM01 comes with ten permutations of every identity's images in every camera, and a trial takes the first images of
its permutation.  Other code draws at random instead, which gives other galleries and other scores.
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
    """The galleries of all trials.

    Args:
        trials: For each trial the positions of its gallery among the samples.
        source: How they were drawn, for the report.
    """

    trials: tuple[tuple[int, ...], ...]
    source: str


def draw_galleries(
    samples: Sequence[Sample], rows: Sequence[int], rule: Rule, permutation: Path | None = None
) -> Galleries:
    """Draw the gallery of every trial.

    Identities, cameras and images are taken in the order of their names.  Where an identity has fewer than
    ``rule.shots`` images in a camera, all of them are taken.

    Args:
        samples: All samples.
        rows: Positions of the gallery in ``samples``.
        rule: Decides how many trials there are and how they are drawn.
        permutation: The MATLAB file for ``gallery="permutation"``.

    Returns:
        The galleries.

    Raises:
        DataError: The file of permutations is missing or does not fit the samples.

    Example:
        >>> samples = [Sample(Path(f"{i}.jpg"), "anna", "door") for i in range(5)]
        >>> draw_galleries(samples, range(5), Rule(gallery="random", trials=2)).trials
        ((3,), (1,))
    """
    if rule.gallery == "all":
        return Galleries((tuple(rows),) * rule.trials, ALL)
    groups: dict[tuple[str, str], list[int]] = {}
    for row in sorted(rows, key=lambda row: (samples[row].identity, samples[row].camera, samples[row].path)):
        groups.setdefault((samples[row].identity, samples[row].camera), []).append(row)
    if rule.gallery == "random":
        drawn = tuple(_draw_at_random(groups, rule.shots, seed) for seed in range(rule.trials))
        return Galleries(drawn, f"random, {rule.shots} per identity and camera, seeds 0 to {rule.trials - 1}")
    if permutation is None:
        raise DataError('rule: gallery "permutation" needs a data set with such a file; expected all or random')
    table = _permutations(permutation)
    trials = tuple(_first_of_permutation(groups, table, trial, rule.shots, permutation) for trial in range(rule.trials))
    digest = hashlib.sha256(permutation.read_bytes()).hexdigest()[:12]
    return Galleries(trials, f"{permutation.name} (sha256 {digest}), first {rule.shots} per identity and camera")


def _draw_at_random(groups: dict[tuple[str, str], list[int]], shots: int, seed: int) -> tuple[int, ...]:
    """Draw as AGW and its successors do, one ``random.choice`` after the other, so that the galleries are equal."""
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


def _first_of_permutation(
    groups: dict[tuple[str, str], list[int]], table: list[Any], trial: int, shots: int, path: Path
) -> tuple[int, ...]:
    """Take the first images of each identity and camera in the order of a trial.

    ``table[camera - 1][identity - 1]`` (trials, images) holds the numbers of images, 1 for the first by name.
    """
    chosen: list[int] = []
    for (identity, camera), rows in groups.items():
        try:
            order = [int(number) for number in table[_number(camera) - 1][_number(identity) - 1][trial]]
        except IndexError:
            order = []
        if sorted(order) != list(range(1, len(rows) + 1)):
            raise DataError(
                f"{path}: {camera}, identity {identity}, trial {trial + 1}: lists {len(order)} images,"
                f" the folder holds {len(rows)}; file and images are not of the same release"
            )
        chosen += [rows[number - 1] for number in order[:shots]]
    return tuple(chosen)


def _number(name: str) -> int:
    return int("".join(filter(str.isdigit, name)))
