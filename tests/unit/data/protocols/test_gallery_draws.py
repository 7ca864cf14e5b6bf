"""The galleries of trials follow the authors' permutation, are drawn at random as AGW does, or hold all images.

The tests find these errors: numbers counted from zero, the wrong trial, one draw for all cameras, another order of
groups (which changes every later ``random.choice``).
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from helpers import published_layouts
from reid.data.protocols.data_sets import open_data
from reid.data.protocols.gallery_draws import draw_galleries
from reid.data.protocols.protocol_table import Rule
from reid.errors import DataError
from reid.records import Sample, Split


def gallery_rows(samples: tuple[Sample, ...]) -> list[int]:
    return [row for row, sample in enumerate(samples) if sample.split is Split.GALLERY]


def names(samples: tuple[Sample, ...], rows: tuple[int, ...]) -> list[str]:
    return ["/".join(samples[row].path.parts[-3:]) for row in rows]


def test_the_permutation_file(tmp_path: Path) -> None:
    """Odd trials list the images 1, 2 and even ones 2, 1, so the first image alternates."""
    published_layouts.sysu_permutations(published_layouts.sysu_mm01(tmp_path))
    data = open_data("sysu_mm01", tmp_path)
    drawn = draw_galleries(data.samples, gallery_rows(data.samples), data.scoring.rule, data.scoring.permutation)
    assert len(drawn.trials) == 10
    for trial, rows in enumerate(drawn.trials):
        frame = 1 + trial % 2
        assert sorted(names(data.samples, rows)) == [
            f"cam{camera}/{person:04d}/{frame:04d}.jpg" for camera in (1, 2, 4, 5) for person in (6, 10)
        ]
    assert "rand_perm_cam.mat (sha256 " in drawn.source
    indoor = open_data("sysu_mm01:search=indoor,shots=10", tmp_path)
    multi = draw_galleries(indoor.samples, gallery_rows(indoor.samples), indoor.scoring.rule, data.scoring.permutation)
    assert {len(rows) for rows in multi.trials} == {2 * 2 * 2}  # cameras 1 and 2, two people, all two images


def test_random_galleries_equal_those_of_agw(tmp_path: Path) -> None:
    """AGW seeds with the trial and then makes one choice for each sorted identity and camera."""
    published_layouts.sysu_mm01(tmp_path)
    data = open_data("sysu_mm01:gallery=random", tmp_path)
    drawn = draw_galleries(data.samples, gallery_rows(data.samples), data.scoring.rule, data.scoring.permutation)
    expected, cameras_first = [], []
    for trial in range(10):
        for result, outer in ((expected, "person"), (cameras_first, "camera")):
            random.seed(trial)
            pairs = [(person, camera) for person in ("0006", "0010") for camera in (1, 2, 4, 5)]
            pairs.sort(key=lambda pair: pair if outer == "person" else pair[::-1])
            files = []
            for person, camera in pairs:
                files.append(random.choice(sorted((tmp_path / f"cam{camera}/{person}").iterdir())))
            result.append(["/".join(path.parts[-3:]) for path in files])
    got = [names(data.samples, rows) for rows in drawn.trials]
    assert got == expected
    # The test would notice the wrong order of groups.
    assert [sorted(trial) for trial in got] != [sorted(trial) for trial in cameras_first]
    assert drawn.source == "random, 1 per identity and camera, seeds 0 to 9"


def test_several_random_shots_are_different_images(tmp_path: Path) -> None:
    published_layouts.llcm(tmp_path)
    data = open_data("llcm:shots=5", tmp_path)
    drawn = draw_galleries(data.samples, gallery_rows(data.samples), data.scoring.rule)
    for rows in drawn.trials:
        assert len(rows) == len(set(rows)) == 2 * 2 * 2  # people, cameras, and no more than the two images there are


def test_all_rows() -> None:
    samples = tuple(Sample(Path(f"{i}.jpg"), "a") for i in range(3))
    drawn = draw_galleries(samples, [0, 2], Rule(trials=2))
    assert drawn.trials == ((0, 2), (0, 2))
    assert drawn.source == "all gallery rows"


def test_permutations_that_do_not_fit(tmp_path: Path) -> None:
    published_layouts.sysu_mm01(tmp_path)
    data = open_data("sysu_mm01", tmp_path)
    rows, rule = gallery_rows(data.samples), data.scoring.rule
    with pytest.raises(DataError, match=r"rand_perm_cam\.mat"):
        draw_galleries(data.samples, rows, rule, data.scoring.permutation)
    with pytest.raises(DataError, match="permutation"):
        draw_galleries(data.samples, rows, rule)
    published_layouts.sysu_permutations(tmp_path, images=3)
    with pytest.raises(DataError, match=r"cam1, identity 0006, trial 1: .*3 .*2"):
        draw_galleries(data.samples, rows, rule, data.scoring.permutation)
    from scipy.io import savemat

    savemat(tmp_path / "exp/rand_perm_cam.mat", {"other": 1})
    with pytest.raises(DataError, match="cells rand_perm_cam"):
        draw_galleries(data.samples, rows, rule, data.scoring.permutation)
