"""P x K batches keep their rules on many random data sets, and wrong data or settings are errors."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reid.data.sampling import BalancedBatches, UnlabelledBatches, identity_classes
from reid.errors import ConfigError, DataError
from reid.records import Modality, Sample, Split


def make(*rows: tuple[str, str, str, Modality, int]) -> list[Sample]:
    """Return samples from rows of (category, identity, camera, modality, number of images)."""
    found = [
        (category, identity, camera, modality)
        for category, identity, camera, modality, count in rows
        for _ in range(count)
    ]
    return [
        Sample(Path(f"{i}.jpg"), identity, camera, modality, category, Split.TRAIN)
        for i, (category, identity, camera, modality) in enumerate(found)
    ]


@st.composite
def data_sets(draw: Callable[..., object]) -> list[Sample]:
    """One to three categories of 4 to 9 identities with 2 or more images, on up to 4 + 2 cameras, in random order."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))  # type: ignore[call-overload]
    rows = []
    for category in ["person", "vehicle", "animal"][: rng.integers(1, 4)]:
        for identity in range(rng.integers(4, 10)):
            cameras = rng.choice(6, rng.integers(1, 7), replace=False)
            for n, camera in enumerate(cameras):
                modality = Modality.INFRARED if camera >= 4 else Modality.VISIBLE
                rows.append((category, f"i{identity}", f"c{camera}", modality, int(rng.integers(1 + (n == 0), 6))))
    samples = make(*rows)
    return [samples[i] for i in rng.permutation(len(samples))]


SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 9))
quick = settings(deadline=None, max_examples=60)


def by_identity(samples: list[Sample]) -> dict[tuple[str, str], list[Sample]]:
    groups = defaultdict(list)
    for sample in samples:
        groups[sample.category, sample.identity].append(sample)
    return groups


@quick
@given(samples=data_sets(), shape=SHAPES, seed=st.integers(0, 99), balance=st.sampled_from(["modality", "camera"]))
def test_every_batch(samples: list[Sample], shape: tuple[int, int], seed: int, balance: str) -> None:
    """A batch has one category and P identities; the K images of each are neighbours and differ if it has so many."""
    p, k = shape
    batches = BalancedBatches(samples, p, k, seed, balance=balance)  # type: ignore[arg-type]
    owned = by_identity(samples)
    epoch = batches.epoch(0)
    assert len(epoch) == len(batches)
    for batch in epoch:
        assert (batch.dtype, batch.shape) == (np.int64, (p * k,))
        chosen = [samples[i] for i in batch]
        assert len({sample.category for sample in chosen}) == 1
        assert len({sample.identity for sample in chosen}) == p
        for start in range(0, p * k, k):
            images = chosen[start : start + k]
            assert len({sample.identity for sample in images}) == 1
            available = owned[images[0].category, images[0].identity]
            counts = Counter(images)
            assert len(counts) == min(k, len(available))
            assert max(counts.values()) - min(counts.values()) <= 1


@quick
@given(samples=data_sets(), shape=SHAPES, seed=st.integers(0, 99), balance=st.sampled_from(["modality", "camera"]))
def test_images_are_spread_as_evenly_as_possible(
    samples: list[Sample], shape: tuple[int, int], seed: int, balance: str
) -> None:
    """Two modalities or cameras differ by more than one image only if all images of the smaller one are used."""
    p, k = shape
    batches = BalancedBatches(samples, p, k, seed, balance=balance)  # type: ignore[arg-type]
    owned = by_identity(samples)
    for batch in batches.epoch(0):
        chosen = [samples[i] for i in batch]
        for start in range(0, p * k, k):
            images = chosen[start : start + k]
            available = owned[images[0].category, images[0].identity]
            if len(available) < k:
                continue  # all are there, and some twice: see test_every_batch
            if balance == "modality":
                assert_even(Counter(s.modality for s in images), Counter(s.modality for s in available))
                for modality in Modality:
                    of_modality = [s for s in images if s.modality is modality]
                    assert_even(
                        Counter(s.camera for s in of_modality),
                        Counter(s.camera for s in available if s.modality is modality),
                    )
            else:
                assert_even(Counter(s.camera for s in images), Counter(s.camera for s in available))


def assert_even(taken: Counter[str], available: Counter[str]) -> None:
    for name in available:
        if taken[name] < available[name]:  # not used up
            assert max(taken.values(), default=0) - taken[name] <= 1


@quick
@given(samples=data_sets(), shape=SHAPES, visits=st.integers(1, 4))
def test_an_epoch_visits_every_identity_equally_often(
    samples: list[Sample], shape: tuple[int, int], visits: int
) -> None:
    """Within a category the visits of two identities differ by at most one."""
    p, k = shape
    batches = BalancedBatches(samples, p, k, 0, visits=visits)
    visited: Counter[tuple[str, str]] = Counter()
    for batch in batches.epoch(3):
        visited.update((samples[i].category, samples[i].identity) for i in batch[::k])
    for category in {sample.category for sample in samples}:
        times = [visited[name] for name in by_identity(samples) if name[0] == category]
        assert max(times) - min(times) <= 1


@quick
@given(samples=data_sets(), seed=st.integers(0, 99), number=st.integers(0, 50))
def test_an_epoch_is_a_function_of_seed_and_number(samples: list[Sample], seed: int, number: int) -> None:
    one, other = (BalancedBatches(samples, 4, 3, seed) for _ in range(2))
    for earlier in range(3):
        one.epoch(earlier)  # earlier epochs have no influence
    first, second = one.epoch(number), other.epoch(number)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_another_epoch_or_seed_gives_other_batches() -> None:
    samples = make(*[("person", f"p{i}", "c1", Modality.VISIBLE, 9) for i in range(40)])
    asked = {(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)}
    epochs = {tuple(np.concatenate(BalancedBatches(samples, 8, 4, seed).epoch(e))) for seed, e in asked}
    assert len(epochs) == len(asked)


def test_categories_take_turns_in_proportion_to_images() -> None:
    people = [("person", f"p{i}", "c1", Modality.VISIBLE, 30) for i in range(40)]
    vehicles = [("vehicle", f"v{i}", "c1", Modality.VISIBLE, 10) for i in range(40)]
    samples = make(*people, *vehicles)
    batches = BalancedBatches(samples, 8, 4, 0)
    assert len(batches) == 10  # 80 identities, 8 a batch
    epochs = [[samples[batch[0]].category for batch in batches.epoch(e)] for e in range(5)]
    assert all(Counter(categories) == {"person": 8, "vehicle": 2} for categories in epochs)  # 7.5 and 2.5 share
    assert len({tuple(categories) for categories in epochs}) > 1  # they are mixed, each epoch anew


def test_a_small_category_gets_a_batch() -> None:
    people = [("person", f"p{i}", "c1", Modality.VISIBLE, 50) for i in range(40)]
    samples = make(*people, *[("vehicle", f"v{i}", "c1", Modality.VISIBLE, 2) for i in range(4)])
    categories = Counter(samples[batch[0]].category for batch in BalancedBatches(samples, 4, 2, 0).epoch(0))
    assert categories["vehicle"] == 1


def test_half_visible_half_infrared() -> None:
    """With four visible and two infrared cameras, balance by modality gives 3 + 3 and by camera one image each."""
    rows = [
        ("person", f"p{i}", f"c{c}", Modality.INFRARED if c > 4 else Modality.VISIBLE, 4)
        for i in range(6)
        for c in range(1, 7)
    ]
    samples = make(*rows)
    by_modality = BalancedBatches(samples, 3, 6, 0).epoch(0)[0].reshape(3, 6)
    by_camera = BalancedBatches(samples, 3, 6, 0, balance="camera").epoch(0)[0].reshape(3, 6)
    for row in by_modality:
        assert Counter(samples[i].modality for i in row) == {Modality.VISIBLE: 3, Modality.INFRARED: 3}
    for row in by_camera:
        assert sorted(samples[i].camera for i in row) == [f"c{c}" for c in range(1, 7)]


def test_every_image_is_used_after_some_epochs() -> None:
    samples = make(*[("person", f"p{i}", f"c{c}", Modality.VISIBLE, 5) for i in range(4) for c in range(3)])
    batches = BalancedBatches(samples, 2, 4, 0)
    used = {int(i) for e in range(40) for batch in batches.epoch(e) for i in batch}
    assert used == set(range(len(samples)))


def test_a_camera_with_visible_and_infrared_images_counts_as_two() -> None:
    samples = make(
        *[
            ("person", f"p{i}", "c1", modality, 8)
            for i in range(2)
            for modality in (Modality.VISIBLE, Modality.INFRARED)
        ]
    )
    for row in BalancedBatches(samples, 2, 4, 0, balance="camera").epoch(0)[0].reshape(2, 4):
        assert Counter(samples[i].modality for i in row) == {Modality.VISIBLE: 2, Modality.INFRARED: 2}


def test_identity_classes() -> None:
    samples = make(
        ("vehicle", "1", "c", Modality.VISIBLE, 2),
        ("person", "2", "c", Modality.VISIBLE, 1),
        ("person", "1", "c", Modality.VISIBLE, 1),
    )
    targets, names = identity_classes(samples)
    assert names == (("person", "1"), ("person", "2"), ("vehicle", "1"))
    assert targets.dtype == np.int64
    assert targets.tolist() == [2, 2, 1, 0]


def test_the_same_name_in_two_categories_is_two_identities() -> None:
    samples = make(
        *[(category, str(i), "c", Modality.VISIBLE, 3) for category in ("person", "vehicle") for i in range(4)]
    )
    for batch in BalancedBatches(samples, 4, 3, 0).epoch(0):
        assert len({samples[i].category for i in batch}) == 1


VISIBLE = Modality.VISIBLE


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], "train split"),
        ([("person", "", "c", VISIBLE, 2)], "0.jpg"),
        ([("person", "a", "c", VISIBLE, 2), ("person", "b", "c", VISIBLE, 1)], 'identity "b" of category "person"'),
        (
            [("person", "a", "c", VISIBLE, 1), ("person", "b", "c", VISIBLE, 1), ("person", "d", "c", VISIBLE, 1)],
            'identity "a" of category "person" (and 2 more',
        ),
        (
            [("person", "a", "c", VISIBLE, 2), ("person", "b", "c", VISIBLE, 2), ("vehicle", "a", "c", VISIBLE, 2)],
            'category "vehicle" has 1',
        ),
    ],
)
def test_data_that_cannot_be_sampled(rows: list[tuple[str, str, str, Modality, int]], expected: str) -> None:
    with pytest.raises(DataError) as caught:
        BalancedBatches(make(*rows), 2, 2, 0)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_image_is_enough_for_batches_with_one_image_of_each() -> None:
    samples = make(*[("person", f"p{i}", "c", VISIBLE, 1) for i in range(4)])
    assert sorted(np.concatenate(BalancedBatches(samples, 2, 1, 0).epoch(0)).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"identities_per_batch": 0}, "identities_per_batch"),
        ({"images_per_identity": 0}, "images_per_identity"),
        ({"visits": 0}, "visits"),
        ({"balance": "cameras"}, '"cameras"'),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, object], expected: str) -> None:
    samples = make(*[("person", f"p{i}", "c", VISIBLE, 3) for i in range(4)])
    with pytest.raises(ConfigError) as caught:
        BalancedBatches(samples, **({"identities_per_batch": 2, "images_per_identity": 2, "seed": 0} | values))  # type: ignore[arg-type]
    assert expected in str(caught.value)


@settings(max_examples=40, deadline=None)
@given(data_sets(), st.integers(1, 60), st.sampled_from(["modality", "camera"]), st.integers(0, 5))
def test_unlabelled_images_are_spread_over_modalities_and_cameras(
    samples: list[Sample], count: int, balance: str, epoch: int
) -> None:
    batches = UnlabelledBatches(samples, count, 3, balance=balance)  # type: ignore[arg-type]
    drawn = batches.epoch(epoch, 3)
    assert [rows.shape for rows in drawn] == [(count,)] * 3
    for rows in drawn:
        repeats = Counter(rows.tolist())
        assert max(repeats.values()) - (min(repeats.values()) if len(repeats) == len(samples) else 0) <= 1
        # A group with fewer images than its share gives all of them; the other groups differ by at most one.
        used = samples if len(repeats) == len(samples) else [samples[i] for i in rows]
        field = (lambda s: s.modality) if balance == "modality" else (lambda s: (s.modality, s.camera))
        shares, there = Counter(map(field, used)), Counter(map(field, samples))
        short = [n for key, n in shares.items() if n < there[key]]
        assert not short or max(shares.values()) - min(short) <= 1
    again = UnlabelledBatches(samples, count, 3, balance=balance).epoch(epoch, 3)  # type: ignore[arg-type]
    assert all((a == b).all() for a, b in zip(drawn, again, strict=True))


def test_unlabelled_batches_need_images_and_a_known_balance() -> None:
    samples = make(("person", "", "a1", Modality.VISIBLE, 3))
    assert [len(rows) for rows in UnlabelledBatches(samples, 5, 0).epoch(0, 2)] == [5, 5]
    with pytest.raises(DataError, match="got 0"):
        UnlabelledBatches([], 4, 0)
    with pytest.raises(ConfigError, match='"cameras"'):
        UnlabelledBatches(samples, 4, 0, balance="cameras")  # type: ignore[arg-type]
