"""``reid export --int8``: the file works as weights, says what it cost, and bad input is one line.

Caught: crops of other cameras for the file of one camera, a card that cannot be read again, labels that are needed.
"""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from reid.data.transforms import EvaluationTransform
from reid.models.checkpoint import load_checkpoint, save_checkpoint
from reid.models.embedder import Embedder, NetworkSpec
from tests.helpers.small_checkpoints import randomize_norms

for needed in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(needed, reason='pip install "reid-multidomain[onnx,openvino]"')


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    spec = NetworkSpec("resnet18_x0_25", "gem", "bnneck")
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_checkpoint(path, randomize_norms(Embedder(spec)), spec, EvaluationTransform(64, 32), (), (), {})
    return path


def unlabelled(manifest: Path, folder: Path, most: int) -> Path:
    """A manifest without identities of the first crops of another."""
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))[:most]
    path = folder / f"crops{most}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        where = {"identity": "", "split": "train"}
        writer.writerows({**row, **where, "path": manifest.parent / row["path"]} for row in rows)
    return path


def test_labels_give_the_map_before_and_after(
    reid: Callable[..., tuple[int, str, str]], manifest: Path, weights: Path, tmp_path: Path
) -> None:
    code, out, err = reid("export", "--weights", weights, "--int8", "--data", manifest, "--out", tmp_path / "n.onnx")
    assert code == 0, err
    assert "mAP" in out
    card = tomllib.loads((tmp_path / "n.toml").read_text())["int8"]
    assert card["cosine_mean"] >= card["cosine_percentile_1"] > 0.95
    assert abs(card["mAP_float32"] - card["mAP_int8"]) < 5
    loaded, ours = load_checkpoint(tmp_path / "n.onnx"), load_checkpoint(weights)
    assert "int8" in loaded.runtime
    assert loaded.transform == ours.transform
    code, out, err = reid("evaluate", "--weights", tmp_path / "n.onnx", "--data", manifest)
    assert code == 0, err


def test_openvino_needs_no_labels(
    reid: Callable[..., tuple[int, str, str]], manifest: Path, weights: Path, tmp_path: Path
) -> None:
    crops = unlabelled(manifest, tmp_path, 24)
    code, out, err = reid("export", "--weights", weights, "--int8", "--data", crops, "--out", tmp_path / "n.xml")
    assert code == 0, err
    assert "mAP" not in out
    assert (tmp_path / "n.bin").stat().st_size < 0.6 * 4 * sum(
        p.numel() for p in load_checkpoint(weights).network.parameters()
    )
    assert tomllib.loads((tmp_path / "n.toml").read_text())["int8"]["crops"] == 24
    assert "int8" in load_checkpoint(tmp_path / "n.xml").runtime


def test_what_cannot_be_quantized_is_one_line(
    fails: Callable[..., str], manifest: Path, weights: Path, camera_weights: Path, tmp_path: Path
) -> None:
    one, out = unlabelled(manifest, tmp_path, 1), tmp_path / "n.onnx"
    shared = ("export", "--weights", weights, "--out", out)
    assert "--data" in fails(*shared, "--int8")
    assert "got 1" in fails(*shared, "--int8", "--data", one)
    assert "--int8" in fails(*shared, "--data", one)
    assert "w.safetensors" in fails(*shared, "--int8", "--data", manifest, "--backbone", "resnet50")
    of_camera = ("export", "--weights", camera_weights, "--out", out, "--int8", "--data", manifest)
    assert "--camera" in fails(*of_camera)
    assert '"nowhere"' in fails(*of_camera, "--camera", "nowhere")
    assert not out.exists()
