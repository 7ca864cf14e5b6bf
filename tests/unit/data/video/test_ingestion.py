"""An ingest with a detector that knows where people are: the crops, the manifest, and what is refused.

The tests find these errors: crops of other frames or positions, one track for two people, times that follow the
searched frames instead of all frames, a second run that lists rows again or overwrites labels, files that others can
read.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.walking_people import RATE, SIZE, TWO, Walk, box, draw_frame, write_video
from reid.data.loading import Progress
from reid.data.manifest import read_manifest
from reid.data.video import Settings, ingest, open_video
from reid.data.video.frames import Pixels
from reid.data.video.ingestion import IngestResult, cut_out
from reid.data.video.video_folder import DETECTIONS, SETTINGS
from reid.errors import ConfigError, DataError
from reid.records import FloatArray, Modality

PLAN = Settings("north", start=datetime(2024, 5, 31, 16, 20), min_score=0.5, max_crops=4)


class KnownBoxes:
    """A detector that knows the boxes; it gets each searched frame once, in order, from frame ``begin`` on."""

    name, min_score = "known", 0.5

    def __init__(self, walks: Sequence[Walk] = TWO, begin: int = 0, every: int = 1, fail: int = -1) -> None:
        self.walks, self.number, self.every, self.fail = walks, begin, every, fail

    def __call__(self, pixels: Pixels) -> FloatArray:
        if self.number == self.fail:
            raise KeyboardInterrupt
        found = [box(walk, self.number) for walk in self.walks]
        self.number += self.every
        rows = [(*corners, 0.9) for corners in found if corners]
        return np.array(rows, np.float32).reshape(-1, 5)


@contextmanager
def quiet(_title: str, _total: int) -> Iterator[Progress]:
    yield lambda _done: None


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "street.avi")


def run(
    video: Path, out: Path, plan: Settings = PLAN, append_to: Path | None = None, detector: KnownBoxes | None = None
) -> IngestResult:
    finder = detector or KnownBoxes(every=plan.every)
    return ingest(open_video(video), finder, out, plan, bar=quiet, append_to=append_to)


def rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def assert_shows(crop: Path, walk: Walk, number: int) -> None:
    """Check that the crop is the part of frame ``number`` that shows the person of ``walk``."""
    corners = box(walk, number)
    assert corners is not None
    truth = cut_out(draw_frame(TWO, number), corners, 0.0)
    with Image.open(crop) as image:
        pixels = np.asarray(image)
    assert pixels.shape == truth.shape
    assert np.abs(pixels.astype(float) - truth).mean() < 8.0


def test_crops_show_the_people_in_the_video(video: Path, tmp_path: Path) -> None:
    result = run(video, tmp_path / "crops")
    listed = rows(result.manifest)
    assert (result.frames, result.searched, result.crops, result.tracks, result.added) == (40, 40, 8, 2, 8)
    assert [row["path"] for row in listed] == [
        f"{track:05d}_{frame:07d}.jpg"
        for track, frames in ((1, (0, 13, 26, 39)), (2, (5, 15, 24, 34)))
        for frame in frames
    ]
    for row in listed:
        track, frame = (int(part) for part in Path(row["path"]).stem.split("_"))
        assert_shows(tmp_path / "crops" / row["path"], TWO[track - 1], frame)
        with pytest.raises(AssertionError):
            assert_shows(tmp_path / "crops" / row["path"], TWO[2 - track], max(5, min(frame, 34)))
        with pytest.raises(AssertionError):
            assert_shows(tmp_path / "crops" / row["path"], TWO[track - 1], frame - 4 if frame > 20 else frame + 4)
        assert row["time"] == f"2024-05-31T16:20:0{frame / RATE:.3f}"
    assert len({row["track"] for row in listed}) == 2
    assert {row["track"][-5:] for row in listed} == {"00001", "00002"}


def test_the_manifest_is_read_as_samples(video: Path, tmp_path: Path) -> None:
    plan = Settings("yard 2", Modality.INFRARED, min_score=0.5)
    samples = read_manifest(run(video, tmp_path / "crops", plan).manifest)
    assert len(samples) == 20
    assert {(s.camera, s.identity, str(s.modality), s.category, str(s.split)) for s in samples} == {
        ("yard 2", "", "infrared", "person", "gallery")
    }
    assert samples[0].time == datetime(1970, 1, 1)


def test_every_third_frame_keeps_its_own_time(video: Path, tmp_path: Path) -> None:
    listed = rows(run(video, tmp_path / "crops", Settings("north", every=3, min_score=0.5, max_crops=99)).manifest)
    frames = [int(row["path"][6:13]) for row in listed]
    assert set(frames) == set(range(0, 40, 3))
    assert all(row["time"].endswith(f":0{frame / RATE:.3f}") for row, frame in zip(listed, frames, strict=True))


def test_an_interrupted_run_continues_to_the_same_bytes(video: Path, tmp_path: Path) -> None:
    run(video, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(video, tmp_path / "crops", detector=KnownBoxes(fail=17))
    assert not (tmp_path / "crops" / "manifest.csv").exists()
    run(video, tmp_path / "crops", detector=KnownBoxes(begin=17))  # the frames before 17 are in the log
    assert contents(tmp_path / "crops") == whole


@pytest.mark.parametrize("lost", ["line", "tail", "crops", "manifest", "part"])
def test_lost_files_and_lines_are_written_again(lost: str, video: Path, tmp_path: Path) -> None:
    out = tmp_path / "crops"
    run(video, out)
    whole = contents(out)
    begin = 40
    if lost == "line":  # as if the power failed within a line
        (out / DETECTIONS).write_bytes(whole[DETECTIONS][: whole[DETECTIONS].index(b'{"frame":21') + 15])
        begin = 21
    elif lost == "tail":
        (out / DETECTIONS).write_bytes(whole[DETECTIONS][: whole[DETECTIONS].index(b'{"frame":30')] + b"\0" * 300)
        begin = 30
    elif lost == "crops":
        (out / "00001_0000013.jpg").unlink()
        (out / "manifest.csv").unlink()
    elif lost == "manifest":
        (out / "manifest.csv").unlink()
    else:
        (out / ".00001_0000013.jpg.part").write_bytes(b"half")
    run(video, out, detector=KnownBoxes(begin=begin, fail=41))
    assert contents(out) == whole


def test_a_second_run_keeps_all_files_and_labels(video: Path, tmp_path: Path) -> None:
    manifest = run(video, tmp_path / "crops").manifest
    labelled = manifest.read_text().replace(",,north", ",anna,north")
    manifest.write_text(labelled)
    result = run(video, tmp_path / "crops", detector=KnownBoxes(fail=0))  # the detector is not called again
    assert (result.crops, result.added) == (8, 0)
    assert manifest.read_text() == labelled


def test_several_cameras_in_one_manifest(video: Path, tmp_path: Path) -> None:
    other = write_video(tmp_path / "other.avi", TWO[:1], 20)
    manifest = run(video, tmp_path / "data" / "north").manifest
    before = manifest.read_bytes()
    plan = Settings("south", min_score=0.5, max_crops=4)
    for again in (False, True):
        result = run(other, tmp_path / "data" / "south", plan, manifest, KnownBoxes(TWO[:1]))
        assert result.added == (0 if again else 4)
    assert manifest.read_bytes().startswith(before)
    assert not (tmp_path / "data" / "south" / "manifest.csv").exists()
    samples = read_manifest(manifest)
    assert [s.camera for s in samples] == ["north"] * 8 + ["south"] * 4
    assert all(s.path.is_file() for s in samples)
    assert len({row["track"] for row in rows(manifest)}) == 3  # the first tracks of the two videos are different
    shutil.move(tmp_path / "data", tmp_path / "moved")
    assert all(s.path.is_file() for s in read_manifest(tmp_path / "moved" / "north" / "manifest.csv"))


def test_columns_in_another_order_are_kept(video: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "all.csv"
    manifest.write_text("track,time,split,domain,modality,camera,identity,path\nt,,gallery,person,,west,,a.jpg")
    run(video, tmp_path / "crops", append_to=manifest)
    lines = manifest.read_text().splitlines()
    assert lines[1] == "t,,gallery,person,,west,,a.jpg"
    assert lines[2].endswith("00001,2024-05-31T16:20:00.000,gallery,person,visible,north,,crops/00001_0000000.jpg")


def test_manifests_that_cannot_be_added_to(video: Path, tmp_path: Path) -> None:
    (tmp_path / "few.csv").write_text("path,identity,split\na.jpg,,gallery\n")
    for name, words in {
        "few.csv": "path, identity, split",
        "t.parquet": "CSV",
        "no.csv": r"no\.csv",
    }.items():
        with pytest.raises((ConfigError, DataError), match=words):
            run(video, tmp_path / "crops", append_to=tmp_path / name)
    assert not (tmp_path / "crops").exists()  # the error comes before any frame is searched


def test_another_video_or_other_settings_are_refused(video: Path, tmp_path: Path) -> None:
    run(video, tmp_path / "crops")
    whole = contents(tmp_path / "crops")
    with pytest.raises(ConfigError, match="--max-crops-per-track 4, not 5"):
        run(video, tmp_path / "crops", Settings("north", start=PLAN.start, max_crops=5))
    with pytest.raises(ConfigError, match=r"of 1, not of 2 .*--every"):
        run(video, tmp_path / "crops", replace(PLAN, every=2))
    other = write_video(tmp_path / "other.avi", TWO[:1], 20)
    with pytest.raises(ConfigError, match=r"street\.avi"):
        run(other, tmp_path / "crops")
    renamed = tmp_path / "renamed.avi"
    shutil.copy(video, renamed)
    run(renamed, tmp_path / "crops")  # the same video
    assert contents(tmp_path / "crops") == whole
    (tmp_path / "crops" / SETTINGS).write_text("{}")
    with pytest.raises(ConfigError, match="damaged"):
        run(video, tmp_path / "crops")


def test_a_folder_of_something_else_is_refused(video: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(ConfigError, match=r'"thesis\.doc"'):
        run(video, tmp_path)
    with pytest.raises(ConfigError, match="a file"):
        run(video, tmp_path / "thesis.doc")


def test_two_ingests_at_a_time_are_refused(video: Path, tmp_path: Path) -> None:
    class Second(KnownBoxes):
        def __call__(self, pixels: Pixels) -> FloatArray:
            with pytest.raises(ConfigError, match="another ingest"):
                run(video, tmp_path / "crops")
            return super().__call__(pixels)

    assert run(video, tmp_path / "crops", detector=Second()).crops == 8


def test_only_the_owner_may_read(video: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        run(video, tmp_path / "crops")
    finally:
        os.umask(before)
    assert (tmp_path / "crops").stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "crops").iterdir()} == {0o600}


def test_a_video_without_people_is_an_error(video: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="known found nobody in 40 frames"):
        run(video, tmp_path / "none", detector=KnownBoxes(()))
    with pytest.raises(DataError, match=r"0\.90 .* 1\d\d pixels"):
        run(video, tmp_path / "tall", Settings("north", min_height=500.0))
    assert not (tmp_path / "none" / "manifest.csv").exists()


def test_an_incomplete_video_gives_a_warning(video: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.avi"
    cut.write_bytes(video.read_bytes()[: video.stat().st_size * 2 // 3])
    result = run(cut, tmp_path / "crops")
    assert 20 <= result.frames < 30
    warning = [line for line in result.lines() if "cut off" in line]
    assert len(warning) == 1
    assert f" {open_video(cut).count} frames, {result.frames} " in warning[0]
    assert not any("cut off" in line for line in run(video, tmp_path / "whole").lines())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"camera": "a/b"}, "--camera 'a/b'"),
        ({"camera": ""}, "--camera ''"),
        ({"camera": " a"}, "--camera ' a'"),
        ({"every": 0}, "--every"),
        ({"min_score": float("nan")}, "--min-score"),
        ({"margin": -0.1}, "--margin"),
        ({"max_crops": 0}, "--max-crops-per-track"),
    ],
)
def test_settings_out_of_range(change: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Settings(**{"camera": "north", **change})


def test_a_box_is_cut_out_with_its_margin() -> None:
    pixels = np.arange(SIZE[0] * SIZE[1] * 3, dtype=np.int64).reshape(*SIZE, 3).astype(np.uint8)
    assert np.array_equal(cut_out(pixels, (10.5, 20.0, 29.5, 60.0), 0.0), pixels[20:60, 10:30])
    assert np.array_equal(cut_out(pixels, (10.0, 20.0, 30.0, 60.0), 0.5), pixels[0:80, 0:40])
    assert np.array_equal(cut_out(pixels, (310.0, 230.0, 320.0, 240.0), 1.0), pixels[220:, 300:])


def test_the_log_of_detections_is_json(video: Path, tmp_path: Path) -> None:
    run(video, tmp_path / "crops")
    lines = [json.loads(line) for line in io.StringIO((tmp_path / "crops" / DETECTIONS).read_text())]
    assert [line.get("frame") for line in lines] == [*range(40), None]
    assert lines[-1] == {"frames": 40}
    assert [len(line["boxes"]) for line in lines[:-1]] == [sum(n in walk.frames for walk in TWO) for n in range(40)]
