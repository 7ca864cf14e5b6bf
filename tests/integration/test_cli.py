"""The command line as a user meets it: the whole walk on a tiny street, and one line for every kind of bad input."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from reid.models.checkpoint import load_checkpoint
from reid.norm import Profiles
from reid.retrieval.embed import load_embeddings

ROOT = Path(__file__).parents[2]
DIRECTIONS = {"visible->visible", "infrared->visible", "visible->infrared", "infrared->infrared"}


@pytest.fixture
def fails(reid):
    """Run a command that must fail: exit code 1, nothing on stdout, one line after the progress; that line."""

    def run(*arguments: object) -> str:
        code, out, err = reid(*arguments)
        assert code == 1, err
        assert out == ""
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert err.rstrip().endswith(lines[0])
        assert "Traceback" not in err
        return lines[0]

    return run


@pytest.fixture
def manifest(tiny_street: Path) -> Path:
    return tiny_street / "street-a" / "manifest.csv"


@pytest.fixture
def other_manifest(tiny_street: Path) -> Path:
    return tiny_street / "street-b" / "manifest.csv"


def edited(manifest: Path, path: Path, change) -> Path:
    """A copy of a manifest whose rows went through ``change`` (a row is dropped where it gives None)."""
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = [change({**row, "path": str(manifest.parent / row["path"])}) for row in csv.DictReader(file)]
    kept = [row for row in rows if row is not None]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, kept[0].keys())
        writer.writeheader()
        writer.writerows(kept)
    return path


def test_from_a_street_to_answers(reid, manifest: Path, camera_weights: Path, tmp_path: Path) -> None:
    """Embed, index, search with a gallery image: it finds itself first."""
    common = ("--data", manifest, "--weights", camera_weights)
    code, out, _ = reid("embed", *common, "--out", tmp_path / "all.safetensors", "--split", "query")
    assert code == 0
    assert "36 vectors" in out
    assert len(load_embeddings(tmp_path / "all.safetensors")) == 36
    code, out, _ = reid("index", "build", *common, "--out", tmp_path / "gallery")
    assert code == 0
    assert "36 images of 6 identities in 6 cameras" in out
    picture = next((manifest.parent / "images" / "gallery" / "person").glob("a-person-0001_a5_*.jpg"))
    options = ("--gallery", tmp_path / "gallery", "--camera", "a5", "--modality", "infrared", "--json")
    code, out, _ = reid("search", picture, *options, "--k", 3)
    answers = json.loads(out)
    assert code == 0
    assert [answer["rank"] for answer in answers] == [1, 2, 3]
    assert answers[0]["path"] == str(picture)
    assert answers[0]["score"] == pytest.approx(1, abs=1e-5)
    _, out, _ = reid("search", picture, *options, "--cross-camera", "--answers", "visible")
    assert {answer["modality"] for answer in json.loads(out)} == {"visible"}
    _, out, _ = reid("search", picture, *options, "--cross-camera", "--k", 100)
    assert "a5" not in {answer["camera"] for answer in json.loads(out)}


def test_evaluate_writes_the_documented_json(reid, manifest: Path, camera_weights: Path, tmp_path: Path) -> None:
    code, out, _ = reid("evaluate", "--data", manifest, "--weights", camera_weights, "--json", tmp_path / "scores.json")
    assert code == 0
    assert "rank-1" in out
    assert all(len(line) <= 80 for line in out.splitlines()[1:])
    results = json.loads((tmp_path / "scores.json").read_text())["results"]
    assert {entry["direction"] for entry in results} == DIRECTIONS
    assert {entry["domain"] for entry in results} == {"person", "vehicle"}
    person = next(e for e in results if (e["domain"], e["direction"]) == ("person", "infrared->visible"))
    assert (person["queries"], person["gallery"], person["queries_without_match"]) == (8, 16, 0)
    for entry in results:
        scores = [entry[key] for key in ("mAP", "mINP", "rank1", "rank5", "rank10")]
        assert all(0 <= score <= 1 for score in scores)
        assert entry["rank1"] <= entry["rank5"] <= entry["rank10"]
        assert entry["protocol"] == "street-a"
        assert entry["fingerprint"]


def test_one_modality_is_direction_all(reid, manifest: Path, plain_weights: Path, tmp_path: Path) -> None:
    """Also with empty cameras, and the same picture as query and in the gallery: it is dropped as itself."""

    def change(row: dict[str, str]) -> dict[str, str] | None:
        return {**row, "camera": ""} if row["modality"] == "visible" and row["category"] == "person" else None

    rows = edited(manifest, tmp_path / "visible.csv", change)
    text = rows.read_text().splitlines()
    twice = [line.replace(",query,", ",gallery,") for line in text if ",query," in line]
    rows.write_text("\n".join(text + twice) + "\n")
    reid("evaluate", "--data", rows, "--weights", plain_weights, "--json", tmp_path / "scores.json")
    (entry,) = json.loads((tmp_path / "scores.json").read_text())["results"]
    assert entry["direction"] == "all"
    assert (entry["queries"], entry["gallery"]) == (16, 32)
    assert entry["mAP"] < 1


def test_a_new_site_is_calibrated(reid, fails, other_manifest: Path, camera_weights: Path, tmp_path: Path) -> None:
    common = ("--data", other_manifest, "--weights", camera_weights)
    message = fails("evaluate", *common)
    assert '"person/b1" is unknown to these weights' in message
    assert "reid calibrate" in message
    profiles = tmp_path / "profiles.safetensors"
    code, out, _ = reid("calibrate", *common, "--out", profiles)
    assert code == 0
    assert "person/b1\t6 images" in out
    assert reid("evaluate", *common, "--profiles", profiles, "--json", tmp_path / "by-file.json")[0] == 0
    assert reid("evaluate", *common, "--unseen-camera", "calibrate", "--json", tmp_path / "at-once.json")[0] == 0
    assert reid("evaluate", *common, "--unseen-camera", "prior", "--json", tmp_path / "prior.json")[0] == 0
    by_file, at_once, prior = (
        json.loads((tmp_path / f"{name}.json").read_text())["results"] for name in ("by-file", "at-once", "prior")
    )
    assert [entry["made"].pop("unseen cameras") for entry in at_once] == ["calibrate"] * len(by_file)
    assert by_file == at_once
    assert by_file[0]["fingerprint"] != prior[0]["fingerprint"]
    assert {entry["made"]["unseen cameras"] for entry in prior} == {"prior"}
    code, out, _ = reid("index", "build", *common, "--profiles", profiles, "--out", tmp_path / "gallery")
    assert code == 0
    picture = next((other_manifest.parent / "images" / "query" / "person").glob("*_b2_*.jpg"))
    code, out, _ = reid("search", picture, "--camera", "b2", "--gallery", tmp_path / "gallery")
    assert code == 0
    assert len(out.splitlines()) == 10
    assert "embedded by" in fails(
        "search", picture, "--camera", "a1", "--gallery", tmp_path / "gallery", "--weights", camera_weights
    )
    told = fails("search", picture, "--camera", "mars", "--gallery", tmp_path / "gallery")
    assert 'gallery: its network has no statistics for category/camera "person/mars"; known: person/a1' in told
    assert told.endswith('"reid index build --profiles" again, or build with --unseen-camera nearest or mixture')
    assert "say which with --camera" in fails("search", picture, "--gallery", tmp_path / "gallery")


def test_a_policy_that_would_change_nothing_is_refused(fails, manifest: Path, plain_weights: Path, tmp_path: Path):
    common = ("--data", manifest, "--weights", plain_weights)
    for policy in ("calibrate", "prior", "nearest", "mixture"):
        told = f"--unseen-camera {policy}: {plain_weights} keeps no statistics per camera, so none is unknown to it"
        assert told in fails("evaluate", *common, "--unseen-camera", policy)
    assert "keeps no" in fails("embed", *common, "--unseen-camera", "prior", "--out", tmp_path / "e.safetensors")
    assert "keeps no" in fails("index", "build", *common, "--unseen-camera", "nearest", "--out", tmp_path / "gallery")
    assert not list(tmp_path.iterdir())


def test_few_crops_are_drawn_towards_the_network(
    reid, fails, other_manifest: Path, plain_weights: Path, tmp_path: Path
) -> None:
    """Half and half where as many images count for the network as were seen; results say so."""
    common = ("--data", other_manifest, "--weights", plain_weights)
    paths = [tmp_path / f"{name}.safetensors" for name in ("own", "drawn")]
    assert reid("calibrate", *common, "--only", "b1", "--out", paths[0])[0] == 0
    images = Profiles.load(paths[0]).images[0]
    prior = ("--prior", images, "--prior-from", "network")
    assert reid("calibrate", *common, "--only", "b1", *prior, "--out", paths[1])[0] == 0
    own, drawn = map(Profiles.load, paths)
    for name, module in load_checkpoint(plain_weights).network.named_modules():
        if name in own.mean:
            for found, before, table in (
                (drawn.mean, module.running_mean, own.mean), (drawn.var, module.running_var, own.var)
            ):  # fmt: skip
                torch.testing.assert_close(found[name][0], (table[name][0] + before) / 2, rtol=1e-4, atol=1e-6)
    assert drawn.prior == f"{images} of the network"
    assert "without --prior" in fails("calibrate", *common, *prior[2:], "--out", paths[0])
    assert "known: cameras, network" in fails("calibrate", *common, *prior[:2], "--prior-from", "me", "--out", paths[0])
    assert reid("calibrate", *common, *prior, "--out", paths[1])[0] == 0
    assert reid("evaluate", *common, "--profiles", paths[1], "--json", tmp_path / "scores.json")[0] == 0
    results = json.loads((tmp_path / "scores.json").read_text())["results"]
    assert {entry["made"]["prior"] for entry in results} == {f"{images} of the network"}


def test_few_images_are_refused_or_drawn_to_their_modality(
    reid, fails, other_manifest: Path, camera_weights: Path, tmp_path: Path
) -> None:
    common = ("calibrate", "--data", other_manifest, "--weights", camera_weights)
    message = fails(*common, "--min-images", 7, "--out", tmp_path / "p")
    assert "at least 7 images" in message
    assert "person/b1 (6)" in message
    spreads = []
    for prior in (0, 8, 1e9):
        assert reid(*common, "--prior", prior, "--out", tmp_path / str(prior))[0] == 0
        profiles = Profiles.load(tmp_path / str(prior))
        layer = next(iter(profiles.mean))
        spreads.append(float(profiles.mean[layer].std(0).mean()))
    assert spreads[0] > spreads[1] > spreads[2]
    assert spreads[2] < 1e-5  # a prior that outweighs everything leaves the cameras no differences


def test_a_plain_network_can_be_calibrated(reid, other_manifest: Path, plain_weights: Path, tmp_path: Path) -> None:
    common = ("--data", other_manifest, "--weights", plain_weights)
    assert reid("calibrate", *common, "--out", tmp_path / "p")[0] == 0
    for name, extra in (("plain", ()), ("calibrated", ("--profiles", tmp_path / "p"))):
        assert reid("embed", *common, *extra, "--split", "query", "--out", tmp_path / name)[0] == 0
    plain, calibrated = (load_embeddings(tmp_path / name) for name in ("plain", "calibrated"))
    assert plain.fingerprint != calibrated.fingerprint
    assert not np.allclose(plain.vectors, calibrated.vectors, atol=1e-2)


def test_erasing_a_person(reid, fails, manifest: Path, camera_weights: Path, tmp_path: Path) -> None:
    gallery = tmp_path / "gallery"
    reid("index", "build", "--data", manifest, "--weights", camera_weights, "--out", gallery)
    code, out, _ = reid("index", "erase", gallery, "a-person-0002")
    assert (code, "erased 6 rows" in out) == (0, True)
    assert 'no row of identity "a-person-0002"' in fails("index", "erase", gallery, "a-person-0002")
    picture = next((manifest.parent / "images" / "gallery" / "person").glob("a-person-0002_a1_*.jpg"))
    _, out, _ = reid("search", picture, "--camera", "a1", "--gallery", gallery, "--k", 100)
    assert len(out.splitlines()) == 18
    assert "a-person-0002\t" not in out
    assert not any(b"a-person-0002" in path.read_bytes() for path in gallery.iterdir())
    assert len(list(gallery.glob("data-*.network.safetensors"))) == 1


def test_a_failed_rebuild_keeps_the_old_gallery(
    reid, fails, manifest: Path, camera_weights: Path, plain_weights: Path, tmp_path: Path, monkeypatch
) -> None:
    """The disk fills while the network is written: index and network of the old gallery still belong together."""
    gallery = tmp_path / "gallery"
    reid("index", "build", "--data", manifest, "--weights", camera_weights, "--out", gallery)
    files = sorted(path.name for path in gallery.iterdir())

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("reid.norm.tensor_file.save_file", full)
        line = fails("index", "build", "--data", manifest, "--weights", plain_weights, "--out", gallery)
    assert "No space left on device" in line
    assert sorted(path.name for path in gallery.iterdir()) == files
    picture = next((manifest.parent / "images" / "query" / "person").glob("*_a1_*.jpg"))
    assert reid("search", picture, "--camera", "a1", "--gallery", gallery)[0] == 0


def test_training_goes_on_the_same_walk(reid, fails, manifest: Path, tmp_path: Path) -> None:
    """Train two epochs from the command line, evaluate what came out, damage it and make it again."""
    experiment = tmp_path / "small.toml"
    experiment.write_text(
        f'[data]\nmanifests = ["{manifest}"]\ncategories = ["person"]\nsize = [64, 32]\n[norm]\naxis = "camera"\n'
        "[train]\nepochs = 2\nidentities_per_batch = 3\nimages_per_identity = 6\nvisits = 1\nthreads = 1\n"
    )
    code, out, _ = reid("train", experiment, "--out", tmp_path / "run", "--set", "train.warmup_epochs=0.5")
    assert code == 0
    weights = Path(out.strip())
    assert weights.is_file()
    people = edited(manifest, tmp_path / "people.csv", lambda row: row if row["category"] == "person" else None)
    assert reid("evaluate", "--data", people, "--weights", weights)[0] == 0
    again = ("train", experiment, "--out", tmp_path / "run", "--set", "train.warmup_epochs=0.5")
    trained = load_checkpoint(weights).fingerprint
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "delete it, and the same command makes it again from the last epoch, without training" in fails(*again)
    weights.unlink()
    code, out, _ = reid(*again)
    assert (code, load_checkpoint(Path(out.strip())).fingerprint) == (0, trained)


def test_bad_data(fails, manifest: Path, camera_weights: Path, tmp_path: Path) -> None:
    def evaluate(data: Path) -> str:
        return fails("evaluate", "--data", data, "--weights", camera_weights)

    def broken(name: str, content: bytes | None) -> Path:
        folder = tmp_path / name
        shutil.copytree(manifest.parent, folder)
        picture = min((folder / "images" / "gallery" / "person").glob("*.jpg"))
        picture.unlink() if content is None else picture.write_bytes(content)
        return folder / "manifest.csv"

    assert "no such manifest" in evaluate(tmp_path / "nothing.csv")
    assert "a-person-0000_a1_1.jpg" in evaluate(broken("missing", None))
    assert "_1.jpg" in evaluate(broken("corrupt", b"not a picture"))
    lacking = edited(manifest, tmp_path / "lacking.csv", lambda row: {k: v for k, v in row.items() if k != "identity"})
    assert "identity" in evaluate(lacking)
    no_query = edited(manifest, tmp_path / "q.csv", lambda row: None if row["split"] == "query" else row)
    assert 'no row of split "query"' in evaluate(no_query)
    unknown_domain = edited(manifest, tmp_path / "camera.csv", lambda row: {**row, "camera": row["camera"] + "x"})
    assert '"person/a1x" is unknown' in evaluate(unknown_domain)
    modality = edited(manifest, tmp_path / "modality.csv", lambda row: {**row, "modality": "thermic"})
    assert "thermic" in evaluate(modality)
    lonely = edited(
        manifest, tmp_path / "lonely.csv", lambda r: {**r, "identity": r["identity"] + r["camera"] + r["split"]}
    )
    assert "none of the 16 queries has a right answer" in evaluate(lonely)


def test_training_on_an_identity_with_one_image(fails, manifest: Path, tmp_path: Path) -> None:
    seen: set[str] = set()

    def change(row: dict[str, str]) -> dict[str, str] | None:
        first = row["identity"] not in seen
        seen.add(row["identity"])
        return row if row["split"] == "train" and (first or row["identity"] != "a-train-person-0001") else None

    rows = edited(manifest, tmp_path / "one.csv", change)
    (tmp_path / "e.toml").write_text(f'[data]\nmanifests = ["{rows}"]\n[train]\nidentities_per_batch = 2\n')
    assert "a-train-person-0001" in fails("train", tmp_path / "e.toml", "--out", tmp_path / "run")


def test_bad_weights(fails, manifest: Path, camera_weights: Path, plain_weights: Path, tmp_path: Path) -> None:
    data = ("--data", manifest)
    assert "missing.pth" in fails("evaluate", *data, "--weights", tmp_path / "missing.pth")
    (tmp_path / "text.pth").write_text("hello")
    assert "text.pth" in fails("evaluate", *data, "--weights", tmp_path / "text.pth", "--backbone", "osnet_x0_25")
    torch.save({"conv1.conv.weight": torch.zeros(3, 3)}, tmp_path / "small.pth")
    wrong = fails("evaluate", *data, "--weights", tmp_path / "small.pth", "--backbone", "osnet_x0_25")
    assert "conv1.conv.weight" in wrong or "missing" in wrong
    assert "resnet18" in fails("evaluate", *data, "--weights", camera_weights, "--backbone", "resnet18")
    assert "osnet_x0_25" in fails("evaluate", *data, "--weights", tmp_path / "small.pth", "--backbone", "osnet_x025")
    assert "--unseen-camera" in fails("evaluate", *data, "--weights", camera_weights, "--unseen-camera", "guess")
    assert "camra" in fails("calibrate", *data, "--weights", plain_weights, "--by", "camra", "--out", tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_bad_galleries(fails, manifest: Path, tmp_path: Path) -> None:
    picture = next((manifest.parent / "images" / "query" / "person").glob("*.jpg"))
    assert "no gallery there" in fails("search", picture, "--gallery", tmp_path / "none")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    assert str(tmp_path / "other") in fails("search", picture, "--gallery", tmp_path / "other")
    assert "not a street" in fails("synth", tmp_path / "other")
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine"


def test_outputs_never_replace_something_else(fails, manifest: Path, plain_weights: Path, tmp_path: Path) -> None:
    """A mistyped --out must not cost the user a manifest, weights or a device."""
    copy = edited(manifest, tmp_path / "manifest.csv", lambda row: row)
    before = copy.read_bytes()
    common = ("--data", copy, "--weights", plain_weights)
    for command, option in (("calibrate", "--out"), ("embed", "--out"), ("evaluate", "--json")):
        for target in (copy, plain_weights):
            weights = target.read_bytes()
            assert "exists and is something else" in fails(command, *common, option, target)
            assert target.read_bytes() == weights
        assert "folder or device" in fails(command, *common, option, tmp_path)
        assert "folder or device" in fails(command, *common, option, "/dev/null")
    assert copy.read_bytes() == before


def test_an_unwritable_output_is_one_line(fails, manifest: Path, plain_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    common = ("--data", manifest, "--weights", plain_weights)
    for command, option in (("calibrate", "--out"), ("evaluate", "--json"), ("embed", "--out")):
        assert str(tmp_path / "file") in fails(command, *common, option, tmp_path / "file" / "output")
    assert "Not a directory" in fails("synth", tmp_path / "file" / "street", "--identities", "1", "--workers", "1")


def test_a_place_where_no_file_can_be_is_told_before_the_work(fails, manifest: Path, plain_weights: Path) -> None:
    common = ("--data", manifest, "--weights", plain_weights)
    for command in (("embed",), ("calibrate",), ("cameras", "report")):
        found = fails(*command, *common, "--out", "/proc/nowhere")
        assert found.startswith("error: /proc/nowhere: no file can be written there (")
        assert found.endswith("choose another place")
    assert "--plot curve.png: expected a name that ends in .svg" in fails(
        "cameras", "report", *common, "--plot", "curve.png"
    )


def test_sizes_have_bounds(fails, manifest: Path, plain_weights: Path) -> None:
    for size in ((8, 8), (99999999, 64)):
        assert "32 to 2048 pixels" in fails("evaluate", "--data", manifest, "--weights", plain_weights, "--size", *size)


def test_usage_errors_exit_with_2_and_one_line(reid) -> None:
    for arguments, words in (
        (["nonsense"], "No such command 'nonsense'; see reid --help"),
        (["index", "search"], "No such command 'search'; see reid index --help"),
        (["search"], "Missing argument 'image'; see reid search --help"),
        (["evaluate", "--size", "big", "3"], "'--size': Input should be a valid integer"),
        (["evaluate", "--size", "3"], "Option '--size' requires 2 arguments; see --help"),
        (["evaluate", "--nonsense"], "No such option: --nonsense"),
        (["synth", "x", "--crops", "1"], "'--crops'"),
        (["init", "x", "--pattern", "*", "--protocol", "regdb"], "leave --pattern out"),
    ):
        code, out, err = reid(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert words in err
    code, out, err = reid("index")
    assert (code, err) == (2, "")
    assert "Usage: reid index" in out


@pytest.mark.parametrize(
    "command",
    [
        "",
        "synth",
        "train",
        "calibrate",
        "embed",
        "index build",
        "index erase",
        "index restore",
        "search",
        "evaluate",
        "validate",
    ],
)
def test_every_command_explains_itself(reid, command: str) -> None:
    code, out, _ = reid(*command.split(), "--help")
    assert code == 0
    assert not command or "Example: reid " + command.split()[0] in " ".join(out.split())


def test_the_module_and_the_scripts_are_the_command(tmp_path: Path) -> None:
    for program in (
        ["-m", "reid.cli", "evaluate"],
        ["scripts/evaluate.py"],
        ["scripts/build_index.py"],
        ["scripts/train.py"],
    ):
        shown = subprocess.run(
            [sys.executable, *program, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert shown.returncode == 0, shown.stderr
        assert "Usage: reid" in shown.stdout
    failed = subprocess.run(
        [sys.executable, ROOT / "scripts/evaluate.py", "--weights", "nowhere.pth"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: nowhere.pth")
