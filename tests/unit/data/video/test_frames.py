"""Frames of videos and folders: their order, their times, and what is refused.

The truth is a film of rendered people whose frames are known; a reader that begins a frame late, counts only wanted
frames or swaps colours is told apart by it.
"""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.walking_people import RATE, TWO, film, picture
from reid.data.video.frames import Film, open_film
from reid.errors import ConfigError, DataError


@pytest.fixture(scope="module", params=["avi", "mp4", "mkv"])
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("film") / f"street.{request.param}", frames=12)


def everything(_number: int) -> bool:
    return True


def difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(float) - second.astype(float)).mean())


def test_every_frame_with_its_time(video: Path) -> None:
    opened = open_film(video)
    assert (opened.rate, opened.count) == (RATE, 12)
    frames = list(opened.frames(everything))
    assert [frame.number for frame in frames] == list(range(12))
    assert [frame.seconds for frame in frames] == pytest.approx([n / RATE for n in range(12)])
    for frame in frames:
        truth = picture(TWO, frame.number)
        assert frame.pixels.dtype == np.uint8
        assert difference(frame.pixels, truth) < 4.0
        assert difference(frame.pixels[:, :, ::-1], truth) > 4.0  # colours in the other order
    assert difference(frames[8].pixels, picture(TWO, 0)) > 4.0  # another frame


def test_wanted_frames_only(video: Path) -> None:
    opened = open_film(video)
    whole = list(opened.frames(everything))
    some = list(opened.frames(lambda number: number in (3, 7)))
    assert [(frame.number, frame.seconds) for frame in some] == [(3, 0.3), (7, 0.7)]
    assert all(np.array_equal(frame.pixels, whole[frame.number].pixels) for frame in some)


def test_a_rate_that_is_told_counts_instead_of_time_stamps(video: Path) -> None:
    assert [frame.seconds for frame in open_film(video, 4.0).frames(everything)][:3] == [0.0, 0.25, 0.5]


def test_a_folder_in_the_order_of_numbers(tmp_path: Path) -> None:
    for number in (0, 1, 2, 10):
        Image.new("RGB", (8, 8), (number * 20, 0, 0)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    opened = open_film(tmp_path, 2.0)
    frames = list(opened.frames(everything))
    assert [int(frame.pixels[0, 0, 0]) for frame in frames] == [0, 20, 40, 200]
    assert [frame.seconds for frame in frames] == [0.0, 0.5, 1.0, 1.5]


def test_a_fingerprint_follows_the_bytes_not_the_name(video: Path, tmp_path: Path) -> None:
    same, other = tmp_path / "same.avi", film(tmp_path / "other.avi", TWO[:1], frames=12)
    same.write_bytes(video.read_bytes())
    assert open_film(same).fingerprint == open_film(video).fingerprint != open_film(other).fingerprint


def refused(path: Path, rate: float | None = None) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        open_film(path, rate)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_film_is_refused_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "no such file" in refused(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("this is no video\n" * 100)
    assert "not a video" in refused(tmp_path / "text.mp4")
    (tmp_path / "empty.mp4").touch()
    assert "not a video" in refused(tmp_path / "empty.mp4")
    (tmp_path / "folder").mkdir()
    assert "no pictures in it" in refused(tmp_path / "folder", 5.0)
    Image.new("RGB", (8, 8)).save(tmp_path / "folder" / "1.png")
    assert "--source-fps" in refused(tmp_path / "folder")
    assert "--source-fps 0" in refused(tmp_path / "folder", 0.0)
    assert capfd.readouterr().err == ""  # the libraries have nothing to add


def test_a_video_without_a_frame_is_refused(tmp_path: Path) -> None:
    assert "shows no frame" in refused(film(tmp_path / "none.avi", frames=0))


def test_a_playlist_opens_no_address(tmp_path: Path) -> None:
    lines = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.m3u8").write_text(lines)
    refused(tmp_path / "list.m3u8")


def test_a_video_that_is_cut_off_ends_early(video: Path, tmp_path: Path) -> None:
    cut = tmp_path / f"cut{video.suffix}"
    whole = video.read_bytes()
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    if video.suffix == ".mp4":  # which says at its end where its frames are
        assert "or cut off" in refused(cut)
    else:
        assert 0 < len(list(open_film(cut).frames(everything))) < 12


def test_without_opencv_one_line_says_what_to_install(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "cv2":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r'pip install "\.\[video\]"'):
        open_film(video)


def test_a_film_is_read_again_from_its_start(video: Path) -> None:
    opened: Film = open_film(video)
    once = [frame.pixels for frame in opened.frames(everything)]
    again = [frame.pixels for frame in opened.frames(everything)]
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
