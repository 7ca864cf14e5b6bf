"""Videos of others: a rate that varies, pixels that are not square, missing frames, stamps that begin again."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.walking_people import RATE, SIZE, TWO, draw_frame, write_video
from reid.data.video import frames as module
from reid.data.video.frames import Pixels, Retiming, load_cv2, open_video
from reid.data.video.ingestion import Settings, _warnings, ingest
from reid.data.video.tracking import FrameDetections
from reid.records import FloatArray

NOTHING = np.empty((0, 5), np.float32)


class Stated:
    """A capture of OpenCV that states other properties, or other stamps."""

    def __init__(self, capture: Any, properties: dict[int, float], stamps: Sequence[float]) -> None:
        self._capture, self._properties, self._stamps, self._number = capture, properties, stamps, -1

    def grab(self) -> bool:
        self._number += 1
        return bool(self._capture.grab())

    def get(self, name: int) -> float:
        if name == load_cv2().CAP_PROP_POS_MSEC and self._stamps:
            return self._stamps[self._number]
        return float(self._properties.get(name, self._capture.get(name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._capture, name)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "street.avi", frames=12)


def state(
    monkeypatch: pytest.MonkeyPatch, properties: dict[int, float] | None = None, stamps: Sequence[float] = ()
) -> None:
    capture = module._capture
    monkeypatch.setattr(module, "_capture", lambda cv2, path: Stated(capture(cv2, path), properties or {}, stamps))


def times(path: Path, rate: float | None = None) -> list[float]:
    return [frame.seconds for frame in open_video(path, rate).frames(lambda _number: True)]


def test_stamps_that_begin_again_go_on(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three videos of four frames, one after the other; the second begins at 0, the third later."""
    state(monkeypatch, stamps=[0, 100, 200, 300, 0, 100, 200, 300, 50, 150, 250, 350])
    assert times(video) == pytest.approx([number / 10 for number in range(12)])


def test_what_was_mended_is_counted(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_video(video)
    for _ in range(2):  # each reading counts anew
        list(opened.frames(lambda _number: False))
        assert opened.retiming == Retiming()
    state(monkeypatch, stamps=[0, 100, 200, 300, 0, 100, 200, 300, 50, 150, 250, 350] * 2)
    opened = open_video(video)
    list(opened.frames(lambda _number: False))
    assert opened.retiming == Retiming(frames=8, restarts=2)
    state(monkeypatch, stamps=[0, 100, 100, 200, 300, 0, 500, 600, 700, 800, 900, 1000])
    opened = open_video(video)
    list(opened.frames(lambda _number: False))
    assert opened.retiming == Retiming(frames=2, restarts=0)


def test_an_ingest_counts_what_was_mended_in_the_whole_video_and_says_it_once(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OneBox:
        name, min_score = "one", 0.5

        def __call__(self, _pixels: Pixels) -> FloatArray:
            return np.array([[10, 10, 60, 110, 0.9]], np.float32)

    for stamps in ([*range(0, 600, 100)] * 4, [*range(0, 600, 100)] * 2):  # crops are cut in a second reading, once
        state(monkeypatch, stamps=stamps)
        plan = Settings("north", max_crops=1)
        result = ingest(open_video(video), OneBox(), tmp_path / "crops", plan, bar=lambda *_: nullcontext(print))
        (doubt,) = result.doubts
        assert "the times of 6 of 12 frames" in doubt
        assert doubt not in result.lines()


def test_equal_stamps_rise(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state(monkeypatch, stamps=[0, 100, 100, 200, 300, 400, 390, 500, 600, 700, 800, 900])
    found = times(video)
    assert all(later > earlier for earlier, later in itertools.pairwise(found))
    assert found[-1] == pytest.approx(0.9)


@pytest.mark.parametrize(("wide", "high", "size"), [(2, 1, (240, 640)), (1, 2, (480, 320)), (16, 15, (240, 341))])
def test_pixels_become_square(
    wide: int, high: int, size: tuple[int, int], video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cv2 = load_cv2()
    state(monkeypatch, {cv2.CAP_PROP_SAR_NUM: wide, cv2.CAP_PROP_SAR_DEN: high})
    opened = open_video(video)
    frame = next(opened.frames(lambda number: number == 3))
    assert frame.pixels.shape == (*size, 3)
    truth = np.asarray(Image.fromarray(draw_frame(TWO, 3)).resize(size[::-1], Image.Resampling.BILINEAR))
    assert np.abs(frame.pixels.astype(float) - truth).mean() < 5


@pytest.mark.parametrize(("wide", "high"), [(0, 1), (1, 0), (1, 1), (1000, 1), (float("nan"), 1)])
def test_an_aspect_that_means_nothing(wide: float, high: float, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = load_cv2()
    state(monkeypatch, {cv2.CAP_PROP_SAR_NUM: wide, cv2.CAP_PROP_SAR_DEN: high})
    assert next(open_video(video).frames(lambda _number: True)).pixels.shape == (*SIZE, 3)


def numbered(folder: Path, names: Sequence[object], pattern: str = "frame_{:06}.png") -> Path:
    folder.mkdir()
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / pattern.format(name))
    return folder


def test_missing_frames_leave_a_gap_in_time(tmp_path: Path) -> None:
    numbers = [*range(15), *range(25, 40)]
    folder = numbered(tmp_path / "gap", numbers)
    assert times(folder, RATE) == pytest.approx([number / RATE for number in numbers])
    opened = open_video(folder, RATE)
    assert opened.stamped
    (remark,) = opened.remarks
    assert "10 numbers" in remark
    assert "frame_000014" in remark


@pytest.mark.parametrize(
    ("names", "pattern", "remarks"),
    [
        (range(7, 13), "{}.png", 0),
        (range(0, 60, 5), "a{}.png", 0),  # every fifth frame
        (["a", "b", "c"], "{}.png", 0),
        (["1_a", "2_b", "9_c"], "{}.png", 0),
        ([1717171717, 1717171799, 1717172901], "{}.png", 1),  # times in seconds, so the rate means something else
    ],
)
def test_names_without_a_gap(names: Sequence[object], pattern: str, remarks: int, tmp_path: Path) -> None:
    folder = numbered(tmp_path / "frames", list(names), pattern)
    assert times(folder, RATE) == pytest.approx([number / RATE for number in range(len(list(names)))])
    assert len(open_video(folder, RATE).remarks) == remarks


def test_a_rate_that_varies_is_no_damage(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The announced number of frames is the time by the greatest rate; a video that ends early is still found."""
    cv2 = load_cv2()
    state(monkeypatch, {cv2.CAP_PROP_FRAME_COUNT: 60.0})
    opened = open_video(video)
    whole = [FrameDetections(number, seconds, NOTHING) for number, seconds in enumerate([0, 0.1, 0.2, 3, 5.5])]
    assert not any("cut off" in line for line in _warnings(opened, Settings("c"), 12, whole))
    assert any("cut off" in line for line in _warnings(opened, Settings("c"), 12, whole[:3]))
    assert any("cut off" in line for line in _warnings(open_video(video, RATE), Settings("c"), 12, whole))
