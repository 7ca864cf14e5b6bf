"""Row numbers: every lookup equals one by one comparison."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reid.retrieval.stores.row_numbers import RowNumbers, grouped_order

numbers = st.lists(st.integers(0, 60) | st.integers(10**12, 10**12 + 5), unique=True, max_size=40)


@given(numbers, st.lists(st.integers(0, 70) | st.integers(10**12 - 2, 10**12 + 8), unique=True))
def test_lookups(held, wanted):
    rows = RowNumbers.of(np.array(held, np.int64))
    assert rows.mask(np.array(wanted, np.int64)).tolist() == [number in wanted for number in held]
    positions = rows.positions(np.array(wanted, np.int64)).tolist()
    assert [held[i] for i in positions] == [number for number in wanted if number in held]


@given(st.lists(st.integers(0, 9)))
def test_repeated_numbers_are_found(held):
    assert RowNumbers.of(np.array(held, np.int64)).are_unique == (len(set(held)) == len(held))


def test_rows_of_a_group_are_stored_together_in_their_order():
    modality, camera = list("vivviv"), list("abcaac")
    order = grouped_order([modality, camera]).tolist()
    assert [modality[i] + camera[i] for i in order] == ["ia", "ib", "va", "va", "vc", "vc"]
    assert order == [4, 1, 0, 3, 2, 5]


@pytest.mark.parametrize(
    "wanted", [[3, 4, 5], [5, 4, 3], [3, 3, 5], [3, 5, 5], [2, 3], [9, 10], [1, 2, 3], [-5, -4], [7]]
)
@pytest.mark.parametrize("first", [0, 3])
def test_the_mask_is_that_of_a_set(wanted, first):
    row_ids = np.arange(first, first + 7)
    found = RowNumbers.of(row_ids).mask(np.array(wanted))
    assert found.tolist() == [int(number) in set(wanted) for number in row_ids]
