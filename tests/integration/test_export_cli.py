"""``reid export``: the file for another program gives the embeddings and the scores of the network it was written from.

The tests refuse the statistics of another camera or the mean of all, a model card with other colours, and a file that
takes batches of one size only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reid.cli import main
from reid.data.transforms import EvaluationTransform
from reid.models.checkpoint import load_checkpoint, save_checkpoint
from reid.models.embedder import Embedder, NetworkSpec
from reid.models.export import export
from reid.norm import DomainBatchNorm, Profiles, camera_batchnorm, convert_norm, extract

for needed in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(needed, reason='pip install "reid-multidomain[onnx]"')
pytest.importorskip("openvino", reason='pip install "reid-multidomain[openvino]"')

CAMERAS = ("b1", "b2", "b3")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with statistics of its own for each of three cameras."""
    torch.manual_seed(0)
    spec = NetworkSpec("resnet18_x0_25", "gem", "bnneck")
    network = convert_norm(Embedder(spec), camera_batchnorm(CAMERAS)).eval()
    for layer in network.modules():
        if isinstance(layer, DomainBatchNorm):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
    path = tmp_path_factory.mktemp("weights") / "three.safetensors"
    save_checkpoint(path, network, spec, EvaluationTransform(64, 32, interpolation="bicubic"), ("camera",), CAMERAS, {})
    return path


@pytest.fixture(scope="module")
def exported(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export camera b2 to both formats."""
    folder = tmp_path_factory.mktemp("exported")
    for name in ("b2.onnx", "b2.xml"):
        with pytest.raises(SystemExit) as caught:
            main(["export", "--weights", str(weights), "--camera", "b2", "--out", str(folder / name)])
        assert not caught.value.code
    return folder


def test_the_center_of_the_camera_is_in_the_file(weights: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(weights)
    dimension = checkpoint.embed(torch.zeros(1, 3, 64, 32), 0).shape[1]
    centers = 0.1 * torch.randn(3, dimension, generator=torch.Generator().manual_seed(0))
    profiles = Profiles(CAMERAS, (9, 9, 9), {}, {}, weights=checkpoint.weights, centers=centers)
    centered = checkpoint.with_profiles(profiles)
    export(centered, tmp_path / "b2.onnx", "b2")
    images = torch.randn(3, 3, 64, 32, generator=torch.Generator().manual_seed(1))
    theirs = load_checkpoint(tmp_path / "b2.onnx").embed(images)
    torch.testing.assert_close(theirs, centered.embed(images, 1), atol=1e-4, rtol=0)
    assert not torch.allclose(theirs, checkpoint.embed(images, 1), atol=1e-2)


@pytest.mark.parametrize("name", ["b2.onnx", "b2.xml"])
def test_vectors_are_those_of_the_camera(weights: Path, exported: Path, name: str) -> None:
    ours, theirs = load_checkpoint(weights), load_checkpoint(exported / name)
    assert theirs.transform == ours.transform
    images = torch.randn(5, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    for rows in (5, 1, 3):
        np.testing.assert_allclose(theirs.embed(images[:rows]), ours.embed(images[:rows], 1), atol=1e-4)
    for other in (ours.embed(images, 0), ours.embed(images, 2), ours.embed(images.flip(1), 1)):
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(theirs.embed(images), other, atol=1e-4)


def test_the_mirror_image_is_in_the_file_where_the_network_averages_with_it(weights: Path, tmp_path: Path) -> None:
    flipping = load_checkpoint(weights).with_flip()
    export(flipping, tmp_path / "b2.onnx", "b2")
    images = torch.randn(3, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    theirs = load_checkpoint(tmp_path / "b2.onnx").embed(images)
    np.testing.assert_allclose(theirs, flipping.embed(images, 1), atol=1e-4)
    assert (theirs - load_checkpoint(weights).embed(images, 1)).abs().max() > 1e-3


def scores(file: Path) -> list[float]:
    results: list[Mapping[str, Any]] = json.loads(file.read_text())["results"]
    return [result["mAP"] for result in results]


@pytest.mark.parametrize("name", ["b2.onnx", "b2.xml"])
def test_scores_are_those_of_the_network(
    reid, tiny_street: Path, weights: Path, exported: Path, tmp_path: Path, name: str
) -> None:
    """Compared with a plain network that has the statistics of b2 in torch's own layers."""
    manifest, plain = tiny_street / "street-b" / "manifest.csv", tmp_path / "plain.safetensors"
    checkpoint = load_checkpoint(weights)
    save_checkpoint(plain, extract(checkpoint.network, "b2"), checkpoint.spec, checkpoint.transform, (), (), {})
    for file, out in ((plain, "ours.json"), (exported / name, "theirs.json")):
        code, _, err = reid("evaluate", "--data", manifest, "--weights", file, "--json", tmp_path / out)
        assert code == 0, err
    np.testing.assert_allclose(scores(tmp_path / "theirs.json"), scores(tmp_path / "ours.json"), atol=1e-9)


def test_what_cannot_be_exported_is_one_line(
    reid, weights: Path, plain_weights: Path, exported: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.onnx").write_text("notes of mine")
    (tmp_path / "other.toml").write_text("title = 'mine'")
    for arguments, words in (
        (
            ("--weights", weights, "--out", tmp_path / "n.onnx"),
            "known: b1, b2, b3",
        ),
        (("--weights", weights, "--camera", "b9", "--out", tmp_path / "n.onnx"), '"b9"'),
        (("--weights", plain_weights, "--camera", "b2", "--out", tmp_path / "n.onnx"), "plain.safetensors"),
        (("--weights", plain_weights, "--out", tmp_path / "n.pt"), ".onnx"),
        (("--weights", exported / "b2.xml", "--out", tmp_path / "n.onnx"), "b2.xml"),
        (("--weights", plain_weights, "--out", tmp_path / "mine.onnx"), "mine.onnx"),
        (("--weights", plain_weights, "--out", tmp_path / "other.onnx"), "other.toml"),
    ):
        code, _, err = reid("export", *arguments)
        assert code == 1
        assert words in err
        assert len(err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.onnx", "other.toml"]
