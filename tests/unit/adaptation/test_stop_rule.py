"""The guard and the choice of the epoch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reid.adaptation.stop_rule import BestEpoch, ClusterFigures, impossibility, refusal

GOOD = ClusterFigures("person visible", 400, 40, 0.8, 1.0, 0.9, 4.0, 0.8)


@pytest.mark.parametrize(
    ("changes", "cameras", "word"),
    [
        ({"crops": 10}, 2, "10 crops"),
        ({}, 1, "one camera"),
        ({"clusters": 2}, 2, "is 2, expected"),
        ({"clustered": 0.1}, 2, "10%"),
        ({"repeated": 0.3, "clustered": 0.3}, 2, "a person once"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_the_training(changes: dict, cameras: int, word: str) -> None:
    assert word in impossibility(replace(GOOD, **changes), cameras)
    assert word in refusal(replace(GOOD, **changes), cameras)


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"clustered": 0.39}, "39%"), ({"spanning": 0.4}, "40%"), ({"crops_a_camera": 1.0}, "1 crops")],
)
def test_what_shows_after_the_first_epoch_is_refused_then(changes: dict, word: str) -> None:
    assert impossibility(replace(GOOD, **changes), 2) == ""
    assert word in refusal(replace(GOOD, **changes), 2)


def test_good_clusters_pass_and_unknown_cameras_need_not_be_spanned() -> None:
    assert impossibility(GOOD, 2) == refusal(GOOD, 2) == ""
    assert refusal(replace(GOOD, spanning=0.0, repeated=0.0), 0) == ""


def test_the_latest_epoch_near_the_best_is_kept() -> None:
    best = BestEpoch([0.5, 0.7])
    assert not best.keeps(0.67)  # more than 3 % below 0.7
    assert best.keeps(0.68)
    assert not best.has_fallen
    assert not best.keeps(0.6)
    assert not best.keeps(0.6)
    assert best.has_fallen
