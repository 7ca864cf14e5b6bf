"""``reid ingest`` turns videos into a gallery, continues a killed run, and reports mistakes in one line."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.walking_people import TWO, Walk, draw_frame, write_video
from reid.data.manifest import read_manifest

SOUTH = (Walk(0, (20.0, 70.0), (5.0, 0.0), range(40)), Walk(2, (200.0, 60.0), (-3.0, 0.0), range(40)))


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder of its own, and no weights in torch's cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "reid.cli", *map(str, arguments)]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_two_videos_become_a_gallery_that_answers(reid, plain_weights: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "north.avi")
    write_video(tmp_path / "south.avi", SOUTH)
    code, out, err = reid(
        "ingest", "north.avi", "--camera", "north", "--out", "data/north", "--start", "2024-05-31T16:20"
    )
    assert (code, out.splitlines()[:2]) == (
        0,
        ["data/north/manifest.csv: 20 crops of 2 tracks", "searched 40 of 40 frames with hog"],
    )
    assert "looking for people" in err
    manifest = Path("data/north/manifest.csv")
    code, out, _ = reid("ingest", "south.avi", "--camera", "south", "--out", "data/south", "--append-to", manifest)
    assert code == 0
    assert "20 crops of 2 tracks" in out

    options = ("--data", manifest, "--weights", plain_weights)
    code, out, err = reid("calibrate", *options, "--by", "camera", "--min-gap", "1", "--out", "cameras.safetensors")
    assert code == 0, err
    assert [line.split("\t")[0] for line in out.splitlines()] == ["north", "south"]
    assert all(2 <= int(line.split("\t")[1].split()[0]) < 20 for line in out.splitlines())  # one of each second
    code, out, err = reid("cameras", "report", *options)
    assert code == 0, err
    code, out, err = reid("index", "build", *options, "--profiles", "cameras.safetensors", "--out", "gallery")
    assert code == 0, err
    query = read_manifest(manifest)[0].path
    code, out, err = reid("search", query, "--gallery", "gallery", "--camera", "north", "--cross-camera", "--k", "3")
    assert code == 0, err
    assert len(out.splitlines()) == 3
    assert all("\tsouth\t" in line for line in out.splitlines())


def test_killed_again_and_again_it_ends_in_the_same_bytes(reid, tmp_path: Path) -> None:
    """While people are looked for, twice, and while they are cut out."""
    write_video(tmp_path / "north.avi")
    settings = ("ingest", tmp_path / "north.avi", "--camera", "north", "--detector", "hog", "--out")
    assert reid(*settings, tmp_path / "whole")[0] == 0
    out = tmp_path / "crops"
    found = out / "found.jsonl"
    for reached in (
        lambda: found.exists() and found.stat().st_size > 500,
        lambda: found.stat().st_size > 2000,
        lambda: list(out.glob("*.jpg")),
    ):
        process = subprocess.Popen(command(*settings, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not reached() and process.poll() is None:
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (out / "manifest.csv").exists()
    assert 0 < len(list(out.glob("*.jpg"))) < 20
    assert reid(*settings, out)[0] == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_a_full_disk_is_one_line_and_the_run_can_go_on(reid, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: writing fails in the middle of a line."""
    write_video(tmp_path / "north.avi")
    settings = ("ingest", tmp_path / "north.avi", "--camera", "north", "--detector", "hog", "--out", tmp_path / "crops")
    limited = f"ulimit -f 1; exec {' '.join(command(*settings))}"  # 1 KiB
    found = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    complaint = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
    assert len(complaint) == 1
    assert "found.jsonl: cannot be written (File too large); mend that" in complaint[0]
    assert "Traceback" not in found.stderr
    assert reid(*settings)[0] == 0
    assert len(read_manifest(tmp_path / "crops" / "manifest.csv")) == 20


def test_a_folder_of_frames(reid, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "frames").mkdir()
    for number in range(0, 40, 2):
        Image.fromarray(draw_frame(TWO, number)).save(tmp_path / "frames" / f"{number}.png")
    code, out, _ = reid(
        "ingest", "frames", "--camera", "north", "--source-fps", "5", "--out", "crops", "--max-crops-per-track", "3",
        "--margin", "0.1",
    )  # fmt: skip
    assert code == 0
    assert "6 crops of 2 tracks" in out
    samples = read_manifest(tmp_path / "crops" / "manifest.csv")
    assert [s.time.timestamp() - samples[0].time.timestamp() for s in samples[:3] if s.time and samples[0].time][2] > 3


def test_searched_frames_a_second(reid, tmp_path: Path) -> None:
    write_video(tmp_path / "north.avi")
    code, out, _ = reid("ingest", "north.avi", "--camera", "north", "--fps", "5", "--out", "crops")
    assert code == 0
    assert "searched 20 of 40 frames" in out
    code, out, _ = reid("ingest", "north.avi", "--camera", "north", "--fps", "2", "--out", "rare")
    assert "2 frames a second were searched" in out


def test_mistakes_are_one_line(reid, tmp_path: Path) -> None:
    write_video(tmp_path / "north.avi", frames=6)
    write_video(tmp_path / "nobody.avi", (), 6)
    (tmp_path / "text.mp4").write_text("no video")
    mistakes: dict[str, tuple[object, ...]] = {
        "no such file": ("none.mp4",),
        "not a video in a known format": ("text.mp4",),
        "hog found nobody in 6 frames": ("nobody.avi",),
        'unknown detector "yolo"': ("north.avi", "--detector", "yolo"),
        "nothing is downloaded": ("north.avi", "--detector", "fasterrcnn_resnet50_fpn"),
        "give one": ("north.avi", "--every", "2", "--fps", "5"),
        "--fps -1": ("north.avi", "--fps", "-1"),
        "is not ISO 8601": ("north.avi", "--start", "noon"),
        "--min-height: expected 1 or more": ("north.avi", "--min-height", "0"),
    }
    for words, arguments in mistakes.items():
        code, out, err = reid("ingest", *arguments, "--camera", "north", "--out", "crops/" + str(len(words)))
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (code, out, len(errors)) == (1, "", 1), (words, err)
        assert words in errors[0]


def test_an_interruption_names_the_command_that_continues(
    reid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reid.data.video.detectors import HogDetector

    write_video(tmp_path / "north.avi")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(HogDetector, "__call__", stop)
    code, _, err = reid("ingest", "north.avi", "--camera", "north", "--out", "crops")
    assert code == 130
    assert "the same command continues crops" in err
    assert (tmp_path / "crops" / "ingest.json").exists()
