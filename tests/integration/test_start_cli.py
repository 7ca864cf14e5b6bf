"""``reid start`` leads from a folder to a gallery with persons, prints every step, and repeats none."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.walking_people import TWO, Walk, write_video
from reid.cli.start import Questions
from reid.data.manifest import read_manifest
from reid.records import Modality
from reid.retrieval.gallery import Gallery
from reid.retrieval.persons.person_files import has_persons

SOUTH = (Walk(0, (20.0, 70.0), (5.0, 0.0), range(40)), Walk(2, (200.0, 60.0), (-3.0, 0.0), range(40)))


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder of its own, and no weights in torch's cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def crops(manifest: Path, tmp_path: Path) -> Path:
    """People of two visible cameras and of an infrared one, as camera/identity/*.jpg."""
    for sample in read_manifest(manifest):
        if sample.category == "person" and sample.camera in ("a1", "a2", "a5"):
            folder = tmp_path / "crops" / {"a1": "door", "a2": "yard", "a5": "night"}[sample.camera] / sample.identity
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(sample.path, folder)
    return Path("crops")


def commands(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("reid ")]


def test_a_folder_becomes_a_gallery_and_nothing_is_done_twice(reid, crops: Path, plain_weights: Path) -> None:
    arguments = ("start", crops, "--yes", "--no-page", "--no-adapt", "--weights", plain_weights)
    code, out, err = reid(*arguments)
    assert code == 0, err
    verbs = [shlex.split(line)[1] for line in commands(out)]
    assert verbs == ["init", "validate", "calibrate", "index", "identify", "serve"]
    gallery = Gallery.open(Path("crops-reid/gallery"))
    assert {sample.camera for sample in gallery.samples} == {"door", "yard", "night"}
    assert {s.camera for s in gallery.samples if s.modality is Modality.INFRARED} == {"night"}
    assert has_persons(Path("crops-reid/gallery"))

    stamp = Path("crops-reid/gallery").stat().st_mtime_ns
    code, again, err = reid(*arguments)
    assert code == 0, err
    assert [shlex.split(line)[1] for line in commands(again)] == ["serve"]
    assert [line.removeprefix("# done before: ") for line in again.splitlines()[:-1]] == commands(out)[:-1]
    assert Path("crops-reid/gallery").stat().st_mtime_ns == stamp


def test_printed_steps_are_commands_and_another_manifest_makes_another_gallery(
    reid, crops: Path, plain_weights: Path
) -> None:
    arguments = ("start", crops, "--yes", "--no-page", "--no-adapt", "--weights", plain_weights)
    _, out, _ = reid(*arguments)
    vectors = Gallery.open(Path("crops-reid/gallery")).embeddings.vectors
    shutil.rmtree("crops-reid/gallery")
    for line in commands(out)[1:-1]:
        assert reid(*shlex.split(line)[1:])[0] == 0
    assert (Gallery.open(Path("crops-reid/gallery")).embeddings.vectors == vectors).all()

    lines = (crops / "manifest.csv").read_text().splitlines()
    (crops / "manifest.csv").write_text("\n".join(line for line in lines if not line.startswith("night")) + "\n")
    code, out, err = reid(*arguments)
    assert code == 0, err
    assert "images are not in crops/manifest.csv" in err
    assert [shlex.split(line)[1] for line in commands(out)] == ["validate", "calibrate", "index", "identify", "serve"]
    assert {s.camera for s in Gallery.open(Path("crops-reid/gallery")).samples} == {"door", "yard"}


def test_a_damaged_image_stops_it_in_one_line_and_it_goes_on(reid, crops: Path, plain_weights: Path) -> None:
    arguments = ("start", crops, "--yes", "--no-page", "--no-adapt", "--weights", plain_weights)
    image = next(crops.glob("door/*/*.jpg"))
    content = image.read_bytes()
    image.write_bytes(b"no image")
    code, out, err = reid(*arguments)
    assert code == 1
    assert [image.name in line for line in err.splitlines() if line.startswith("error: ")] == [True]
    assert commands(out)[0].startswith("reid init crops")
    image.write_bytes(content)
    code, out, _ = reid(*arguments)
    assert code == 0
    assert [shlex.split(line)[1] for line in commands(out)][-3:] == ["index", "identify", "serve"]
    assert not any(line.startswith("reid init") for line in commands(out))


def test_a_folder_of_videos(reid, plain_weights: Path) -> None:
    write_video(Path("videos/north_20240531-162000.avi"), TWO)
    write_video(Path("videos/south/first.avi"), SOUTH)
    code, out, err = reid("start", "videos", "--yes", "--no-page", "--no-adapt", "--weights", plain_weights)
    assert code == 0, err
    ingests = [shlex.split(line) for line in commands(out) if line.startswith("reid ingest")]
    assert [words[words.index("--camera") + 1] for words in ingests] == ["north", "south"]
    assert ingests[0][-2:] == ["--start", "2024-05-31T16:20:00"]
    assert {s.camera for s in Gallery.open(Path("videos-reid/gallery")).samples} == {"north", "south"}


def test_at_most_three_questions_are_asked_and_only_once(
    reid, crops: Path, plain_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout and the light of the crops, and the weights; the answers decide, and the second start asks nothing."""
    asked: list[str] = []

    def answer(question: str, default: object = None, **_: object) -> object:
        asked.append(question)
        return str(plain_weights) if question.startswith("Weights") else default

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.prompt", answer)
    monkeypatch.setattr("typer.confirm", lambda question, **_: bool(asked.append(question)))
    assert reid("start", crops, "--no-page")[0] == 0
    assert [question.split()[0] for question in asked] == ["The", "Weights:", "Train"][: len(asked)]
    assert len(asked) >= 2
    gallery = Gallery.open(Path("crops-reid/gallery"))
    assert {str(sample.modality) for sample in gallery.samples} == {"visible"}, "the light was denied"
    asked.clear()
    assert reid("start", crops, "--no-page")[0] == 0
    assert asked == []


def test_folders_that_can_be_cameras_are_taken_for_cameras(reid, plain_weights: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(48):
        path = Path("site") / ("door", "yard")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (32, 16, 3), dtype=np.uint8)).save(path)
    options = ("--yes", "--no-page", "--no-adapt", "--weights", plain_weights)
    assert reid("start", "site", *options)[0] == 0
    assert {s.camera for s in Gallery.open(Path("site-reid/gallery")).samples} == {"door", "yard"}
    Path("site/manifest.csv").unlink()
    code, _, err = reid("start", "site", *options, "--pattern", "{identity}/*", "--out", "other")
    assert code == 0, err
    assert {(s.camera, s.identity) for s in Gallery.open(Path("other/gallery")).samples} == {("", "door"), ("", "yard")}


def test_the_fourth_question_gets_its_default() -> None:
    questions = Questions(True)
    assert [questions.ask(lambda: "asked", "default") for _ in range(4)] == ["asked"] * 3 + ["default"]


def test_crops_without_cameras_become_a_gallery_as_well(reid, crops: Path, camera_weights: Path) -> None:
    """A network with statistics of cameras can neither be calibrated nor adapted then."""
    Path("flat").mkdir()
    for number, image in enumerate(sorted(crops.glob("door/*/*.jpg"))):
        shutil.copy(image, f"flat/{number}.jpg")
    code, out, err = reid("start", "flat", "--yes", "--no-page", "--adapt", "--weights", camera_weights)
    assert code == 0, err
    assert [shlex.split(line)[1] for line in commands(out)] == [
        "init", "validate", "adapt", "index", "identify", "serve",
    ]  # fmt: skip
    assert "the adaptation is left out" in err
    assert "--unseen-camera nearest" in out
    assert len(Gallery.open(Path("flat-reid/gallery"))) == number + 1


def test_what_cannot_be_started(fails, crops: Path, tmp_path: Path) -> None:
    assert "no such folder" in fails("start", "nowhere", "--yes")
    (tmp_path / "empty").mkdir()
    assert "neither images nor videos" in fails("start", "empty", "--yes")
    assert "lies in crops" in fails("start", crops, "--yes", "--out", crops / "reid")
    assert not (crops / "reid").exists()
    (tmp_path / "crops-reid").mkdir()
    (tmp_path / "crops-reid" / "start.json").write_text('{"format": "other"}')
    assert "start.json" in fails("start", crops, "--yes")


def test_weights_are_only_fetched_by_name(reid, crops: Path) -> None:
    code, out, err = reid("start", crops, "--yes", "--no-page", "--weights", "no-such-weights")
    assert code == 1
    assert out == ""
    assert "no name of" in err


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), "a cause", "as safetensors says it"])
def test_a_full_disk_in_the_calibration_ends_the_start_and_is_told(
    reid, crops: Path, plain_weights: Path, monkeypatch: pytest.MonkeyPatch, error: OSError | str
) -> None:
    from reid.errors import WeightsError
    from reid.norm import Profiles

    def fail(_self: Profiles, path: Path) -> None:
        if isinstance(error, OSError):
            raise error
        if error == "a cause":
            raise WeightsError(f"{path}: cannot be written (No space left on device)") from OSError(28, "full")
        raise WeightsError(f"{path}: cannot be written (I/O error: No space left on device (os error 28))")

    arguments = ("start", crops, "--yes", "--no-page", "--no-adapt", "--weights", plain_weights)
    with monkeypatch.context() as patched:
        patched.setattr(Profiles, "save", fail)
        code, _, err = reid(*arguments)
    assert code == 1
    assert "No space left" in err
    assert "left out" not in err
    assert not Path("crops-reid/gallery").exists()
    assert reid(*arguments)[0] == 0
    assert Path("crops-reid/profiles.safetensors").exists()


def test_weights_that_cannot_be_read_are_not_remembered(reid, crops: Path, plain_weights: Path) -> None:
    Path("broken.safetensors").write_bytes(b"no weights")
    for wrong in ("broken.safetensors", "no-such-weights"):
        assert reid("start", crops, "--yes", "--no-page", "--no-adapt", "--weights", wrong)[0] == 1
    code, out, err = reid("start", crops, "--yes", "--no-page", "--no-adapt")
    assert code == 0, err
    assert not [line for line in commands(out) if "broken" in line or "no-such" in line]


def test_options_that_a_manifest_does_not_follow_are_refused(reid, fails, crops: Path, plain_weights: Path) -> None:
    arguments = ("start", crops, "--yes", "--no-page", "--no-adapt", "--weights", plain_weights)
    for option, value in (("--fps", "2"), ("--fps", "nan")):
        code, _, err = reid(*arguments, option, value)
        assert code in (1, 2)
        assert "--fps" in err
    pattern = "{camera}/{identity}/*"
    assert reid(*arguments, "--pattern", pattern)[0] == 0
    assert reid(*arguments, "--pattern", pattern)[0] == 0, "the same command goes on"
    record = next(Path().glob("*/start.json"))
    record.write_text(json.dumps({**json.loads(record.read_text()), "steps": {}}))
    assert reid(*arguments, "--pattern", pattern)[0] == 0, "killed before it was written down that the manifest is made"
    assert "--pattern" in fails(*arguments, "--pattern", "{identity}/{camera}/*")
    assert "--category" in fails(*arguments, "--category", "vehicle")
    assert reid(*arguments, "--category", "person")[0] == 0
    own = fails("start", crops, "--yes", "--no-page", "--out", "other", "--pattern", pattern)
    assert "is used as it is" in own, "another start made this manifest"
    write_video(Path("videos/north.avi"), TWO)
    for option, value in (("--pattern", pattern), ("--category", "vehicle")):
        assert option in fails("start", "videos", "--yes", "--no-page", option, value)


def test_steps_run_as_the_start_is_asked_to(reid, crops: Path, plain_weights: Path) -> None:
    code, out, err = reid(
        "start", crops, "--yes", "--no-page", "--no-adapt", "--weights", plain_weights, "--runtime", "folded",
        "--device", "cpu",
    )  # fmt: skip
    assert code == 0, err
    lines = {shlex.split(line)[1]: line for line in commands(out)}
    for verb in ("calibrate", "index", "serve"):
        assert "--device cpu --runtime folded" in lines[verb]
    assert "--runtime" not in lines["identify"]
