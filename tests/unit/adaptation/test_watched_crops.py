"""Walks between cameras, and the crops that take no part in the first epochs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reid.adaptation.contrast import Assignments
from reid.adaptation.return_walks import WalkPlan
from reid.adaptation.watched_crops import WalkGain, WatchedCrops, choose_watched, without_crops


def people(seed: int, count: int, cameras: int, crops: int, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return unit vectors of people, whom every camera shows a few times, their cameras and who they are."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((count, 16))
    who, camera = (table.reshape(-1) for table in np.mgrid[:count, : cameras * crops])
    vectors = centres[who] + noise * random.standard_normal((len(who), 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), (camera % cameras).astype(np.int64), who.astype(np.int64)


def slow_share(vectors, cameras, likes, start, kinds):
    """Walk step by step along every route."""
    known = [c for c in np.unique(cameras[kinds == kinds[start]]) if c != cameras[start]]
    routes = [(a, b) for a in known for b in known if a != b] if len(known) > 1 else [(a,) for a in known]
    returned = 0
    for route in routes:
        at = start
        for camera in (*route, cameras[start]):
            rows = [i for i in range(len(vectors)) if cameras[i] == camera]
            at = max(rows, key=lambda i: (float(vectors[at] @ vectors[i]), -i))
        returned += at == start or at in likes[start]
    return returned / len(routes) if routes else np.nan


@given(st.integers(0, 2**16), st.integers(1, 4), st.floats(0.1, 1.5))
@settings(max_examples=20, deadline=None)
def test_walks_are_those_of_going_step_by_step(seed, cameras, noise):
    vectors, camera, _ = people(seed, 5, cameras, 2, noise)
    kinds = np.where(camera == 3, 1, 0)
    starts = np.arange(0, len(vectors), 3)
    plan = WalkPlan.prepare(vectors, camera, starts, kinds)
    expected = [slow_share(vectors, camera, plan.likes, int(start), kinds) for start in starts]
    np.testing.assert_allclose(plan.returning(vectors, camera), expected, atol=1e-6)


def test_walks_return_less_the_more_people_are_mixed_up():
    shares = []
    for noise in (0.1, 0.8, 2.0):
        vectors, camera, _ = people(0, 30, 4, 3, noise)
        shares.append(
            float(WalkPlan.prepare(vectors, camera, np.arange(len(camera))).returning(vectors, camera).mean())
        )
    assert shares[0] == 1.0
    assert shares[0] > shares[1] > shares[2]


def test_many_cameras_are_walked_in_part_and_each_of_them_begins_walks():
    vectors, camera, _ = people(1, 4, 12, 1, 0.2)
    plan = WalkPlan.prepare(vectors, camera, np.arange(len(camera)))
    assert len(plan.routes) <= 240 + 12
    assert set(plan.routes[:, 0].tolist()) == set(range(12))


def site_of(camera: np.ndarray) -> SimpleNamespace:
    names = tuple(f"c{i}" for i in range(int(camera.max()) + 1))
    groups = np.zeros(len(camera), np.int64)
    return SimpleNamespace(
        has_cameras=True, camera_names=names, cameras=camera, group_names=("person visible",), groups=groups
    )


def watched_of(noise: float = 0.3, count: int = 40):
    vectors, camera, who = people(2, count, 3, 2, noise)
    labels = np.where(np.arange(len(who)) % 11 == 0, -1, who)  # some crops are in no cluster
    found = SimpleNamespace(vectors=vectors, labels=labels)
    everybody = np.ones(len(who), np.bool_)
    return choose_watched(vectors, found, np.arange(count), site_of(camera), everybody), vectors, camera, who


def test_three_of_ten_persons_are_watched_with_the_crops_around_them():
    watched, _, _, who = watched_of()
    assert len(np.unique(watched.persons[watched.held])) == 12
    assert np.array_equal(np.isin(who, np.unique(watched.persons[watched.held])), watched.held)


def test_few_persons_are_not_watched():
    assert watched_of(count=24)[0] is None


def test_a_better_network_is_told_from_one_that_learned_its_own_crops_only():
    """The wrong sign, walks from all crops, rises in both cases."""
    watched, vectors, camera, who = watched_of(0.9)
    centres = np.stack([vectors[who == one].mean(axis=0) for one in range(40)])

    def drawn_together(rows):
        moved = np.where(rows[:, None], 0.5 * vectors + 0.5 * centres[who], vectors)
        return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)

    better, learned = drawn_together(np.ones(len(who), np.bool_)), drawn_together(~watched.held)
    assert watched.gain(better, camera).is_enough
    assert not watched.gain(learned, camera).is_enough
    every = WalkPlan.prepare(vectors, camera, np.arange(len(who)))
    assert every.returning(learned, camera).mean() > every.returning(vectors, camera).mean() + 0.1


@pytest.mark.parametrize(("gain", "error", "enough"), [(0.1, 0.04, True), (0.1, 0.12, False), (0.02, 0.001, False)])
def test_a_gain_must_be_clear(gain, error, enough):
    assert WalkGain(0.5, 0.5 + gain, gain, error).is_enough is enough


def test_the_state_of_a_run_holds_everything():
    watched, vectors, camera, _ = watched_of()
    again = WatchedCrops.from_state(watched.to_state())
    assert again.gain(vectors, camera) == watched.gain(vectors, camera)
    assert WatchedCrops.from_state({}) is None


def test_crops_that_take_no_part_are_in_no_cluster():
    assigned = Assignments(np.array([0, 1, 2, 2, -1]), np.array([0, 1, 1]), np.array([5, 6, 6]))
    left = without_crops(assigned, np.array([False, True, False, True, True]))
    assert left.labels.tolist() == [0, -1, 1, -1, -1]
    assert left.groups.tolist() == [0, 1]
    assert left.persons.tolist() == [5, 6]
