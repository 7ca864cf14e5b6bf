"""``reid calibrate`` and ``--unseen-camera``: cameras that the weights do not know get statistics."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from reid.data.manifest import read_manifest
from reid.models.checkpoint import load_checkpoint
from reid.norm import Profiles
from reid.records import Split
from reid.retrieval.embed import embed, load_embeddings
from reid.retrieval.gallery import Gallery
from reid.retrieval.query_file import load_queries, save_queries


def test_a_new_site_is_calibrated(reid, fails, other_manifest: Path, camera_weights: Path, tmp_path: Path) -> None:
    common = ("--data", other_manifest, "--weights", camera_weights)
    message = fails("evaluate", *common)
    assert '"person/b1"' in message
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
    image = next((other_manifest.parent / "images" / "query" / "person").glob("*_b2_*.jpg"))
    code, out, _ = reid("search", image, "--camera", "b2", "--gallery", tmp_path / "gallery")
    assert code == 0
    assert len(out.splitlines()) == 10
    assert load_checkpoint(camera_weights).fingerprint in fails(
        "search", image, "--camera", "a1", "--gallery", tmp_path / "gallery", "--weights", camera_weights
    )
    message = fails("search", image, "--camera", "mars", "--gallery", tmp_path / "gallery")
    for word in ('"person/mars"', "known: person/b1", "reid calibrate", "--unseen-camera"):
        assert word in message
    message = fails("search", image, "--gallery", tmp_path / "gallery")
    assert "with --camera; known: " in message
    assert "nearest or mixture" in message
    for camera in ((), ("--camera", "b2")):  # no camera helps where the network does not know the category
        message = fails("search", image, "--category", "boat", *camera, "--gallery", tmp_path / "gallery")
        assert "with --camera" not in message
        for word in ("boat", "--unseen-camera", "nearest or mixture", "--weights"):
            assert word in message
    message = fails(
        "search", image, "--category", "boat", "--gallery", tmp_path / "gallery", "--weights", camera_weights
    )
    for word in ("boat", str(camera_weights), "pass --unseen-camera nearest or mixture"):
        assert word in message


def test_a_policy_that_would_change_nothing_is_refused(fails, manifest: Path, plain_weights: Path, tmp_path: Path):
    common = ("--data", manifest, "--weights", plain_weights)
    for policy in ("calibrate", "prior", "nearest", "mixture"):
        message = fails("evaluate", *common, "--unseen-camera", policy)
        assert f"--unseen-camera {policy}" in message
        assert str(plain_weights) in message
    assert str(plain_weights) in fails(
        "embed", *common, "--unseen-camera", "prior", "--out", tmp_path / "e.safetensors"
    )
    nearest = ("--unseen-camera", "nearest", "--out", tmp_path / "gallery")
    assert str(plain_weights) in fails("index", "build", *common, *nearest)
    assert not list(tmp_path.iterdir())


def test_statistics_of_few_crops_are_shrunk_toward_the_network(
    reid, fails, other_manifest: Path, plain_weights: Path, tmp_path: Path
) -> None:
    """A prior of as many images as were measured gives the mean of both; results name the prior."""
    common = ("--data", other_manifest, "--weights", plain_weights)
    paths = [tmp_path / f"{name}.safetensors" for name in ("own", "shrunk")]
    assert reid("calibrate", *common, "--only", "b1", "--out", paths[0])[0] == 0
    images = Profiles.load(paths[0]).images[0]
    prior = ("--prior", images, "--prior-from", "network")
    assert reid("calibrate", *common, "--only", "b1", *prior, "--out", paths[1])[0] == 0
    own, shrunk = map(Profiles.load, paths)
    for name, module in load_checkpoint(plain_weights).network.named_modules():
        if name in own.mean:
            for found, before, table in (
                (shrunk.mean, module.running_mean, own.mean), (shrunk.var, module.running_var, own.var)
            ):  # fmt: skip
                torch.testing.assert_close(found[name][0], (table[name][0] + before) / 2, rtol=1e-4, atol=1e-6)
    assert shrunk.prior == f"{images} of the network"
    assert "without --prior" in fails("calibrate", *common, *prior[2:], "--out", paths[0])
    assert "known: cameras, network" in fails("calibrate", *common, *prior[:2], "--prior-from", "me", "--out", paths[0])
    assert reid("calibrate", *common, *prior, "--out", paths[1])[0] == 0
    assert reid("evaluate", *common, "--profiles", paths[1], "--json", tmp_path / "scores.json")[0] == 0
    results = json.loads((tmp_path / "scores.json").read_text())["results"]
    assert {entry["made"]["prior"] for entry in results} == {f"{images} of the network"}


def test_statistics_of_few_crops_are_refused_or_shrunk_toward_their_modality(
    reid, fails, other_manifest: Path, camera_weights: Path, tmp_path: Path
) -> None:
    common = ("calibrate", "--data", other_manifest, "--weights", camera_weights)
    message = fails(*common, "--min-images", 7, "--out", tmp_path / "p")
    assert "7" in message
    assert "person/b1 (6)" in message
    spreads = []
    for prior in (0, 8, 1e9):
        assert reid(*common, "--prior", prior, "--out", tmp_path / str(prior))[0] == 0
        profiles = Profiles.load(tmp_path / str(prior))
        layer = next(iter(profiles.mean))
        spreads.append(float(profiles.mean[layer].std(0).mean()))
    assert spreads[0] > spreads[1] > spreads[2]
    assert spreads[2] < 1e-5  # a prior that outweighs all images leaves no differences between cameras


def test_a_plain_network_can_be_calibrated(reid, other_manifest: Path, plain_weights: Path, tmp_path: Path) -> None:
    common = ("--data", other_manifest, "--weights", plain_weights)
    assert reid("calibrate", *common, "--out", tmp_path / "p")[0] == 0
    for name, extra in (("plain", ()), ("calibrated", ("--profiles", tmp_path / "p"))):
        assert reid("embed", *common, *extra, "--split", "query", "--out", tmp_path / name)[0] == 0
    plain, calibrated = (load_embeddings(tmp_path / name) for name in ("plain", "calibrated"))
    assert plain.fingerprint != calibrated.fingerprint
    assert not np.allclose(plain.vectors, calibrated.vectors, atol=1e-2)


def test_own_cameras_are_offered_without_those_of_the_training(
    reid, fails, other_manifest: Path, camera_weights: Path, tmp_path: Path
) -> None:
    """The network was trained on a1 to a6; a gallery of b1 and others offers these where a camera is unknown."""
    profiles, folder = tmp_path / "p.safetensors", tmp_path / "gallery"
    common = ("--data", other_manifest, "--weights", camera_weights)
    assert reid("calibrate", *common, "--only", "b1", "--out", profiles)[0] == 1  # a person's and a vehicle's
    assert reid("calibrate", *common, "--out", profiles)[0] == 0
    assert reid("index", "build", *common, "--profiles", profiles, "--out", folder)[0] == 0
    image = next(other_manifest.parent.rglob("*person*.jpg"))
    (tmp_path / "new.csv").write_text(
        f"path,identity,camera,modality,category,split\n{image},,mars,visible,person,gallery\n"
    )
    for words in (
        ("search", image, "--gallery", folder),
        ("search", image, "--gallery", folder, "--camera", "mars"),
        ("index", "search", folder, image, "--camera", "mars"),
        ("identify", "match", image, "--gallery", folder, "--camera", "mars"),
        ("index", "add", folder, "--data", tmp_path / "new.csv"),
    ):
        message = fails(*words)
        assert "b1" in message
        assert "a1" not in message


def test_crops_of_a_new_camera_leave_the_queries_of_the_gallery(
    reid, tiny_street: Path, other_manifest: Path, camera_weights: Path, tmp_path: Path
) -> None:
    """The gallery gets another network; the queries that it keeps get the fingerprint of this one."""
    folder, profiles = tmp_path / "gallery", tmp_path / "p.safetensors"
    own = ("--data", tiny_street / "street-a" / "manifest.csv", "--weights", camera_weights)
    assert reid("index", "build", *own, "--out", folder)[0] == 0
    checkpoint = load_checkpoint(camera_weights)
    samples = read_manifest(tiny_street / "street-a" / "manifest.csv")
    kept = embed(checkpoint, [sample for sample in samples if sample.split is Split.QUERY][:4])
    save_queries(folder, kept)
    common = ("--data", other_manifest, "--weights", camera_weights)
    assert reid("calibrate", *common, "--out", profiles)[0] == 0
    add = ("index", "add", folder, "--data", other_manifest, "--profiles", profiles)
    assert reid(*add)[0] == 0
    now = load_queries(folder)
    assert now.samples == kept.samples
    assert now.fingerprint == Gallery.open(folder).fingerprint != kept.fingerprint
    np.testing.assert_array_equal(now.vectors, kept.vectors, "their cameras are embedded as before")
    save_queries(folder, kept)  # as where the command is stopped before it has written them
    assert reid(*add)[0] == 0
    again = load_queries(folder)
    assert again.fingerprint == now.fingerprint
    np.testing.assert_allclose(again.vectors, kept.vectors, atol=1e-5)
