"""The door: nesting, exceptions, threads, checkpointing; what the network returns keeps its rows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet18

from reid.errors import ConditionError
from reid.norm import Condition, Given, camera_batchnorm, convert_norm, given
from reid.norm.condition import current_condition

CAMERAS = ("a", "b", "c", "d")


class Failing(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise RuntimeError("stop")


def camera_network() -> nn.Module:
    """A network in evaluation mode whose four cameras answer differently."""
    torch.manual_seed(0)
    network = convert_norm(resnet18(num_classes=8), camera_batchnorm(CAMERAS)).train()
    images = torch.randn(16, 3, 32, 16) * torch.linspace(0.5, 3, 16)[:, None, None, None]
    Given(network)(images, torch.arange(4).repeat_interleave(4))
    return network.eval()


def test_conditions_nest() -> None:
    """T24."""
    outer, inner = Condition(1), Condition(2)
    assert current_condition() is None
    with given(outer):
        with given(inner):
            assert current_condition() is inner
        assert current_condition() is outer
    assert current_condition() is None


@pytest.mark.parametrize("domain", [1, torch.tensor([1, 0, 1])])
def test_an_exception_restores_the_condition(domain) -> None:
    """T24: the condition of the outer pass is back, and none is left behind."""
    outer = Condition(3)
    with given(outer):
        with pytest.raises(RuntimeError, match="stop"):
            Given(Failing())(torch.zeros(3, 3, 4, 4), domain)
        assert current_condition() is outer
    assert current_condition() is None


def test_threads_serve_different_cameras() -> None:
    """T19: four threads with a camera each answer as one after the other."""
    given_network = Given(camera_network())
    images = torch.randn(3, 3, 32, 16)

    def serve(camera: int) -> list[Tensor]:
        with torch.inference_mode():
            return [given_network(images, camera) for _ in range(20)]

    serial = [serve(camera)[0] for camera in range(4)]
    assert not torch.allclose(serial[0], serial[1], atol=1e-2)
    with ThreadPoolExecutor(4) as pool:
        for camera, answers in enumerate(pool.map(serve, range(4))):
            assert all(torch.equal(answer, serial[camera]) for answer in answers)


def test_threads_with_mixed_batches() -> None:
    """T19, labels: another permutation of cameras in every thread."""
    given_network = Given(camera_network())
    images = torch.randn(4, 3, 32, 16)
    labels = [torch.arange(4).roll(k) for k in range(4)]

    def serve(k: int) -> Tensor:
        with torch.inference_mode():
            return torch.stack([given_network(images, labels[k]) for _ in range(10)])

    serial = [serve(k)[0] for k in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for k, answers in enumerate(pool.map(serve, range(4))):
            assert all(torch.equal(answer, serial[k]) for answer in answers)


def test_rows_come_back_in_the_callers_order_whatever_the_network_returns() -> None:
    network = camera_network()

    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, images: Tensor) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
            out = self.inner(images)
            return {"out": out, "pair": (out * 2, images)}

    images, labels = torch.randn(5, 3, 32, 16), torch.tensor([3, 0, 2, 0, 1])
    with torch.inference_mode():
        got = Given(Several())(images, labels)
        rows = torch.cat([Given(network)(image[None], int(label)) for image, label in zip(images, labels, strict=True)])
    torch.testing.assert_close(got["out"], rows, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got["pair"][0], rows * 2, rtol=1e-4, atol=1e-5)
    assert torch.equal(got["pair"][1], images)


def test_a_plain_network_ignores_the_condition() -> None:
    network = resnet18(num_classes=4).eval()
    images = torch.randn(3, 3, 32, 16)
    with torch.inference_mode():
        assert torch.equal(Given(network)(images), network(images))
        torch.testing.assert_close(Given(network)(images, torch.tensor([5, 0, 2])), network(images))


def test_gradient_checkpointing_needs_the_condition_again() -> None:
    """Recomputing runs outside the pass: without ``context_fn`` it raises, with it gradients are exact."""
    network = convert_norm(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), camera_batchnorm(CAMERAS)).eval()
    images, condition = torch.randn(4, 3, 5, 5), Condition(torch.tensor([0, 1, 2, 3]))

    def gradient(run) -> Tensor:
        network.zero_grad()
        with given(condition):
            loss = run().square().sum()
        loss.backward()
        return network[0].weight.grad.clone()

    exact = gradient(lambda: network(images))
    again = gradient(
        lambda: checkpoint(network, images, use_reentrant=False, context_fn=lambda: (nullcontext(), given(condition)))
    )
    assert torch.equal(exact, again)
    with pytest.raises(ConditionError):
        gradient(lambda: checkpoint(network, images, use_reentrant=False))


class Tokens(nn.Module):
    """Makes rows of the positions of an image, as some transformers do before their norms."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.norm(images.flatten(2).transpose(1, 2).flatten(0, 1))
        return rows.view(len(images), -1)


def test_labels_of_images_are_not_taken_for_those_of_their_parts() -> None:
    """One domain is exact; labels, which would meet other rows than they are of, are refused on every path."""
    plain = Tokens().eval()
    network, images = convert_norm(plain, camera_batchnorm(CAMERAS)), torch.randn(3, 3, 4, 4)
    assert torch.equal(Given(network)(images, 2), plain(images))
    labels = torch.tensor([0, 1, 0])
    with pytest.raises(ConditionError, match="48 rows of 3 images"):
        Given(network)(images, labels)
    with pytest.raises(ConditionError, match="48 rows of 3 images"), given(Condition(labels)):
        network(images)
