"""The HDF5 file of CUHK03 becomes images and twenty manifests."""

from __future__ import annotations

import runpy
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from helpers.published_archives import cuhk03_release as release
from reid.data.protocols.data_sets import all_choices, open_data
from reid.errors import DataError
from reid.records import Split

PREPARE = Path(__file__).parents[4] / "datasets/cuhk03/prepare.py"


def test_images_and_manifests(tmp_path: Path) -> None:
    """Test set k holds person 1 of pair 1 + (k - 1) mod 5 and person 2 of pair 2."""
    runpy.run_path(str(PREPARE))["main"](release(tmp_path / "cuhk-03.mat"), tmp_path / "out")
    data = open_data("cuhk03:split=3", tmp_path / "out")
    gallery = [s for s in data.samples if s.split is Split.GALLERY]
    assert Counter((s.identity, s.camera) for s in gallery) == {
        ("3_001", "3-1"): 2, ("3_001", "3-2"): 1, ("2_002", "2-1"): 2, ("2_002", "2-2"): 1,
    }  # fmt: skip
    assert [s.path for s in gallery] == [s.path for s in data.samples if s.split is Split.QUERY]
    assert len({s.identity for s in data.samples if s.split is Split.TRAIN}) == 10 - 2
    image = Image.open(next(s.path for s in gallery if s.identity == "2_002"))
    assert image.size == (8, 16)
    assert image.getpixel((3, 3)) == (10, 51, 51)
    labelled = open_data("cuhk03:boxes=labelled,split=20", tmp_path / "out").samples
    assert Image.open(labelled[0].path).getpixel((0, 0))[1] >= 200
    assert len(all_choices("cuhk03:split=all")) == 20
    assert data.scoring.rule.text() == "market cmc=single-shot repeats=10"


def test_another_file(tmp_path: Path) -> None:
    (tmp_path / "x.mat").write_text("hello")
    with pytest.raises(DataError, match=r"x\.mat"):
        runpy.run_path(str(PREPARE))["main"](tmp_path / "x.mat", tmp_path / "out")
    with pytest.raises(DataError, match=r"classic_detected_1\.csv.*datasets/cuhk03/prepare\.py"):
        open_data("cuhk03", tmp_path)
