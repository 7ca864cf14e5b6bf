"""Every tensor of published weights is used, and a file of ours made from them gives the same network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reid.errors import WeightsError
from reid.models.checkpoint import load_checkpoint, save_checkpoint
from reid.models.weights.tensor_tables import read_table, table_of

WEIGHTS = Path(__file__).resolve().parents[3] / "shared" / "weights"
FILES = {"osnet_x0_25_msmt17.pth": 1041, "osnet_x0_25_market1501.pth": 751}


def real(file: str) -> Path:
    path = WEIGHTS / file
    if not path.is_file():
        pytest.skip(f"needs ../shared/weights/{file} beside the project's folder, and it is not there")
    return path


@pytest.mark.parametrize(("file", "classes"), FILES.items())
def test_every_tensor_but_the_classifiers_is_used(file: str, classes: int) -> None:
    published, _ = read_table(real(file))
    assert published.pop("classifier.weight").shape == (classes, 512)
    assert published.pop("classifier.bias").shape == (classes,)
    loaded = table_of(load_checkpoint(real(file), "osnet_x0_25").network)
    renamed = {("neck." + k[3:] if k.startswith("fc.") else "backbone." + k): t for k, t in published.items()}
    assert loaded.keys() == renamed.keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in renamed.items())


@pytest.mark.parametrize("file", FILES)
def test_saved_as_ours_it_gives_the_same_numbers(file: str, tmp_path: Path) -> None:
    theirs = load_checkpoint(real(file), "osnet_x0_25")
    path = tmp_path / "ours.safetensors"
    save_checkpoint(path, theirs.network, theirs.spec, theirs.transform, (), (), {})
    ours = load_checkpoint(path)
    images = torch.randn(2, 3, 256, 128, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours.embed(images), theirs.embed(images))
    assert ours.fingerprint == theirs.fingerprint


@pytest.mark.parametrize("backbone", ["osnet_x0_5", "resnet18", "mobilenet_v2"])
def test_another_backbone_is_refused(backbone: str) -> None:
    with pytest.raises(WeightsError, match=f"into {backbone}: the weights do not fit"):
        load_checkpoint(real("osnet_x0_25_msmt17.pth"), backbone)


def test_a_truncated_one_is_refused(tmp_path: Path) -> None:
    whole = real("osnet_x0_25_msmt17.pth").read_bytes()
    path = tmp_path / "short.pth"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"short\.pth: cannot read this weights file"):
        load_checkpoint(path, "osnet_x0_25")
