"""``--normalize``: one choice for every command, written as profiles, read everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reid.models.checkpoint import load_checkpoint
from reid.norm import Profiles
from reid.retrieval.embed import load_embeddings


def test_asked_levels_are_the_same_at_once_and_by_file(
    reid, other_manifest: Path, plain_weights: Path, tmp_path: Path
) -> None:
    common, levels = ("--data", other_manifest, "--weights", plain_weights), "statistics+centering+csls"
    profiles = tmp_path / "p.safetensors"
    code, out, err = reid("calibrate", *common, "--normalize", levels, "--out", profiles)
    assert code == 0, err
    assert "b1\t8 images\tstatistics+centering" in out
    assert "asked for: statistics+centering" in out
    assert Profiles.load(profiles).score_norm == "csls"
    by_file = ("--profiles", profiles)
    at_once = ("--normalize", levels)
    results = []
    for name, how in (("file", by_file), ("once", at_once)):
        code, _, err = reid("evaluate", *common, *how, "--json", tmp_path / f"{name}.json")
        assert code == 0, err
        results.append(json.loads((tmp_path / f"{name}.json").read_text())["results"])
    assert results[0] == results[1]
    assert {entry["made"]["centering"] for entry in results[0]} == {"per camera"}
    assert [entry["score_norm"] for entry in results[0]][:2] == ["none", "csls"]  # what the profiles recommend
    code, _, err = reid("evaluate", *common, *by_file, "--score-norm", "none", "--json", tmp_path / "plain.json")
    assert code == 0, err
    plain = json.loads((tmp_path / "plain.json").read_text())["results"]
    assert {entry["score_norm"] for entry in plain} == {"none"}
    for name, how in (("gallery-file", by_file), ("gallery-once", at_once)):
        assert reid("index", "build", *common, *how, "--out", tmp_path / name)[0] == 0
        (network,) = (tmp_path / name).glob("data-*.network.safetensors")
        checkpoint = load_checkpoint(network)
        assert (checkpoint.fingerprint, checkpoint.score_norm) == (results[0][0]["fingerprint"], "csls")
    assert reid("embed", *common, *by_file, "--out", tmp_path / "e.safetensors")[0] == 0
    assert load_embeddings(tmp_path / "e.safetensors").fingerprint == results[0][0]["fingerprint"]


def test_the_report_says_what_is_chosen_and_why(
    reid, fails, other_manifest: Path, plain_weights: Path, tmp_path: Path
) -> None:
    common, page, out = ("--data", other_manifest, "--weights", plain_weights), tmp_path / "page.html", tmp_path / "p"
    command = ("cameras", "report", *common, "--normalize", "auto", "--html", page, "--out", out)
    code, text, err = reid(*command, "--json")
    assert code == 0, err
    found = json.loads(text)["normalization"]
    assert [camera["levels"] for camera in found["cameras"]] == list(Profiles.load(out).levels)
    assert "16 crops or more" in found["reason"]  # this street has fewer
    html = page.read_text(encoding="utf-8")
    assert "How the cameras are normalized" in html
    assert "What was measured" in html
    assert "<script" not in html
    page.write_text("something else")
    assert str(page) in fails(*command)


def test_crops_without_cameras_leave_the_network_as_it_is(
    reid, other_manifest: Path, plain_weights: Path, tmp_path: Path
) -> None:
    rows = other_manifest.read_text(encoding="utf-8").splitlines()
    column = rows[0].split(",").index("camera")
    changed = [rows[0], *(",".join("" if n == column else v for n, v in enumerate(row.split(","))) for row in rows[1:])]
    manifest = other_manifest.with_name("without-cameras.csv")
    manifest.write_text("\n".join(changed) + "\n", encoding="utf-8")
    common = ("--data", manifest, "--weights", plain_weights, "--out")
    code, _, err = reid("index", "build", *common, tmp_path / "auto", "--normalize", "auto")
    assert code == 0, err
    assert "stays as it is" in err
    (network,) = (tmp_path / "auto").glob("data-*.network.safetensors")
    assert load_checkpoint(network).fingerprint == load_checkpoint(plain_weights).fingerprint
    manifest.unlink()


@pytest.mark.parametrize(
    "arguments",
    [
        ("calibrate", "--normalize", "whitening", "--out", "p"),
        ("evaluate", "--normalize", "csls+snorm"),
        ("cameras", "report", "--normalize", "statistics+statistics"),
    ],
)
def test_an_unknown_level_lists_the_known_ones(fails, other_manifest: Path, arguments: tuple[str, ...]) -> None:
    message = fails(*arguments, "--data", other_manifest)
    assert "statistics, centering, csls, snorm" in message


def test_both_ways_of_saying_it_are_refused(fails, other_manifest: Path, tmp_path: Path) -> None:
    message = fails("evaluate", "--data", other_manifest, "--normalize", "auto", "--profiles", tmp_path / "p")
    assert "leave one out" in message
