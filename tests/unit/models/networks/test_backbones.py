"""Backbones: what they give, whose key names they keep, and what they refuse."""

from __future__ import annotations

import builtins
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torchvision import models

from reid.errors import ConfigError
from reid.models.embedder import Embedder, NetworkSpec
from reid.models.networks.backbones import BACKBONES, build_backbone
from reid.norm import Given, camera_batchnorm, convert_norm

# name -> (channels, image pixels for one position of the map)
EXPECTED = {
    "resnet18_x0_25": (128, 16),
    "resnet18_x0_375": (192, 16),
    "resnet18_x0_5": (256, 16),
    "resnet18": (512, 16),
    "resnet34": (512, 16),
    "resnet50": (2048, 16),
    "resnet101": (2048, 16),
    "osnet_x0_25": (128, 16),
    "osnet_x0_5": (256, 16),
    "osnet_x0_75": (384, 16),
    "osnet_x1_0": (512, 16),
    "osnet_ibn_x1_0": (512, 16),
    "osnet_ain_x1_0": (512, 16),
    "mobilenet_v2": (1280, 32),
    "mobilenetv2_x1_0": (1280, 32),
    "mobilenetv2_x1_4": (1792, 32),
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No backbone may open a connection."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a backbone tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)


def test_every_backbone_is_tested() -> None:
    assert set(EXPECTED) == set(BACKBONES)


@pytest.mark.parametrize("name", EXPECTED)
def test_maps_have_the_stated_channels_and_stride(name: str) -> None:
    channels, stride = EXPECTED[name]
    backbone = build_backbone(name).eval()
    with torch.inference_mode():
        assert backbone(torch.randn(1, 3, 64, 32)).shape == (1, channels, 64 // stride, 32 // stride)
    assert backbone.channels == channels


@pytest.mark.parametrize(
    ("name", "published"),
    [("resnet18", models.resnet18), ("resnet50", models.resnet50), ("mobilenet_v2", models.mobilenet_v2)],
)
def test_published_weights_fit_but_for_the_classifier(name: str, published: Callable[..., Any]) -> None:
    backbone = build_backbone(name)
    keys = {key for key in published(weights=None).state_dict() if not key.startswith(backbone.heads)}
    assert set(backbone.state_dict()) == keys


def test_a_resnet_is_torchvisions_with_a_finer_last_stage() -> None:
    torch.manual_seed(0)
    theirs = models.resnet18(weights=None).eval()
    ours = build_backbone("resnet18").eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    images = torch.randn(1, 3, 64, 32)
    with torch.inference_mode():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        third = theirs.layer3(theirs.layer2(theirs.layer1(x)))
        out = ours(images)
        torch.testing.assert_close(ours.get_submodule("layer4")(third), out)
        # the same filters at every position; every second position of each direction is theirs
        coarse, fine = (net.layer4[0].bn1(net.layer4[0].conv1(third)) for net in (theirs, ours))
        torch.testing.assert_close(fine[:, :, ::2, ::2], coarse)
    assert out.shape[-2:] == third.shape[-2:]


@pytest.mark.parametrize(("name", "published"), [("resnet18", models.resnet18), ("resnet50", models.resnet50)])
def test_a_coarse_resnet_is_torchvisions_all_through(name: str, published: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    theirs = published(weights=None).eval()
    ours = build_backbone(f"{name}+coarse").eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    images = torch.randn(1, 3, 64, 32)
    with torch.inference_mode():
        torch.testing.assert_close(theirs.fc(ours(images).mean((2, 3))), theirs(images))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("resnet_50", 'did you mean "resnet50"'),
        ("osnet_x025", 'did you mean "osnet_x0_25"'),
        ("", "known: resnet18, .*timm:<name>"),
    ],
)
def test_an_unknown_backbone_names_the_nearest_and_all(wrong: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_backbone(wrong)
    assert "\n" not in str(caught.value)


class TestTimm:
    """Networks of the optional package timm."""

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("timm", reason='the extra "timm" is not installed')

    @pytest.mark.parametrize("name", ["mobilenetv3_small_050", "resnet10t", "convnext_atto"])
    def test_a_convolutional_one_gives_its_map(self, name: str) -> None:
        backbone = build_backbone(f"timm:{name}")
        assert backbone.training
        with torch.inference_mode():
            out = backbone.eval()(torch.randn(2, 3, 128, 64))
        assert out.ndim == 4
        assert out.shape[:2] == (2, backbone.channels)

    def test_its_key_names_are_kept_behind_a_root(self) -> None:
        import timm

        backbone = build_backbone("timm:resnet10t")
        published = timm.create_model("resnet10t", pretrained=False).state_dict()
        keys = {backbone.root + key for key in published if not key.startswith(backbone.heads)}
        assert set(backbone.state_dict()) == keys

    def test_building_draws_no_statistics(self) -> None:
        backbone = build_backbone("timm:resnet10t")
        state = {key: t for key, t in backbone.named_buffers() if key.endswith(("running_var", "tracked"))}
        assert state
        assert all(t.eq(0 if key.endswith("tracked") else 1).all() for key, t in state.items())

    def test_its_fused_norms_convert_to_cameras(self) -> None:
        torch.manual_seed(0)
        plain = Embedder(NetworkSpec("timm:mobilenetv3_small_050")).eval()
        converted = convert_norm(plain, camera_batchnorm(["a", "b"])).eval()
        images, labels = torch.randn(2, 3, 64, 32), torch.tensor([0, 1])
        with torch.inference_mode():
            torch.testing.assert_close(Given(converted)(images, labels), plain(images), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("name", ["mixer_s16_224", "sequencer2d_s", "tnt_s_patch16_224"])
    def test_a_network_of_fixed_image_size_is_refused(self, name: str) -> None:
        with pytest.raises(ConfigError, match=f"timm:{name}") as caught:
            build_backbone(f"timm:{name}")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "size"),
        [
            ("vit_tiny_patch16_dinov3_qkvb", (256, 256)),
            ("vit_small_patch14_dinov2", (56, 28)),
            ("swin_tiny_patch4_window7_224", (224, 224)),
        ],
    )
    def test_a_transformer_gives_what_timm_pools(self, name: str, size: tuple[int, int]) -> None:
        import timm

        backbone = build_backbone(f"timm:{name}").eval()
        options = {} if name.startswith("swin") else {"img_size": size}
        theirs = timm.create_model(name, pretrained=False, num_classes=0, **options).eval()
        state = {
            key: value for key, value in backbone.get_submodule("model").state_dict().items() if key != "pos_embed"
        }
        theirs.load_state_dict(state, strict=False)
        if "dinov2" in name:  # a table of 37x37 positions for images of 518x518 pixels
            from timm.layers import resample_abs_pos_embed

            table = backbone.get_parameter("model.pos_embed")
            theirs.pos_embed.data = resample_abs_pos_embed(table.data, [4, 2], num_prefix_tokens=1)
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            found = backbone(images)
            assert found.shape == (2, backbone.channels, 1, 1)
            torch.testing.assert_close(found[:, :, 0, 0], theirs(images), rtol=1e-4, atol=1e-4)
            assert backbone(images[:, :, : size[0] // 2]).isfinite().all()

    def test_a_transformer_takes_whole_patches(self) -> None:
        backbone = build_backbone("timm:vit_small_patch14_dinov2")
        assert (backbone.transform.height, backbone.transform.width) == (252, 126)
        with pytest.raises(ConfigError, match="multiples of 14 pixels, got 256x128") as caught:
            backbone(torch.zeros(1, 3, 256, 128))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", ["resnet18x", "hf_hub:timm/resnet18.a1_in1k", "local-dir:weights", ""])
    def test_an_unknown_or_remote_name_is_refused(self, name: str) -> None:
        with pytest.raises(ConfigError, match="timm"):
            build_backbone(f"timm:{name}")


def test_without_timm_the_message_gives_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_timm(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "timm":
            raise ImportError("No module named 'timm'")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_timm)
    with pytest.raises(ConfigError, match=r'timm:resnet10t.*pip install "timm') as caught:
        build_backbone("timm:resnet10t")
    assert "\n" not in str(caught.value)
