"""CUHK03 classic: the authors' HDF5 file becomes pictures and twenty manifests."""

from __future__ import annotations

import runpy
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from reid.data.protocol import all_choices, open_data
from reid.errors import DataError
from reid.records import Split

PREPARE = Path(__file__).parents[3] / "datasets/cuhk03/prepare.py"


def release(path: Path) -> Path:
    """Five camera pairs of two people; pictures 1, 2 and 6 are there, so two of one camera and one of the other.

    As MATLAB writes them: axes reversed, cells as references, an empty cell as its two sizes.
    """
    with h5py.File(path, "w") as file:

        def cell(content: np.ndarray) -> object:
            return file.create_dataset(f"#refs#/{len(file.get('#refs#', ()))}", data=content).ref

        for kind, shade in (("detected", 50), ("labeled", 200)):
            pairs = []
            for pair in range(5):
                people = np.empty((10, 2), h5py.ref_dtype)
                for person in range(2):
                    for number in range(10):
                        pixels = np.full((3, 8, 16), shade + pair, np.uint8)
                        pixels[0] = 10 * person
                        people[number, person] = cell(pixels if number in (0, 1, 5) else np.zeros(2, np.uint64))
                pairs.append(file.create_dataset(f"#refs#/{kind}{pair}", data=people, dtype=h5py.ref_dtype).ref)
            file.create_dataset(kind, data=np.array([pairs], h5py.ref_dtype), dtype=h5py.ref_dtype)
        sets = [cell(np.array([[1 + number % 5, 2], [1, 2]], np.float64)) for number in range(20)]
        file.create_dataset("testsets", data=np.array([sets], h5py.ref_dtype), dtype=h5py.ref_dtype)
    return path


def test_pictures_and_manifests(tmp_path: Path) -> None:
    """Test set k holds person 1 of pair 1 + (k - 1) mod 5 and person 2 of pair 2."""
    runpy.run_path(str(PREPARE))["main"](release(tmp_path / "cuhk-03.mat"), tmp_path / "out")
    data = open_data("cuhk03:split=3", tmp_path / "out")
    gallery = [s for s in data.samples if s.split is Split.GALLERY]
    assert Counter((s.identity, s.camera) for s in gallery) == {
        ("3_001", "3-1"): 2, ("3_001", "3-2"): 1, ("2_002", "2-1"): 2, ("2_002", "2-2"): 1,
    }  # fmt: skip
    assert [s.path for s in gallery] == [s.path for s in data.samples if s.split is Split.QUERY]
    assert len({s.identity for s in data.samples if s.split is Split.TRAIN}) == 10 - 2
    picture = Image.open(next(s.path for s in gallery if s.identity == "2_002"))
    assert picture.size == (8, 16)
    assert picture.getpixel((3, 3)) == (10, 51, 51)
    labelled = open_data("cuhk03:boxes=labelled,split=20", tmp_path / "out").samples
    assert Image.open(labelled[0].path).getpixel((0, 0))[1] >= 200
    assert len(all_choices("cuhk03:split=all")) == 20
    assert data.scoring.rule.text() == "market cmc=single-shot repeats=10"


def test_another_file(tmp_path: Path) -> None:
    (tmp_path / "x.mat").write_text("hello")
    with pytest.raises(DataError, match=r"not the authors' cuhk-03\.mat"):
        runpy.run_path(str(PREPARE))["main"](tmp_path / "x.mat", tmp_path / "out")
    with pytest.raises(DataError, match=r"expected classic_detected_1.csv in .*run datasets/cuhk03/prepare.py"):
        open_data("cuhk03", tmp_path)
