"""Cohorts and their statistics: bounded, the same in any order, and the same after rows came and went."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.random_embeddings import random_rows
from reid.errors import DataError
from reid.records import Sample
from reid.retrieval.cohort_rows import CohortRows, cohort_of
from reid.retrieval.cohort_updates import add_rows, remove_rows
from reid.retrieval.cohorts import CohortStatistics, measure_cohorts
from reid.retrieval.row_table import RowTable


def gallery_rows(seed, count, cameras=3, dimension=12):
    random = np.random.default_rng(seed)
    samples = [
        Sample(Path(f"{i % 4}/{seed}-{i}.jpg"), camera=f"c{i % cameras}" if i % 11 else "", category=category)
        for i, category in enumerate(random.choice(["person", "vehicle"], count, p=[0.8, 0.2]))
    ]
    return CohortRows.of_samples(samples, random_rows(random, count, dimension))


def assert_same(found: CohortStatistics, expected: CohortStatistics) -> None:
    assert found.cameras == expected.cameras
    np.testing.assert_array_equal(found.counts, expected.counts)
    np.testing.assert_array_equal(found.k, expected.k)
    for name in ("mean", "deviation", "lowest"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=2e-5, err_msg=name)


@given(st.integers(0, 2**16), st.sampled_from([8, 20, 2048]), st.sampled_from(["csls", "snorm"]))
@settings(max_examples=25, deadline=None)
def test_rows_that_come_and_go_leave_what_a_new_measurement_finds(seed, limit, method):
    random = np.random.default_rng(seed)
    rows = gallery_rows(seed, 90)
    held = np.arange(40)
    statistics = measure_cohorts(rows.select(held), rows.select(held), method, limit=limit)
    for _ in range(4):
        if random.random() < 0.5 and len(held) > 10:
            kept = random.random(len(held)) < 0.9
            statistics = remove_rows(statistics, rows.select(held), kept, limit=limit)
            held = held[kept]
        else:
            new = random.permutation(np.setdiff1d(np.arange(90), held))[: random.integers(1, 6)]
            statistics = add_rows(statistics, rows.select(held), rows.select(new), limit=limit)
            held = np.concatenate([held, new])
        assert_same(statistics, measure_cohorts(rows.select(held), rows.select(held), method, limit=limit))


def test_only_the_rows_that_are_concerned_are_measured_again(monkeypatch):
    rows = gallery_rows(0, 600, dimension=24)
    first = rows.select(np.arange(590))
    statistics = measure_cohorts(first, first, "csls")
    measured = []
    from reid.retrieval import cohort_updates

    original = cohort_updates.measure_rows
    monkeypatch.setattr(
        cohort_updates, "measure_rows", lambda *given: measured.append(len(given[2])) or original(*given)
    )
    assert_same(add_rows(statistics, first, rows.select(np.arange(590, 600))), measure_cohorts(rows, rows, "csls"))
    assert 10 <= measured[0] < 300


def test_the_cohort_of_a_camera_is_bounded_and_depends_on_no_order():
    rows = gallery_rows(1, 800)
    cohort = cohort_of(rows, 20).members
    assert {name: len(members) for name, members in cohort.items() if not name.endswith("/")} == {
        f"{category}/c{i}": 20 for category in ("person", "vehicle") for i in range(3)
    }
    order = np.random.default_rng(2).permutation(800)
    moved = cohort_of(rows.select(order), 20).members
    for name, members in cohort.items():
        assert set(order[moved[name]].tolist()) == set(members.tolist())
    fewer = np.flatnonzero(np.arange(800) % 2 == 0)
    kept = cohort_of(rows.select(fewer), 20).members
    for name, members in cohort.items():
        assert set(members[members % 2 == 0].tolist()) <= set(fewer[kept[name]].tolist()) or name.endswith("/")


def test_categories_never_stand_in_one_cohort():
    rows = gallery_rows(3, 120)
    statistics = measure_cohorts(rows, rows, "csls")
    people = np.char.startswith(rows.cameras, "person/")
    foreign = [i for i, name in enumerate(statistics.cameras) if name.startswith("vehicle/")]
    assert np.isnan(statistics.mean[np.ix_(people, foreign)]).all()
    moved = replace(rows, vectors=np.where(people[:, None], rows.vectors, rows.vectors[::-1]))
    own = [i for i, name in enumerate(statistics.cameras) if name.startswith("person/")]
    again = measure_cohorts(moved, moved, "csls")
    np.testing.assert_allclose(again.mean[np.ix_(people, own)], statistics.mean[np.ix_(people, own)], atol=1e-6)


def test_equal_images_are_not_compared():
    vectors = random_rows(np.random.default_rng(4), 10, 8)
    paths = [Path(f"{min(i, 8)}.jpg") for i in range(10)]  # the last two are of one file
    rows = CohortRows.of_samples([Sample(path, camera="door") for path in paths], vectors)
    statistics = measure_cohorts(rows, rows, "csls", k=10)
    column = statistics.cameras.index("person/door")
    expected = [vectors[9] @ vectors[j] for j in range(8)]
    assert statistics.mean[9, column] == pytest.approx(np.mean(expected), abs=1e-5)
    assert statistics.lowest[9, column] == -np.inf  # eight of ten could be compared


def test_arrays_and_back():
    rows = gallery_rows(5, 60)
    statistics = measure_cohorts(rows, rows, "snorm")
    arrays = statistics.to_arrays()
    assert_same(CohortStatistics.from_arrays(arrays), statistics)
    assert CohortStatistics.from_arrays(arrays).method == "snorm"
    with pytest.raises(DataError, match="mean"):
        CohortStatistics.from_arrays({name: array for name, array in arrays.items() if name != "mean"})
    with pytest.raises(DataError):
        CohortStatistics.from_arrays({**arrays, "counts": arrays["counts"][1:]})


def test_statistics_of_other_rows_are_refused():
    rows = gallery_rows(6, 30)
    statistics = measure_cohorts(rows, rows, "csls")
    with pytest.raises(DataError, match="30"):
        remove_rows(statistics, rows.select(np.arange(20)), np.ones(20, np.bool_))
    with pytest.raises(DataError, match="snorm"):
        measure_cohorts(rows, rows, "norm")


def test_the_rows_of_a_table_are_those_of_its_samples():
    samples = [
        Sample(Path("a/1.jpg"), camera="door"),
        Sample(Path("/b/2.jpg"), camera="", category="vehicle"),
        Sample(Path("3.jpg"), camera="hall"),
        Sample(Path("a/b/c/4.jpg"), camera="door", category="vehicle"),
    ]
    vectors = np.eye(4, dtype=np.float32)
    one, other = CohortRows.of_samples(samples, vectors), CohortRows.of_table(RowTable.from_samples(samples), vectors)
    assert other.cameras.tolist() == one.cameras.tolist() == ["person/door", "vehicle/", "person/hall", "vehicle/door"]
    assert other.keys.tolist() == one.keys.tolist()
    assert other.images.tolist() == one.images.tolist()
