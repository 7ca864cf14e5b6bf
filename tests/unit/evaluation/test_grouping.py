"""Scores of a grouping, against counting all pairs and against scikit-learn."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import v_measure_score

from reid.errors import DataError
from reid.evaluation.grouping import score_grouping

rows = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=20)


@given(rows)
def test_scores_are_what_counting_gives(drawn: list[tuple[int, int]]) -> None:
    persons, identities = np.array([p for p, _ in drawn]), [f"id{i}" for _, i in drawn]
    scores = score_grouping(persons, identities)
    assert scores is not None
    pairs = list(combinations(range(len(drawn)), 2))
    together = [persons[i] == persons[j] != 0 for i, j in pairs]
    right = [identities[i] == identities[j] for i, j in pairs]
    both = sum(t and r for t, r in zip(together, right, strict=True))
    assert scores.pairwise_precision == pytest.approx(both / sum(together) if any(together) else 1)
    assert scores.pairwise_recall == pytest.approx(both / sum(right) if any(right) else 1)
    alone = [f"{p}" if p else f"alone {i}" for i, p in enumerate(persons.tolist())]
    assert scores.v_measure == pytest.approx(v_measure_score(identities, alone), abs=1e-9)
    members = {p: [identities[i] for i in np.flatnonzero(persons == p)] for p in set(persons.tolist()) - {0}}
    most = sum(max(map(names.count, names)) for names in members.values())
    assert scores.purity == pytest.approx(most / max(sum(map(len, members.values())), 1) if members else 1)
    assert scores.persons == len(members)
    assert scores.undecided == int((persons == 0).sum())
    wrong = {p: names for p, names in members.items() if len(set(names)) > 1}
    assert scores.wrong_merges == len(wrong)
    cost = [len(names) - max(map(names.count, names)) for names in wrong.values()]
    assert scores.crops_per_wrong_merge == pytest.approx(np.mean(cost) if cost else 0)


def test_crops_of_unknown_identity_do_not_count() -> None:
    scores = score_grouping(np.array([1, 1, 1]), ["anna", "anna", ""])
    assert scores is not None
    assert (scores.crops, scores.pairwise_f1, scores.wrong_merges) == (2, 1.0, 0)
    assert score_grouping(np.array([1, 1]), ["", ""]) is None


def test_arrays_of_different_lengths_are_refused() -> None:
    with pytest.raises(DataError):
        score_grouping(np.array([1]), ["anna", "ben"])
