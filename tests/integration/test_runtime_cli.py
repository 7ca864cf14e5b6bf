"""An ONNX file or an OpenVINO model takes the place of a weights file, from crops to scores.

The scores are those of the same network in plain torch.  A network that another program runs cannot be calibrated:
every command that would need this fails with one line, which names what works instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.tiny_models import INTEL, Tiny
from reid.data.images import read_image
from reid.data.manifest import read_manifest
from reid.evaluation import evaluate, report_json
from reid.norm import Profiles
from reid.records import Embeddings, Split
from reid.retrieval.embed import load_embeddings

pytest.importorskip("onnx", reason="pip install onnx, to make the models of these tests")
pytest.importorskip("onnxruntime", reason='pip install "reid-multidomain[onnx]"')
pytest.importorskip("openvino", reason='pip install "reid-multidomain[openvino]"')


@pytest.fixture
def manifest(tiny_street: Path) -> Path:
    return tiny_street / "street-b" / "manifest.csv"


@pytest.fixture(params=["model.onnx", "model.xml"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Tiny().write(tmp_path / request.param)


def embedded_in_torch(manifest: Path, network: Tiny) -> Embeddings:
    """Embed the rows of a manifest in torch, one by one, with channels in the order blue, green, red."""
    samples = [sample for sample in read_manifest(manifest) if sample.split is not Split.TRAIN]
    vectors = []
    for sample in samples:
        pixels = np.array(read_image(sample.path).resize((32, 64), 2))[:, :, ::-1].astype(np.float32)  # 2: bilinear
        vectors.append(network(torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]))
    return Embeddings(tuple(samples), torch.cat(vectors).numpy(), "by hand")


def scores(report: Mapping[str, Any]) -> list[float]:
    return [result["mAP"] for result in report["results"]]


def test_scores_are_those_of_the_network_embedded_in_torch(reid, model: Path, manifest: Path, tmp_path: Path) -> None:
    code, text, err = reid("evaluate", "--data", manifest, "--weights", model, "--json", tmp_path / "scores.json")
    assert code == 0, err
    assert "runtime O" in text  # ONNX Runtime or OpenVINO
    assert "float32" in text
    found = scores(json.loads((tmp_path / "scores.json").read_text()))
    assert len(found) > 2
    expected, other = (
        evaluate(embedded_in_torch(manifest, network), protocol="by hand") for network in (Tiny(), Tiny(1))
    )
    np.testing.assert_allclose(found, scores(report_json(expected)), atol=1e-9)
    assert not np.allclose(found, scores(report_json(other)), atol=1e-3)


def test_a_gallery_holds_the_model_and_notices_another(reid, model: Path, manifest: Path, tmp_path: Path) -> None:
    query = next(s.path for s in read_manifest(manifest) if s.split is Split.QUERY)
    code, _, err = reid("index", "build", "--data", manifest, "--weights", model, "--out", tmp_path / "gallery")
    assert code == 0, err
    asked = ("search", query, "--gallery", tmp_path / "gallery", "--json", "--k", 3)
    code, named, err = reid(*asked, "--weights", model)
    assert code == 0, err
    model.with_suffix(".toml").write_text(INTEL.replace("BGR", "RGB"))
    code, _, err = reid(*asked, "--weights", model)
    assert code == 1
    assert "embedded by" in err
    for file in tmp_path.glob("model.*"):
        file.unlink()
    code, unnamed, err = reid(*asked)
    assert code == 0, err
    assert json.loads(unnamed) == json.loads(named)


def test_embeddings_can_be_centered(reid, model: Path, manifest: Path, tmp_path: Path) -> None:
    out, centered = tmp_path / "embeddings.safetensors", tmp_path / "centered.safetensors"
    code, _, err = reid("embed", "--data", manifest, "--weights", model, "--out", out)
    assert code == 0, err
    code, _, err = reid("cameras", "center", out, "--out", centered)
    assert code == 0, err
    assert load_embeddings(centered).fingerprint != load_embeddings(out).fingerprint


def test_what_needs_statistics_is_refused(
    reid, model: Path, manifest: Path, plain_weights: Path, tmp_path: Path
) -> None:
    common, out = ("--data", manifest, "--weights", model), tmp_path / "cameras.safetensors"
    code, _, err = reid("calibrate", *common, "--normalize", "statistics", "--out", out)
    assert code == 1
    assert not out.exists()
    assert "BatchNorm" in err
    assert '"reid calibrate --normalize centering"' in err.strip().splitlines()[-1]
    code, _, err = reid("calibrate", "--data", manifest, "--weights", plain_weights, "--out", out)
    assert code == 0, err
    code, _, err = reid("evaluate", *common, "--profiles", out)
    assert code == 1
    assert "BatchNorm" in err
    code, _, err = reid("cameras", "watch", *common, "--reference", manifest)
    assert code == 1
    assert "statistics" in err
    code, text, err = reid("cameras", "report", *common, "--out", tmp_path / "recommended.safetensors", "--json")
    assert code == 0, err
    assert json.loads(text)["action"] == "center"
    recommended = Profiles.load(tmp_path / "recommended.safetensors")
    centered = [camera["camera"] for camera in json.loads(text)["cameras"] if camera["verdict"] == "center"]
    assert recommended.levels == tuple("centering" if name in centered else "none" for name in recommended.domains)


def test_profiles_center_the_embeddings_in_every_command(
    reid, fails, model: Path, manifest: Path, tmp_path: Path
) -> None:
    """The oracle is "reid cameras center" on embeddings of the model as it is."""
    common, profiles = ("--data", manifest, "--weights", model), tmp_path / "cameras.safetensors"
    plain, by_hand, by_profiles = (tmp_path / f"{name}.safetensors" for name in ("plain", "by-hand", "by-profiles"))
    code, text, err = reid("calibrate", *common, "--out", profiles)
    assert code == 0, err
    assert "centering" in text
    assert reid("embed", *common, "--out", plain)[0] == 0
    assert reid("cameras", "center", plain, "--out", by_hand)[0] == 0
    assert reid("embed", *common, "--profiles", profiles, "--out", by_profiles)[0] == 0
    one, other, before = (load_embeddings(path) for path in (by_hand, by_profiles, plain))
    np.testing.assert_allclose(one.vectors, other.vectors, atol=1e-5)
    assert not np.allclose(other.vectors, before.vectors, atol=1e-2)
    assert other.fingerprint != before.fingerprint
    code, text, err = reid("evaluate", *common, "--profiles", profiles, "--json", tmp_path / "centered.json")
    assert code == 0, err
    results = json.loads((tmp_path / "centered.json").read_text())["results"]
    assert {entry["made"]["centering"] for entry in results} == {"per camera"}
    assert {entry["fingerprint"] for entry in results} == {other.fingerprint}
    code, _, err = reid("index", "build", *common, "--profiles", profiles, "--out", tmp_path / "gallery")
    assert code == 0, err
    query = next(sample for sample in read_manifest(manifest) if sample.split is Split.QUERY)
    asked = ("search", query.path, "--gallery", tmp_path / "gallery", "--k", 3)
    code, text, err = reid(*asked, "--camera", query.camera)
    assert code == 0, err
    assert len(text.splitlines()) == 3
    assert "--camera" in fails(*asked)
    assert "embedded by" in fails(*asked, "--camera", query.camera, "--weights", model)
    assert reid(*asked, "--camera", query.camera, "--weights", model, "--profiles", profiles)[1] == text


def test_models_of_intel_are_listed_and_fetched_by_hand(reid, tmp_path: Path) -> None:
    name = "person-reidentification-retail-0288"
    code, text, _ = reid("weights", "list")
    assert code == 0
    assert any(line.startswith(f"{name}\topenvino\t") and "Apache-2.0" in line for line in text.splitlines())
    code, _, err = reid("weights", "get", name, "--out", tmp_path)
    assert code == 1
    assert f"to {tmp_path / name}.xml, with {name}.bin beside it" in err
    Tiny().write(tmp_path / f"{name}.xml", (1, 3, 256, 128), card=None)
    code, text, err = reid("weights", "get", name, "--out", tmp_path)
    assert code == 0, err
    assert f"use it with --weights {tmp_path / name}.xml --backbone openvino" in text


def test_a_model_of_a_known_name_needs_no_card(reid, manifest: Path, tmp_path: Path) -> None:
    path = Tiny().write(tmp_path / "person-reidentification-retail-0288.xml", (1, 3, 256, 128), card=None)
    command = ("embed", "--data", manifest, "--split", "query", "--out", tmp_path / "e.safetensors", "--weights")
    code, _, err = reid(*command, path)
    assert code == 0, err
    other = path.rename(tmp_path / "network.xml")
    path.with_suffix(".bin").rename(other.with_suffix(".bin"))
    code, _, err = reid(*command, other)
    assert code == 1
    assert str(other) in err
