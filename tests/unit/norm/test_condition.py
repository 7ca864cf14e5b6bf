"""Given and the condition: names and indices, the order of rows, nesting, exceptions, threads and checkpointing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet18

from reid.errors import ConditionError
from reid.norm import Condition, DomainPolicy, Given, camera_batchnorm, convert_norm, domains_of, given
from reid.norm.assignment import gate_logits
from reid.norm.condition import current_condition, in_callers_order

CAMERAS = ("a", "b", "c", "d")


class Failing(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise RuntimeError("stop")


def camera_network() -> nn.Module:
    """Make a network in evaluation mode with four cameras whose outputs differ."""
    torch.manual_seed(0)
    network = convert_norm(resnet18(num_classes=8), camera_batchnorm(CAMERAS)).train()
    images = torch.randn(16, 3, 32, 16) * torch.linspace(0.5, 3, 16)[:, None, None, None]
    Given(network)(images, torch.arange(4).repeat_interleave(4))
    return network.eval()


def test_conditions_nest() -> None:
    outer, inner = Condition(1), Condition(2)
    assert current_condition() is None
    with given(outer):
        with given(inner):
            assert current_condition() is inner
        assert current_condition() is outer
    assert current_condition() is None


@pytest.mark.parametrize("domain", [1, torch.tensor([1, 0, 1])])
def test_an_exception_restores_the_condition(domain) -> None:
    """The condition of the outer pass is back, and none is left behind."""
    outer = Condition(3)
    with given(outer):
        with pytest.raises(RuntimeError, match="stop"):
            Given(Failing())(torch.zeros(3, 3, 4, 4), domain)
        assert current_condition() is outer
    assert current_condition() is None


def test_threads_serve_different_cameras() -> None:
    """Four threads with one camera each compute the same as one thread after the other."""
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
    """Every thread has another permutation of cameras."""
    given_network = Given(camera_network())
    images = torch.randn(4, 3, 32, 16)
    domain = [torch.arange(4).roll(k) for k in range(4)]

    def serve(k: int) -> Tensor:
        with torch.inference_mode():
            return torch.stack([given_network(images, domain[k]) for _ in range(10)])

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

    images, domain = torch.randn(5, 3, 32, 16), torch.tensor([3, 0, 2, 0, 1])
    with torch.inference_mode():
        got = Given(Several())(images, domain)
        rows = torch.cat([Given(network)(image[None], int(label)) for image, label in zip(images, domain, strict=True)])
    torch.testing.assert_close(got["out"], rows, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got["pair"][0], rows * 2, rtol=1e-4, atol=1e-5)
    assert torch.equal(got["pair"][1], images)


class WithSummary(nn.Module):
    """Returns the rows of a network, one number for the batch, a table of another length and text."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, str]:
        rows = self.network(images)
        return rows, rows.sum(), torch.arange(3), "text"


def test_outputs_without_a_row_for_each_image_stay_as_they_are() -> None:
    network, images, domain = camera_network(), torch.randn(5, 3, 32, 16), torch.tensor([3, 0, 2, 0, 1])
    with torch.inference_mode():
        rows, total, table, text = Given(WithSummary(network))(images, domain)
        assert torch.equal(rows, Given(network)(images, domain))
    torch.testing.assert_close(total, rows.sum())
    assert table.tolist() == [0, 1, 2]
    assert text == "text"


@pytest.mark.parametrize("domain", [["d", "a", "c", "a", "b"], ("b",) * 5, "c"])
def test_names_of_domains_are_their_indices(domain: str | list[str] | tuple[str, ...]) -> None:
    network, images = camera_network(), torch.randn(5, 3, 32, 16)
    names = domains_of(network)
    indices = names.index(domain) if isinstance(domain, str) else torch.tensor([names.index(name) for name in domain])
    with torch.inference_mode():
        assert torch.equal(Given(network)(images, domain), Given(network)(images, indices))


@pytest.mark.parametrize("domain", ["door", ["a", "door", "b"]])
def test_an_unknown_name_lists_the_known_ones(domain: str | list[str]) -> None:
    with pytest.raises(ConditionError) as caught:
        Given(camera_network())(torch.zeros(3, 3, 32, 16), domain)
    assert '"door"' in str(caught.value)
    assert "a, b, c, d" in str(caught.value)


def test_one_name_for_each_image_is_needed() -> None:
    with pytest.raises(ConditionError) as caught:
        Given(camera_network())(torch.zeros(3, 3, 32, 16), ["a", "b"])
    assert "(3,)" in str(caught.value)
    assert "(2,)" in str(caught.value)


def test_hooks_see_rows_that_can_be_put_in_the_callers_order() -> None:
    """The layers see rows sorted by domain; ``in_callers_order`` gives a hook what the caller passed."""
    network, images, domain = camera_network(), torch.randn(5, 3, 32, 16), torch.tensor([3, 0, 2, 0, 1])
    inside, restored, other = [], [], []

    def collect(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        inside.append(inputs[0])
        restored.append(in_callers_order(inputs[0]))
        other.extend([in_callers_order(torch.tensor(1.0)), in_callers_order(torch.arange(3))])

    network.register_forward_pre_hook(collect)
    with torch.inference_mode():
        for given_domain in (domain, domain.sort().values, 1, None):
            with pytest.raises(ConditionError) if given_domain is None else nullcontext():
                Given(network)(images, given_domain)
    assert not torch.equal(inside[0], images)
    assert all(torch.equal(rows, images) for rows in restored)
    assert other[0] == 1
    assert other[1].tolist() == [0, 1, 2]
    assert torch.equal(in_callers_order(images), images)  # outside of any pass


def test_the_logits_of_the_gates_are_in_the_callers_order() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    network = convert_norm(plain, DomainPolicy("camera", CAMERAS, system="gated")).eval()
    images, domain = torch.randn(5, 3, 6, 6), torch.tensor([3, 0, 2, 0, 1])
    with torch.inference_mode(), gate_logits(network) as logits:
        Given(network)(images, domain)
        for image, one in zip(images, domain.tolist(), strict=True):
            Given(network)(image[None], one)
    for layer in (0, 1):
        one_by_one = torch.cat(logits[2 + layer :: 2])
        torch.testing.assert_close(logits[layer], one_by_one, rtol=1e-5, atol=1e-5)


def test_a_plain_network_ignores_the_condition() -> None:
    network = resnet18(num_classes=4).eval()
    images = torch.randn(3, 3, 32, 16)
    with torch.inference_mode():
        assert torch.equal(Given(network)(images), network(images))
        torch.testing.assert_close(Given(network)(images, torch.tensor([5, 0, 2])), network(images))


def test_gradient_checkpointing_needs_the_condition_again() -> None:
    """Recomputation runs outside the pass: without ``context_fn`` it raises, with it the gradients are exact."""
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


def test_domains_of_images_are_not_taken_for_those_of_their_parts() -> None:
    """One domain is exact; one domain for each image is refused on every path, since the rows are no images."""
    plain = Tokens().eval()
    network, images = convert_norm(plain, camera_batchnorm(CAMERAS)), torch.randn(3, 3, 4, 4)
    assert torch.equal(Given(network)(images, 2), plain(images))
    domain = torch.tensor([0, 1, 0])
    with pytest.raises(ConditionError, match="48 rows of 3 images"):
        Given(network)(images, domain)
    with pytest.raises(ConditionError, match="48 rows of 3 images"), given(Condition(domain)):
        network(images)
