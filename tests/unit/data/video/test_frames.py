"""Frames of videos and folders have the right order and times, and other files are refused.

The videos show rendered people, so every frame is known.  The tests find a reader that begins a frame late, counts only
wanted frames or exchanges colours.
"""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.walking_people import RATE, TWO, draw_frame, write_video
from reid.data.video.frames import open_video
from reid.errors import ConfigError, DataError


@pytest.fixture(scope="module", params=["avi", "mp4", "mkv"])
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / f"street.{request.param}", frames=12)


def everything(_number: int) -> bool:
    return True


def difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(float) - second.astype(float)).mean())


def test_every_frame_has_its_time(video: Path) -> None:
    opened = open_video(video)
    assert (opened.rate, opened.count) == (RATE, 12)
    frames = list(opened.frames(everything))
    assert [frame.number for frame in frames] == list(range(12))
    assert [frame.seconds for frame in frames] == pytest.approx([n / RATE for n in range(12)])
    for frame in frames:
        truth = draw_frame(TWO, frame.number)
        assert frame.pixels.dtype == np.uint8
        assert difference(frame.pixels, truth) < 4.0
        assert difference(frame.pixels[:, :, ::-1], truth) > 4.0  # colours in the other order
    assert difference(frames[8].pixels, draw_frame(TWO, 0)) > 4.0  # another frame


def test_only_wanted_frames_are_read(video: Path) -> None:
    opened = open_video(video)
    whole = list(opened.frames(everything))
    some = list(opened.frames(lambda number: number in (3, 7)))
    assert [(frame.number, frame.seconds) for frame in some] == [(3, 0.3), (7, 0.7)]
    assert all(np.array_equal(frame.pixels, whole[frame.number].pixels) for frame in some)


def test_a_given_rate_replaces_time_stamps(video: Path) -> None:
    assert [frame.seconds for frame in open_video(video, 4.0).frames(everything)][:3] == [0.0, 0.25, 0.5]


def test_a_folder_is_read_in_the_order_of_numbers(tmp_path: Path) -> None:
    for number in (0, 1, 2, 10):
        Image.new("RGB", (8, 8), (number * 20, 0, 0)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    opened = open_video(tmp_path, 2.0)
    frames = list(opened.frames(everything))
    assert [int(frame.pixels[0, 0, 0]) for frame in frames] == [0, 20, 40, 200]
    assert [frame.seconds for frame in frames] == [0.0, 0.5, 1.0, 1.5]


def test_a_fingerprint_depends_on_the_bytes_only(video: Path, tmp_path: Path) -> None:
    same, other = tmp_path / "same.avi", write_video(tmp_path / "other.avi", TWO[:1], frames=12)
    same.write_bytes(video.read_bytes())
    assert open_video(same).fingerprint == open_video(video).fingerprint != open_video(other).fingerprint


def refused(path: Path, rate: float | None = None) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        open_video(path, rate)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_other_files_are_refused_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "none.mp4" in refused(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("this is no video\n" * 100)
    assert "text.mp4" in refused(tmp_path / "text.mp4")
    (tmp_path / "empty.mp4").touch()
    assert "empty.mp4" in refused(tmp_path / "empty.mp4")
    (tmp_path / "folder").mkdir()
    assert ".png" in refused(tmp_path / "folder", 5.0)
    Image.new("RGB", (8, 8)).save(tmp_path / "folder" / "1.png")
    assert "--source-fps" in refused(tmp_path / "folder")
    assert "--source-fps 0" in refused(tmp_path / "folder", 0.0)
    assert capfd.readouterr().err == ""  # the libraries print nothing


def test_a_video_without_a_frame_is_refused(tmp_path: Path) -> None:
    assert "no frame" in refused(write_video(tmp_path / "none.avi", frames=0))


def test_a_playlist_opens_no_address(tmp_path: Path) -> None:
    lines = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.m3u8").write_text(lines)
    refused(tmp_path / "list.m3u8")


def test_a_video_that_is_cut_off_ends_early(video: Path, tmp_path: Path) -> None:
    cut = tmp_path / f"cut{video.suffix}"
    whole = video.read_bytes()
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    if video.suffix == ".mp4":  # its end tells where its frames are
        assert "cut off" in refused(cut)
    else:
        assert 0 < len(list(open_video(cut).frames(everything))) < 12


def test_without_opencv_an_error_tells_what_to_install(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "cv2":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r'pip install "\.\[video\]"'):
        open_video(video)


def test_a_video_is_read_again_from_its_start(video: Path) -> None:
    opened = open_video(video)
    once = [frame.pixels for frame in opened.frames(everything)]
    again = [frame.pixels for frame in opened.frames(everything)]
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
