"""Levels are chosen by mutual nearest neighbours across cameras.

The tests refuse these wrong variants: neighbours that need not be mutual, an error that takes crops of one object as
independent, the best level although it is not certainly better, and more levels where fewer do as well.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reid.errors import ConfigError
from reid.records import FloatArray
from reid.retrieval.normalization_choice import (
    AS_IT_IS,
    CameraLevels,
    CandidateVectors,
    camera_pairs,
    choose_levels,
    mutual_neighbours,
    parse_normalization,
)

CENTERED, MEASURED, BOTH = CameraLevels(centering=True), CameraLevels(True), CameraLevels(True, True)
PEOPLE, CROPS = 30, 2


def unit(vectors: np.ndarray) -> FloatArray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def shares_by_loops(vectors: FloatArray, cameras: list[str], *, mutual: bool = True) -> list[float]:
    """The slow oracle; without ``mutual`` the wrong variant, in which a neighbour need not look back."""

    def nearest(crop: int, camera: str) -> int:
        others = [row for row, name in enumerate(cameras) if name == camera]
        return max(others, key=lambda row: (float(np.float32(vectors[crop] @ vectors[row])), -row))

    found = []
    for crop, own in enumerate(cameras):
        names = [name for name in sorted(set(cameras)) if name != own]
        hits = [nearest(nearest(crop, name), own) == crop or not mutual for name in names]
        found.append(sum(hits) / len(names))
    return found


@given(st.integers(0, 10_000), st.integers(2, 4))
def test_shares_are_those_of_the_loops(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    names = [f"c{n}" for n in range(count)]
    cameras = [*names, *random.choice(names, 20).tolist()]
    vectors = unit(random.normal(size=(len(cameras), 5)))
    found = mutual_neighbours(vectors, np.array(cameras), camera_pairs(names, 100))
    np.testing.assert_allclose(found, shares_by_loops(vectors, cameras))
    assert not np.allclose(found, shares_by_loops(vectors, cameras, mutual=False))


def test_pairs_hold_every_camera_and_keep_categories_apart() -> None:
    names = [f"person/c{n:02}" for n in range(30)] + ["vehicle/c00", "vehicle/c01"]
    every = camera_pairs(names, 10_000)
    assert len(every) == 30 * 29 / 2 + 1
    assert all(one.split("/")[0] == other.split("/")[0] for one, other in every)
    some = camera_pairs(names, 60, seed=3)
    assert {name for pair in some for name in pair} == set(names)
    assert len(some) < 100
    assert set(some) <= set(every)
    assert camera_pairs(["door"], 10) == []


class Site:
    """People in four cameras; each camera adds something of its own to the embeddings of its crops."""

    def __init__(self, offset: float, seed: int = 0, noise: float = 0.5) -> None:
        random = np.random.default_rng(seed)
        people = np.repeat(random.normal(size=(PEOPLE, 24)), CROPS, axis=0)
        names = ["c1", "c2", "c3", "c4"]
        self.cameras = np.repeat(names, len(people))
        self.groups = np.tile(np.repeat(np.arange(PEOPLE), CROPS), 4) + np.repeat(np.arange(4), len(people)) * PEOPLE
        self.raw = np.concatenate([people + noise * random.normal(size=people.shape) for _ in names])
        self.offsets = np.repeat(random.normal(size=(4, 24)), len(people), axis=0) * offset

    def candidates(self, **changes: FloatArray) -> CandidateVectors:
        as_it_is, clean = unit(self.raw + self.offsets), unit(self.raw)
        vectors = {AS_IT_IS: as_it_is, CENTERED: clean, MEASURED: clean, BOTH: clean}
        vectors |= {{"centered": CENTERED, "measured": MEASURED, "both": BOTH}[key]: v for key, v in changes.items()}
        return CandidateVectors(self.cameras, self.groups.astype(np.int64), vectors)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return camera_pairs(sorted(set(self.cameras.tolist())), 100)


def test_fewer_levels_are_taken_where_they_do_as_well() -> None:
    site = Site(offset=2.0)
    choice = choose_levels(site.candidates(), site.pairs)
    assert set(choice.levels.values()) == {CENTERED}
    by_levels = {one.levels: one for one in choice.candidates}
    assert by_levels[CENTERED].share == by_levels[BOTH].share == choice.share > by_levels[AS_IT_IS].share + 0.2
    assert by_levels[AS_IT_IS].gain == 0
    assert by_levels[CENTERED].gain == pytest.approx(by_levels[CENTERED].share - by_levels[AS_IT_IS].share)


@pytest.mark.parametrize("seed", range(4))
def test_a_network_stays_as_it_is_where_nothing_is_certainly_better(seed: int) -> None:
    site = Site(offset=0.0, seed=seed)
    random = np.random.default_rng(seed + 100)
    other = {key: unit(site.raw + 0.2 * random.normal(size=site.raw.shape)) for key in ("centered", "measured", "both")}
    choice = choose_levels(site.candidates(**other), site.pairs)
    assert set(choice.levels.values()) == {AS_IT_IS}
    assert "no level is certainly better" in choice.reason


def test_crops_of_one_object_are_not_independent() -> None:
    """A gain that holds for some groups of equal crops only is less certain than the same gain over single crops."""
    site = Site(offset=0.4)
    grouped = choose_levels(site.candidates(), site.pairs).candidates[1]
    single = CandidateVectors(
        site.cameras, np.arange(len(site.cameras), dtype=np.int64), dict(site.candidates().vectors)
    )
    assert choose_levels(single, site.pairs).candidates[1].error != grouped.error
    one_group = CandidateVectors(site.cameras, np.zeros(len(site.cameras), np.int64), dict(site.candidates().vectors))
    assert choose_levels(one_group, site.pairs).candidates[1].gain == grouped.gain


def test_a_camera_that_statistics_harm_keeps_its_own() -> None:
    site = Site(offset=1.5)
    random = np.random.default_rng(1)
    harmed = site.cameras == "c2"
    clean, noise = unit(site.raw), unit(random.normal(size=site.raw.shape))
    as_it_is = unit(site.raw + np.where(harmed[:, None], 0, site.offsets))
    vectors = {AS_IT_IS: as_it_is, MEASURED: np.where(harmed[:, None], noise, clean).astype(np.float32)}
    candidates = CandidateVectors(site.cameras, site.groups.astype(np.int64), vectors)
    choice = choose_levels(candidates, site.pairs)
    assert choice.levels == {"c1": MEASURED, "c2": AS_IT_IS, "c3": MEASURED, "c4": MEASURED}
    assert "c2 by none" in choice.reason
    together = choose_levels(candidates, site.pairs, each_camera=False)
    assert len(set(together.levels.values())) == 1
    assert together.share < choice.share


def test_levels_are_read_by_name() -> None:
    assert parse_normalization("auto").is_auto
    assert parse_normalization("none").score_norm == "none"
    asked = parse_normalization("centering+statistics+snorm")
    assert (asked.levels, asked.score_norm) == (BOTH, "snorm")
    assert parse_normalization("csls").levels == AS_IT_IS
    for text in ("", "csls+snorm", "statistics+statistics", "auto+csls", "whitening", "statistics,centering"):
        with pytest.raises(ConfigError, match="known levels: statistics, centering, csls, snorm"):
            parse_normalization(text)
