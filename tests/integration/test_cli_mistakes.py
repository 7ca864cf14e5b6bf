"""Wrong data, weights, galleries and outputs: each is one line of error, and nothing is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from helpers.manifest_rows import write_changed


def test_bad_data(fails, manifest: Path, camera_weights: Path, tmp_path: Path) -> None:
    def evaluate(data: Path) -> str:
        return fails("evaluate", "--data", data, "--weights", camera_weights)

    def broken(name: str, content: bytes | None) -> Path:
        folder = tmp_path / name
        shutil.copytree(manifest.parent, folder)
        image = min((folder / "images" / "gallery" / "person").glob("*.jpg"))
        image.unlink() if content is None else image.write_bytes(content)
        return folder / "manifest.csv"

    assert "nothing.csv" in evaluate(tmp_path / "nothing.csv")
    assert "a-person-0000_a1_1.jpg" in evaluate(broken("missing", None))
    assert "_1.jpg" in evaluate(broken("corrupt", b"not an image"))
    lacking = write_changed(
        manifest, tmp_path / "lacking.csv", lambda row: {k: v for k, v in row.items() if k != "identity"}
    )
    assert "identity" in evaluate(lacking)
    no_query = write_changed(manifest, tmp_path / "q.csv", lambda row: None if row["split"] == "query" else row)
    assert '"query"' in evaluate(no_query)
    unknown_domain = write_changed(
        manifest, tmp_path / "camera.csv", lambda row: {**row, "camera": row["camera"] + "x"}
    )
    assert '"person/a1x"' in evaluate(unknown_domain)
    modality = write_changed(manifest, tmp_path / "modality.csv", lambda row: {**row, "modality": "thermic"})
    assert "thermic" in evaluate(modality)
    unmatched = write_changed(
        manifest, tmp_path / "unmatched.csv", lambda r: {**r, "identity": r["identity"] + r["camera"] + r["split"]}
    )
    assert "none of the 16 queries" in evaluate(unmatched)


def test_training_on_an_identity_with_one_image(fails, manifest: Path, tmp_path: Path) -> None:
    listed: set[str] = set()

    def change(row: dict[str, str]) -> dict[str, str] | None:
        first = row["identity"] not in listed
        listed.add(row["identity"])
        return row if row["split"] == "train" and (first or row["identity"] != "a-train-person-0001") else None

    rows = write_changed(manifest, tmp_path / "one.csv", change)
    (tmp_path / "e.toml").write_text(
        f'[data]\nmanifests = ["{rows}"]\nsingletons = "error"\n[train]\nidentities_per_batch = 2\n'
    )
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
    image = next((manifest.parent / "images" / "query" / "person").glob("*.jpg"))
    assert str(tmp_path / "none") in fails("search", image, "--gallery", tmp_path / "none")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    assert str(tmp_path / "other") in fails("search", image, "--gallery", tmp_path / "other")
    assert str(tmp_path / "other") in fails("synth", tmp_path / "other")
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine"


def test_outputs_never_replace_something_else(fails, manifest: Path, plain_weights: Path, tmp_path: Path) -> None:
    """A mistyped --out must not cost the user a manifest, weights or a device."""
    copy = write_changed(manifest, tmp_path / "manifest.csv", lambda row: row)
    before = copy.read_bytes()
    common = ("--data", copy, "--weights", plain_weights)
    for command, option in (("calibrate", "--out"), ("embed", "--out"), ("evaluate", "--json")):
        for target in (copy, plain_weights):
            weights = target.read_bytes()
            assert str(target) in fails(command, *common, option, target)
            assert target.read_bytes() == weights
        assert str(tmp_path) in fails(command, *common, option, tmp_path)
        assert "/dev/null" in fails(command, *common, option, "/dev/null")
    assert copy.read_bytes() == before


def test_an_unwritable_output_is_one_line(fails, manifest: Path, plain_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    common = ("--data", manifest, "--weights", plain_weights)
    for command, option in (("calibrate", "--out"), ("evaluate", "--json"), ("embed", "--out")):
        assert str(tmp_path / "file") in fails(command, *common, option, tmp_path / "file" / "output")
    assert str(tmp_path / "file") in fails("synth", tmp_path / "file" / "street", "--identities", "1", "--workers", "1")


def test_a_folder_that_cannot_be_written_is_named_before_the_work(fails, manifest: Path, plain_weights: Path) -> None:
    common = ("--data", manifest, "--weights", plain_weights)
    for command in (("embed",), ("calibrate",), ("cameras", "report")):
        found = fails(*command, *common, "--out", "/proc/nowhere")
        assert found.startswith("error: /proc/nowhere: ")
    assert "curve.png" in fails("cameras", "report", *common, "--plot", "curve.png")


def test_sizes_have_bounds(fails, manifest: Path, plain_weights: Path) -> None:
    for size in ((8, 8), (99999999, 64)):
        assert "32 to 2048 pixels" in fails("evaluate", "--data", manifest, "--weights", plain_weights, "--size", *size)
