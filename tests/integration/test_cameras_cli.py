"""The commands about cameras, and the options of calibrate for one camera and for tracks."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from reid.cli.cameras import LEAST_ALARMS
from reid.evaluation.analysis.drift import DRAWS
from reid.norm import Profiles
from reid.retrieval.embed import load_embeddings


@pytest.fixture
def manifest(tiny_street: Path) -> Path:
    return tiny_street / "street-b" / "manifest.csv"


@pytest.fixture
def common(manifest: Path, plain_weights: Path) -> tuple[object, ...]:
    return "--data", manifest, "--weights", plain_weights


def rows_of(manifest: Path, path: Path, keep: Callable[[dict[str, str]], bool]) -> Path:
    """Write some rows of a manifest as another manifest."""
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = [{**row, "path": str(manifest.parent / row["path"])} for row in csv.DictReader(file) if keep(row)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_report_for_people_and_for_machines(reid, common: tuple[object, ...], tmp_path: Path) -> None:
    out = tmp_path / "recommended.safetensors"
    code, text, err = reid("cameras", "report", *common, "--out", out)
    assert code == 0, err
    code, answer, _ = reid("cameras", "report", *common, "--json")
    assert code == 0
    found = json.loads(answer)
    assert [camera["camera"] for camera in found["cameras"]] == [f"b{n}" for n in range(1, 7)]
    for camera in found["cameras"]:
        assert f"{camera['camera']}: {camera['verdict']}: {camera['reason']}" in text
        assert camera["gain"]["low"] <= camera["gain"]["value"] <= camera["gain"]["high"]
    line = next(
        line for line in found["scores"] if (line["domain"], line["direction"]) == ("person", "visible->visible")
    )
    assert line["change"]["mAP"]["value"] == pytest.approx(line["calibrated"]["mAP"] - line["before"]["mAP"])
    assert all(len(row) <= 160 for row in text.splitlines())
    profiles = Profiles.load(out)
    calibrated = {c["camera"] for c in found["cameras"] if c["verdict"] == "calibrate"}
    assert {n for n, i in zip(profiles.domains, profiles.images, strict=True) if i > 1} == calibrated
    code, _, err = reid("evaluate", *common, "--profiles", out, "--json", tmp_path / "scores.json")
    assert code == 0, err


def test_a_report_tries_either_prior(reid, manifest: Path, plain_weights: Path, tmp_path: Path) -> None:
    rows = rows_of(manifest, tmp_path / "two.csv", lambda r: r["camera"] in ("b1", "b2") and r["category"] == "person")
    common = ("cameras", "report", "--data", rows, "--weights", plain_weights, "--json")
    shifts = []
    for prior in ((), ("--prior", 6), ("--prior", 6, "--prior-from", "network")):
        code, out, err = reid(*common, *prior)
        assert code == 0, err
        shifts.append(json.loads(out)["cameras"][0]["shift"])
    assert shifts[0] > 1.5 * shifts[2]  # as many crops as the prior counts: half way to the network
    assert shifts[2] < shifts[1]  # towards the other camera is not towards the network
    for wrong, message in ((("--prior-from", "network"), "without --prior"),
                           (("--prior-from", "networks"), 'did you mean "network"')):  # fmt: skip
        code, _, err = reid(*common, *wrong)
        assert code == 1
        assert message in err


def test_a_curve(reid, manifest: Path, plain_weights: Path, tmp_path: Path) -> None:
    rows = rows_of(manifest, tmp_path / "two.csv", lambda r: r["camera"] in ("b1", "b2") and r["category"] == "person")
    plot = tmp_path / "curve.svg"
    code, out, err = reid("cameras", "report", "--data", rows, "--weights", plain_weights, "--plot", plot, "--json")
    assert code == 0, err
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")
    drawing = tmp_path / "drawing.svg"
    drawing.write_text("<svg/>")
    for path, message in ((rows, "expected a name that ends in .svg"), (drawing, "would be lost")):
        code, _, err = reid("cameras", "report", "--data", rows, "--weights", plain_weights, "--plot", path)
        assert code == 1
        assert message in err
    assert drawing.read_text() == "<svg/>"
    curve = json.loads(out)["curve"]
    assert [(point["crops"], point["prior"]) for point in curve] == [(0, 0), (6, 0), (6, 8), (6, 32), (6, 128)]
    assert all(0 <= point[key] <= 1 for point in curve for key in ("mAP", "rank1"))


def test_cameras_are_added_and_replaced(reid, common: tuple[object, ...], tmp_path: Path) -> None:
    two, one, out = (tmp_path / f"{name}.safetensors" for name in ("two", "one", "out"))
    assert reid("calibrate", *common, "--only", "b1", "--only", "b2", "--out", two)[0] == 0
    assert reid("calibrate", *common, "--only", "b2", "--split", "gallery", "--out", one)[0] == 0
    assert Profiles.load(two).domains == ("b1", "b2")
    old, new = Profiles.load(two).images[1], Profiles.load(one).images[0]
    _, text, _ = reid("cameras", "merge", two, one, "--out", out)
    assert f"b2\t{old + new} images" in text
    _, text, _ = reid("cameras", "merge", two, one, "--replace", "--out", two)
    assert f"b2\t{new} images" in text
    assert f"b1\t{old} images" in text
    code, _, err = reid("cameras", "merge", two, "--out", out)
    assert (code, err.splitlines()[-1]) == (1, "error: cameras merge: name two profiles files or more")
    code, _, err = reid("calibrate", *common, "--only", "b9", "--out", out)
    assert code == 1
    assert "known: b1, b2, b3, b4, b5, b6" in err


def test_one_crop_of_a_track(reid, manifest: Path, common: tuple[object, ...], tmp_path: Path) -> None:
    out = tmp_path / "apart.safetensors"
    whole, apart = (
        sum(int(line.split("\t")[1].split()[0]) for line in text.splitlines())
        for _, text, _ in (
            reid("calibrate", *common, "--out", out),
            reid("calibrate", *common, "--min-gap", 5, "--out", out),
        )
    )
    assert apart == whole / 2  # two crops a second apart of every passing
    code, _, err = reid("calibrate", *common, "--sample-by", "track", "--out", out)
    assert code == 1
    assert "no track" in err
    code, _, err = reid("calibrate", *common, "--sample-by", "face", "--out", out)
    assert code == 1
    assert "known: track" in err
    lines = manifest.read_text(encoding="utf-8").splitlines()
    rows = [f"{manifest.parent}/{line},{Path(line.split(',')[0]).name[:-6]}" for line in lines[1:]]  # b_..._b1_0.jpg
    tracks = tmp_path / "tracks.csv"
    tracks.write_text("\n".join([f"{lines[0]},track", *rows]) + "\n", encoding="utf-8")
    code, _, err = reid("calibrate", "--data", tracks, *common[2:], "--sample-by", "track", "--out", out)
    assert code == 0, err
    passings = {line.rsplit(",", 1)[1] for line in rows if ",train," in line}
    assert sum(Profiles.load(out).images) == len(passings)


def test_watching(reid, manifest: Path, plain_weights: Path, tmp_path: Path) -> None:
    """The same crops are no drift; those of an infrared camera under this one's name are; few cannot be judged."""

    def part(name: str, camera: str, count: int = 100) -> Path:
        path = rows_of(manifest, tmp_path / f"{name}.csv", lambda row: row["camera"] == camera)
        lines = path.read_text(encoding="utf-8").replace(f",{camera},", ",b1,").splitlines()[: count + 1]
        lines = [line.replace(",train,", ",gallery,").replace(",query,", ",gallery,") for line in lines]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    reference, profiles = part("reference", "b1"), tmp_path / "profiles.safetensors"
    weights = ("--weights", plain_weights)
    assert reid("calibrate", "--data", reference, *weights, "--out", profiles)[0] == 0
    options = ("--reference", reference, *weights, "--profiles", profiles)
    code, out, err = reid("cameras", "watch", "--data", reference, *options)
    assert code == 0, err
    assert out.startswith("b1\tas before\tdrift 0.000\t")
    code, out, _ = reid("cameras", "watch", "--data", part("night", "b5"), *options, "--json")
    assert code == 3
    (found,) = json.loads(out)
    assert (found["camera"], found["crops"], found["alarm"]) == ("b1", 20, True)
    assert found["drift"] > found["threshold"] > 0
    code, _, err = reid("cameras", "watch", "--data", part("few", "b1", 6), *options)
    assert code == 1
    assert "expected at least 8 new crops a camera, got fewer of b1 (6)" in err
    code, _, err = reid("cameras", "watch", "--data", reference, *options[2:], "--reference", part("short", "b1", 12))
    assert code == 1
    assert "expected at least 16 reference crops" in err
    twice = tmp_path / "twice.csv"  # each picture as a query and as an answer: one crop
    lines = (tmp_path / "night.csv").read_text(encoding="utf-8").splitlines()
    twice.write_text("\n".join([*lines, *(line.replace(",gallery,", ",query,") for line in lines[1:])]) + "\n")
    code, out, _ = reid("cameras", "watch", "--data", twice, *options, "--json")
    assert (code, json.loads(out)) == (3, [found])


@pytest.mark.parametrize("rate", [0, 0.0009, 0.6, -1, "nan", "inf", "often"])
def test_a_rate_that_cannot_be_is_told_before_the_work(reid, tmp_path: Path, rate: object) -> None:
    missing = ("--data", tmp_path / "no.csv", "--reference", tmp_path / "no.csv")
    code, out, err = reid("cameras", "watch", *missing, "--false-alarms", rate)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--false-alarms" in err


def test_the_least_rate_is_what_the_resamplings_can_estimate() -> None:
    assert pytest.approx(1 / (DRAWS + 1)) == LEAST_ALARMS


@pytest.mark.parametrize(
    "command",
    [
        ("cameras", "report", "--prior", "inf"),
        ("calibrate", "--out", "p", "--prior", "inf"),
        ("calibrate", "--out", "p", "--min-gap", "inf"),
        ("calibrate", "--out", "p", "--min-gap", "nan"),
    ],
)
def test_a_number_that_is_not_finite_is_an_error_before_the_work(reid, command: tuple[str, ...]) -> None:
    code, out, err = reid(*command, "--data", "nowhere.csv")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"Invalid value for '{command[-2]}'" in err


def test_a_missing_input_is_one_line(reid, common: tuple[object, ...], tmp_path: Path) -> None:
    code, _, err = reid("cameras", "watch", "--reference", common[1], *common)
    assert code == 1
    assert err.splitlines()[-1].endswith('pass --profiles of "reid calibrate"')
    code, _, err = reid("cameras", "watch", "--reference", common[1])
    assert code == 1
    assert "name the new crops with --data" in err


def test_centering_a_file(reid, common: tuple[object, ...], tmp_path: Path) -> None:
    given, out = tmp_path / "embeddings.safetensors", tmp_path / "centered.safetensors"
    assert reid("embed", *common, "--out", given)[0] == 0
    code, text, err = reid("cameras", "center", given, "--out", out)
    assert code == 0, err
    before, after = load_embeddings(given), load_embeddings(out)
    assert after.samples == before.samples
    assert after.fingerprint in text
    assert after.fingerprint != before.fingerprint
    code, _, err = reid("cameras", "center", given, "--out", given)
    assert code == 1
    assert "would be lost" in err


@pytest.mark.parametrize("policy", ["nearest", "mixture"])
def test_unknown_cameras_by_policy(reid, manifest: Path, camera_weights: Path, tmp_path: Path, policy: str) -> None:
    """The network of a gallery of unknown cameras keeps the policy for a query from yet another camera."""
    common = ("--data", manifest, "--weights", camera_weights, "--unseen-camera", policy)
    code, _, err = reid("index", "build", *common, "--out", tmp_path / "gallery")
    assert code == 0, err
    image = next((manifest.parent / "images" / "query" / "person").glob("*_b2_*.jpg"))
    ask = ("search", image, "--camera", "never-seen", "--gallery", tmp_path / "gallery")
    code, out, err = reid(*ask)
    assert code == 0, err
    assert len(out.splitlines()) == 10
    assert reid(*ask, "--weights", camera_weights, "--unseen-camera", policy)[1] == out
    other = {"nearest": "mixture", "mixture": "nearest"}[policy]
    assert reid(*ask, "--weights", camera_weights, "--unseen-camera", other)[0] == 1
    assert "what it was built with" in reid(*ask, "--unseen-camera", policy)[2]
    assert reid("evaluate", *common, "--json", tmp_path / "scores.json")[0] == 0
    results = json.loads((tmp_path / "scores.json").read_text())["results"]
    assert all(entry["made"]["unseen cameras"] == policy for entry in results)


def test_a_probe_of_every_stage(reid, manifest: Path, plain_weights: Path) -> None:
    code, answer, err = reid("cameras", "probe", "--data", manifest, "--weights", plain_weights, "--json")
    assert code == 0, err
    found = json.loads(answer)
    assert {one["group"] for one in found} == {"person visible", "person infrared"}
    assert [one["stage"] for one in found if one["group"] == "person visible"][-1] == "embedding"
    for one in found:
        assert one["camera_chance"] == pytest.approx(0.25 if "visible" in one["group"] else 0.5)
        assert 0 <= min(one["camera"], one["identity"]) <= max(one["camera"], one["identity"]) <= 1
    code, text, _ = reid(
        "cameras", "probe", "--data", manifest, "--weights", plain_weights, "--normalize", "statistics"
    )
    assert code == 0
    assert text.count("person visible") == text.count("person infrared") > 3
    code, text, _ = reid("cameras", "probe", "--data", manifest, "--weights", plain_weights, "--norms")
    assert code == 0
    assert text.count(" before\t") == text.count(" after\t") > 10


def test_a_probe_of_one_camera_is_refused(reid, manifest: Path, plain_weights: Path, tmp_path: Path) -> None:
    alone = rows_of(manifest, tmp_path / "alone.csv", lambda row: row["camera"] == "b1")
    code, out, err = reid("cameras", "probe", "--data", alone, "--weights", plain_weights)
    assert (code, out) == (1, "")
    assert "2 cameras" in err.splitlines()[-1]
