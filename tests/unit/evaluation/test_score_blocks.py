"""Equal rows are found by their first components, then by all of them; the oracle compares every pair.

It refuses these wrong variants: rows that only begin alike taken for equal, copies of copies that name a copy as the
original, -0.0 taken for another number than 0.0, rows shorter than the components that are compared first.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reid.evaluation.score_blocks import FIRST_COMPONENTS, _identical_rows


def by_pairs(vectors):
    found = []
    for row in range(len(vectors)):
        earlier = next(i for i in range(row + 1) if (vectors[i] == vectors[row]).all())
        if earlier != row:
            found.append((row, earlier))
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(rows=st.integers(1, 30), dimension=st.integers(1, 8), values=st.integers(1, 3), seed=st.integers(0, 99))
def test_copies_are_those_of_a_double_loop(dtype, rows, dimension, values, seed):
    random = np.random.default_rng(seed)
    vectors = random.integers(0, values + 1, (rows, dimension)).astype(dtype)
    vectors[random.random(vectors.shape) < 0.2] *= -1  # -0.0 among them
    assert list(zip(*_identical_rows(vectors), strict=True)) == by_pairs(vectors)


def test_rows_that_only_begin_alike_are_not_copies():
    vectors = np.zeros((3, 2 * FIRST_COMPONENTS), np.float32)
    vectors[1, -1] = 1
    vectors[2, -1] = 1
    copies, originals = _identical_rows(vectors)
    assert (copies.tolist(), originals.tolist()) == ([2], [1])
    begin = [tuple(row[:FIRST_COMPONENTS]) for row in vectors]
    assert begin.index(begin[1]) != originals[0]  # comparing only the first components would name row 0
