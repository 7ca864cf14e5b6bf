"""MegaDescriptor, MiewID and DINO: their files load, give what timm and the projects compute, or are refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from helpers import plain_forwards as plain
from helpers.published_tables import Table, batch_norm, filled
from reid.errors import WeightsError
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.models.embedder import NetworkSpec
from reid.models.networks.transformers import HALF

timm = pytest.importorskip("timm", reason='the extra "timm" is not installed')
SWIN, EFFICIENT, DINO = "swin_tiny_patch4_window7_224", "efficientnetv2_rw_m", "vit_tiny_patch16_dinov3_qkvb"


def published(name: str, **options: object) -> torch.nn.Module:
    """A network as timm builds it, with random weights that are not at their start values."""
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=0, **options).eval()
    for key, value in network.state_dict().items():
        if value.is_floating_point() and value.ndim == 1 and "running" not in key:
            value.add_(0.2 * torch.randn(value.shape))
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # statistics that fit, so that values do not grow with the depth
            layer.train().momentum = 1.0
            layer.running_var.fill_(1.0)
    with torch.no_grad():
        network(images(128)) if name == EFFICIENT else None
    return network.eval()


def images(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def loaded(folder: Path, table: Table, backbone: str) -> Checkpoint:
    save_file({key: tensor.contiguous() for key, tensor in table.items()}, folder / "w.safetensors")
    return load_checkpoint(folder / "w.safetensors", backbone)


def old_names(table: Table) -> Table:
    """Swin as timm named it when MegaDescriptor was published: a stage ends with its joined patches."""
    table = {
        re.sub(r"layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key): tensor
        for key, tensor in table.items()
    }
    return table | {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49)}


@pytest.mark.parametrize("old", [False, True])
def test_megadescriptor_is_timms_swin_with_its_own_preparation(old: bool, tmp_path: Path) -> None:
    network = published(SWIN)
    table = dict(network.state_dict())
    checkpoint = loaded(tmp_path, old_names(table) if old else table, "megadescriptor_t_224")
    transform = checkpoint.transform
    assert (transform.height, transform.width, transform.mean, transform.std) == (224, 224, HALF, HALF)
    assert checkpoint.extra["family"] == "MegaDescriptor"
    with torch.inference_mode():
        expected = functional.normalize(network(images(224)))
    torch.testing.assert_close(checkpoint.embed(images(224)), expected, rtol=0, atol=2e-6)
    checkpoint.save(tmp_path / "ours.safetensors")
    assert load_checkpoint(tmp_path / "ours.safetensors").fingerprint == checkpoint.fingerprint


class TestMiewId:
    """EfficientNetV2 of timm, GeM and BatchNorm; its classifier is left out."""

    @pytest.fixture(scope="class", name="table")
    @classmethod
    def _table(cls) -> Table:
        network = published(EFFICIENT)
        trunk = {f"backbone.{key}": tensor for key, tensor in network.state_dict().items()}
        head = filled(batch_norm("bn", 2152) | {"final.weight": (5, 2152)})
        return trunk | head | {"pooling.p": torch.tensor([2.5])}

    def test_it_is_gem_and_batchnorm_over_timms_map(self, table: Table, tmp_path: Path) -> None:
        network = timm.create_model(EFFICIENT, pretrained=False, num_classes=0).eval()
        network.load_state_dict({k.removeprefix("backbone."): t for k, t in table.items() if k.startswith("backbone.")})
        checkpoint = loaded(tmp_path, table, "miewid")
        assert checkpoint.spec == NetworkSpec(f"timm:{EFFICIENT}", "gem", "bnneck")
        assert (checkpoint.transform.height, checkpoint.transform.width) == (440, 440)
        assert (checkpoint.extra["family"], checkpoint.extra["left out"]) == ("MiewID", "final.weight")
        with torch.inference_mode():
            pooled = plain.gem(table["pooling.p"], network.forward_features(images(64)))
            expected = functional.normalize(plain.norm(table, "bn", pooled))
        found = checkpoint.embed(images(64))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert float((found - functional.normalize(pooled)).abs().max()) > 1e-3, "before the norm"

    def test_another_file_is_refused(self, table: Table, tmp_path: Path) -> None:
        for wrong, backbone in (
            ({key: tensor for key, tensor in table.items() if key != "pooling.p"}, "miewid"),
            (table, "megadescriptor_t_224"),
            ({key: tensor for key, tensor in table.items() if key != "bn.bias"}, "miewid"),
        ):
            with pytest.raises(WeightsError) as caught:
                loaded(tmp_path, wrong, backbone)
            assert "\n" not in str(caught.value)
            assert backbone in str(caught.value)


@pytest.mark.parametrize(("name", "side"), [(DINO, 64), ("vit_small_patch14_dinov2", 56)])
def test_dino_is_timms(name: str, side: int, tmp_path: Path) -> None:
    network = published(name, dynamic_img_size=True)
    checkpoint = loaded(tmp_path, dict(network.state_dict()), f"timm:{name}")
    with torch.inference_mode():
        expected = functional.normalize(network(images(side)))
    torch.testing.assert_close(checkpoint.embed(images(side)), expected, rtol=0, atol=2e-6)
    assert checkpoint.spec.neck == "none"


@pytest.mark.parametrize("name", [DINO, SWIN])
def test_a_file_of_another_network_is_refused(name: str, tmp_path: Path) -> None:
    other = {DINO: SWIN, SWIN: DINO}[name]
    with pytest.raises(WeightsError) as caught:
        loaded(tmp_path, dict(published(other).state_dict()), f"timm:{name}")
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
