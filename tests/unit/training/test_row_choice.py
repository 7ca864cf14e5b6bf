"""Identities with one image, and held-out identities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reid.config import Experiment, parse_config
from reid.errors import DataError
from reid.records import Sample
from reid.training.row_choice import choose_rows, hold_out, leave_out_singletons
from reid.training.training_data import TrainingRows


def samples(counts: dict[str, int], category: str = "animal", cameras: int = 1) -> tuple[Sample, ...]:
    """Make the given number of samples of each identity."""
    return tuple(
        Sample(Path(f"{name}-{i}.jpg"), name, f"c{i % cameras}", category=category)
        for name, count in counts.items()
        for i in range(count)
    )


def experiment(**data: Any) -> Experiment:
    return parse_config({"data": {"manifests": ["m.csv"], **data}}, "test")


def identities(rows: tuple[Sample, ...]) -> set[str]:
    return {sample.identity for sample in rows}


def test_identities_with_one_image_are_left_out_and_counted() -> None:
    rows = TrainingRows(samples({"a": 3, "b": 1, "c": 2, "d": 1}), ())
    kept, notes = leave_out_singletons(rows, "leave out")
    assert identities(kept.samples) == {"a", "c"}
    assert "2 of 4 identities" in notes[0]
    assert leave_out_singletons(kept, "leave out") == (kept, ())


def test_all_identities_with_one_image_are_named_at_once() -> None:
    rows = TrainingRows(samples({"a": 3, "b": 1, "d": 1}), ())
    with pytest.raises(DataError, match=r"2 of 3 .*b \(animal\), d \(animal\)"):
        leave_out_singletons(rows, "error")


def test_an_identity_of_two_categories_counts_for_each() -> None:
    rows = TrainingRows(samples({"a": 1, "b": 2}) + samples({"a": 2}, "person"), ())
    kept, _ = leave_out_singletons(rows, "leave out")
    assert [(s.category, s.identity) for s in kept.samples] == [("animal", "b")] * 2 + [("person", "a")] * 2


def test_nothing_remains_to_learn_from() -> None:
    with pytest.raises(DataError, match="2 of 2"):
        leave_out_singletons(TrainingRows(samples({"a": 1, "b": 1}), ()), "leave out")


@given(st.integers(6, 40), st.floats(0.01, 0.5), st.integers(0, 5), st.randoms(use_true_random=False))
def test_whole_identities_are_held_out_whatever_the_order(count: int, fraction: float, seed: int, random: Any) -> None:
    rows = list(samples({f"i{n}": 2 + n % 3 for n in range(count)}))
    chosen = hold_out(tuple(rows), fraction, seed)
    assert len(identities(chosen)) == max(2, round(fraction * count))
    assert set(chosen) == {sample for sample in rows if sample.identity in identities(chosen)}
    random.shuffle(rows)
    assert identities(hold_out(tuple(rows), fraction, seed)) == identities(chosen)


def test_too_few_identities_to_hold_out() -> None:
    with pytest.raises(DataError, match="has 3 identities"):
        hold_out(samples({"a": 2, "b": 2, "c": 2}), 0.1, 0)


def test_held_out_rows_are_not_learned_from_and_have_known_domains() -> None:
    rows = TrainingRows(samples({f"i{n}": 4 for n in range(10)}, cameras=2), ("camera",))
    learned, held_out, notes = choose_rows(rows, experiment(held_out=0.3))
    assert len(identities(held_out)) == 3
    assert identities(learned.samples) | identities(held_out) == identities(rows.samples)
    assert not identities(learned.samples) & identities(held_out)
    assert "3 identities with 12 images" in notes[0]
    strange = tuple(
        Sample(s.path, s.identity, "far" if s.identity in identities(held_out) else s.camera, category=s.category)
        for s in rows.samples
    )
    assert choose_rows(TrainingRows(strange, ("camera",)), experiment(held_out=0.3))[1] == ()


def test_without_held_out_identities_rows_stay_as_they_are() -> None:
    rows = TrainingRows(samples({"a": 2, "b": 2}), ())
    assert choose_rows(rows, experiment()) == (rows, (), ())
