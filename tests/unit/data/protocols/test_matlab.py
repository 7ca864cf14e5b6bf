"""MATLAB 5 files that scipy writes are read back.

The tests find these errors: rows first instead of columns first, small elements read as large ones, wrong padding of
compressed elements, cells out of order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.io import savemat

from reid.data.protocols.matlab import read_mat
from reid.errors import DataError

TYPES = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), compressed=st.booleans())
def test_numbers(data: st.DataObject, compressed: bool, tmp_path: Path) -> None:
    dtype = data.draw(st.sampled_from(TYPES))
    shape = data.draw(st.tuples(st.integers(0, 4), st.integers(1, 5)))
    array = data.draw(arrays(dtype, shape, elements=st.integers(0, 100)))
    savemat(tmp_path / "x.mat", {"x": array, "another": np.eye(2)}, do_compression=compressed)
    read = read_mat(tmp_path / "x.mat")
    assert read["x"].shape == shape
    assert np.array_equal(read["x"], array)
    assert np.array_equal(read["another"], np.eye(2))
    if min(shape) > 1 and not np.array_equal(array.reshape(-1), array.reshape(-1, order="F")):
        assert not np.array_equal(read["x"], array.reshape(-1, order="F").reshape(shape))  # rows first is wrong


@pytest.mark.parametrize("compressed", [False, True])
def test_cells_structs_and_texts(compressed: bool, tmp_path: Path) -> None:
    inner = np.empty((2, 3), object)
    for i in range(2):
        for j in range(3):
            inner[i, j] = np.arange(i * 3 + j, dtype=np.uint8)
    record = np.array([[(1, "first"), (2, "")]], dtype=[("number", object), ("long_field_name", object)])
    savemat(tmp_path / "x.mat", {"cells": inner, "record": record, "t": "häuser"}, do_compression=compressed)
    read = read_mat(tmp_path / "x.mat")
    assert read["cells"].shape == (2, 3)
    for index in np.ndindex(2, 3):
        assert np.array_equal(read["cells"][index].reshape(-1), inner[index])
    assert [entry["number"].item() for entry in read["record"].reshape(-1)] == [1, 2]
    assert read["record"][0, 0]["long_field_name"] == "first"
    assert read["t"] == "häuser"


def test_files_that_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    with pytest.raises(DataError, match=r"x\.mat"):
        read_mat(path)
    path.write_bytes(b"hello")
    with pytest.raises(DataError, match="MATLAB 5"):
        read_mat(path)
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(600, b" "))
    with pytest.raises(DataError, match=r"7\.3"):
        read_mat(path)
    for compressed in (False, True):
        savemat(path, {"x": np.arange(100.0)}, do_compression=compressed)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2 + 70])
        with pytest.raises(DataError, match="damaged"):
            read_mat(path)
