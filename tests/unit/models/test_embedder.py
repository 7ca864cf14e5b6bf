"""The embedder: shapes, unit length, necks, and its way through the door of reid.norm."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reid.errors import ConfigError
from reid.models.embedder import NECKS, Embedder, NetworkSpec
from reid.norm import Condition, Given, camera_batchnorm, convert_norm, given

IMAGES = (4, 3, 64, 32)


def embedder(neck: str = "bnneck", pooling: str = "average") -> Embedder:
    torch.manual_seed(0)
    return Embedder(NetworkSpec("osnet_x0_25", pooling, neck))


@pytest.mark.parametrize("pooling", ["average", "gem"])
@pytest.mark.parametrize(("neck", "dimension"), [("bnneck", 128), ("fc", 512), ("none", 128)])
def test_embeddings_are_float32_of_unit_length(neck: str, dimension: int, pooling: str) -> None:
    network = embedder(neck, pooling).eval()
    with torch.inference_mode():
        out = network(torch.randn(IMAGES))
    assert network.dimension == dimension
    assert out.shape == (4, dimension)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.norm(dim=1), torch.ones(4))


@pytest.mark.parametrize("neck", NECKS)
def test_training_computes_the_same_as_inference_before_normalising(neck: str) -> None:
    network = embedder(neck).eval()
    images = torch.randn(IMAGES)
    with torch.no_grad():
        features, logits_input = network.forward_train(images)
        torch.testing.assert_close(features, network.features(images))
        torch.testing.assert_close(F.normalize(logits_input), network(images))
    assert features.shape == (4, 128)
    assert logits_input.shape == (4, network.dimension)


def test_bnneck_scales_but_never_shifts() -> None:
    network = embedder("bnneck").train()
    assert isinstance(network.neck, nn.BatchNorm1d)
    features, out = network.forward_train(torch.randn(IMAGES))
    (out.square().sum() + out.sum() + features.sum()).backward()
    assert not network.neck.bias.requires_grad
    assert network.neck.bias.eq(0).all()
    assert network.neck.weight.grad is not None


def test_the_fc_neck_starts_small() -> None:
    network = embedder("fc")
    assert isinstance(network.neck, nn.Sequential)
    linear = network.neck[0]
    assert isinstance(linear, nn.Linear)
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert linear.bias.eq(0).all()


def test_the_same_seed_gives_the_same_network() -> None:
    first, second = embedder("fc").state_dict(), embedder("fc").state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_half_width_arithmetic_still_gives_float32() -> None:
    network = embedder("fc").eval()
    images = torch.randn(IMAGES)
    with torch.inference_mode():
        exact = network(images)
        with torch.autocast("cpu", torch.bfloat16):
            out = network(images)
            features, neck = network.forward_train(images)
    assert {out.dtype, features.dtype, neck.dtype} == {torch.float32}
    torch.testing.assert_close(out.norm(dim=1), torch.ones(4))
    assert F.cosine_similarity(out, exact).min() > 0.98


def test_the_memory_layout_of_images_does_not_matter() -> None:
    network = embedder().eval()
    images = torch.randn(IMAGES)
    with torch.inference_mode():
        torch.testing.assert_close(network(images.to(memory_format=torch.channels_last)), network(images))


def test_converted_to_cameras_it_differs_by_camera_once_calibrated() -> None:
    plain = embedder().eval()
    converted = convert_norm(plain, camera_batchnorm(["a", "b"])).eval()
    images = torch.randn(IMAGES)
    labels = torch.tensor([0, 1, 0, 1])
    with torch.inference_mode():
        torch.testing.assert_close(Given(converted)(images, labels), plain(images), rtol=1e-4, atol=1e-5)
    for key, buffer in converted.named_buffers():
        if key.endswith("running_mean"):
            buffer[1] += 0.5
    with torch.inference_mode():
        out = Given(converted)(images, labels)
        with given(Condition(labels)):
            features, _ = converted.forward_train(images)
        torch.testing.assert_close(out[::2], plain(images[::2]), rtol=1e-4, atol=1e-5)
    assert (out[1::2] - plain(images[1::2])).abs().max() > 0.01
    assert features.shape == (4, 128)
    assert not converted.neck.bias.requires_grad


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (NetworkSpec("osnet_x0_25", neck="bneck"), 'unknown neck "bneck"; did you mean "bnneck"'),
        (NetworkSpec("osnet_x0_25", pooling="max"), 'unknown pooling "max"'),
        (NetworkSpec("osnet"), 'unknown backbone "osnet"'),
    ],
)
def test_an_unknown_part_is_named(spec: NetworkSpec, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Embedder(spec)
