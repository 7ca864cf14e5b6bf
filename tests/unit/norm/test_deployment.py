"""Networks that are checkpointed, in half precision, channels last, averaged, copied, or used by several threads.

Each is compared with the plain network.  The wrong variants that these tests catch: statistics pooled in the half
precision of autocast; a condition that threads share; running statistics moved again by recomputation.
"""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from helpers.ddp_worker import (
    EVERYWHERE,
    LACKING,
    ROWS,
    WEIGHTS,
    domains,
    images,
    small_network,
)
from helpers.deployment import (
    BATCHES,
    DOMAINS,
    STATISTICS,
    close,
    domain_indices,
    gradients,
    same_statistics,
    train_step,
)
from reid.errors import ConditionError
from reid.norm import Condition, DomainPolicy, Given, convert_norm, domains_of, given, recomputing
from reid.norm import condition as condition_module
from reid.norm.condition import current_condition
from reid.norm.convert import norm_layers
from reid.norm.statistics import pool

# Gradient checkpointing


class Checkpointed(nn.Module):
    """Computes every child again in the backward pass."""

    def __init__(self, network: nn.Module, context_fn: Any) -> None:
        super().__init__()
        self.network, self.context_fn = network, context_fn

    def forward(self, x: Tensor) -> Tensor:
        for child in self.network.children():
            x = checkpoint(child, x, use_reentrant=False, **self.context_fn())
        return x


def again_in_full() -> dict[str, Any]:
    """Recompute wrongly: the second computation moves the running statistics too."""
    condition = current_condition()
    return {"context_fn": lambda: (given(condition), given(condition))}


@pytest.mark.parametrize(
    ("system", "kind"),
    [("batch", kind) for kind in DOMAINS] + [(system, "labels") for system in ("dial", "bin", "dson", "dwt")],
)
def test_gradient_checkpointing_is_exact_and_counts_a_batch_once(system: str, kind: str) -> None:
    plain = small_network(system)
    again = copy.deepcopy(plain)
    train_step(plain, DOMAINS[kind])
    train_step(Checkpointed(again, lambda: {"context_fn": recomputing()}), DOMAINS[kind])
    assert gradients(plain).keys() == gradients(again).keys()
    assert all(torch.equal(gradients(again)[key], value) for key, value in gradients(plain).items())
    theirs = dict(again.named_buffers())
    assert all(torch.equal(theirs[key], value) for key, value in plain.named_buffers())
    assert all(int(layer.num_batches_tracked.max()) == 1 for layer in norm_layers(again).values())


def test_recomputation_without_the_condition_raises() -> None:
    with pytest.raises(ConditionError, match="Given"):
        train_step(Checkpointed(small_network(), dict), DOMAINS["labels"])


def test_recomputation_with_the_whole_condition_moves_the_statistics_twice() -> None:
    network = small_network()
    train_step(Checkpointed(network, again_in_full), DOMAINS["labels"])
    assert all(int(layer.num_batches_tracked.max()) == 2 for layer in norm_layers(network).values())


# Half precision and channels last


@pytest.mark.parametrize("kind", DOMAINS)
@pytest.mark.parametrize("system", ["batch", "ibn", "bin", "dson", "dial", "gated", "dwt"])
def test_statistics_are_float32_under_autocast(system: str, kind: str) -> None:
    """Under autocast, running statistics of bfloat16 values are those of the same values in float32, to rounding."""
    layer = convert_norm(nn.Sequential(nn.BatchNorm2d(8)), DomainPolicy("camera", domains(system), system=system))
    exact = copy.deepcopy(layer)
    x = (torch.randn(ROWS, 8, 5, 4, generator=torch.Generator().manual_seed(0)) + 10).bfloat16()
    for labels_in_any_order in (False, True):
        run, run_exact = (given_any(m) if labels_in_any_order else Given(m) for m in (layer, exact))
        with torch.autocast("cpu", torch.bfloat16):
            y = run(x, DOMAINS[kind])
        assert y.dtype == torch.bfloat16
        close(y.float(), run_exact(x.float(), DOMAINS[kind]), 0.1)
    assert {value.dtype for value in layer.buffers()} <= {torch.float32, torch.int64}
    same_statistics(layer, exact, 2e-5)


def given_any(model: nn.Module) -> Any:
    """Run a model whose layers see the rows in the caller's order."""

    def run(x: Tensor, domain: Any) -> Tensor:
        with given(Condition(domain)):
            return model(x)

    return run


def test_autocast_would_pool_in_half_precision() -> None:
    """This is the wrong layer that the test above refuses."""
    mean = torch.randn(ROWS, 8) + 10
    exact = pool(mean, torch.ones_like(mean), torch.tensor(EVERYWHERE), 3)
    with torch.autocast("cpu", torch.bfloat16):
        half = pool(mean, torch.ones_like(mean), torch.tensor(EVERYWHERE), 3)
    assert not torch.allclose(half.mean.float(), exact.mean, atol=1e-3)


@pytest.mark.parametrize("system", ["batch", "dial", "dwt"])
def test_a_training_step_in_bfloat16_is_near_float32(system: str) -> None:
    network = small_network(system)
    half = copy.deepcopy(network)
    train_step(network, DOMAINS["labels"])
    with torch.autocast("cpu", torch.bfloat16):
        train_step(half, DOMAINS["labels"])
    same_statistics(half, network, 2e-2)
    theirs = gradients(half)
    for key, gradient in gradients(network).items():
        if gradient.numel() > 1:
            assert theirs[key].dtype == torch.float32
            assert torch.cosine_similarity(theirs[key].flatten(), gradient.flatten(), 0) > 0.9, key


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("system", ["batch", "ibn", "bin", "dson", "dial", "transnorm", "gated", "snr", "domainnorm"])
def test_channels_last_gives_the_same_and_stays_channels_last(system: str, training: bool) -> None:
    policy = DomainPolicy("camera", domains(system), system=system)
    layer = convert_norm(nn.Sequential(nn.BatchNorm2d(8)), policy).train(training)
    x = torch.randn(6, 8, 5, 4).to(memory_format=torch.channels_last)
    for domain in (1, domain_indices((0, 0, 1, 1, 1, 1)), domain_indices(BATCHES[1], system)):
        for run in (Given(copy.deepcopy(layer)), given_any(copy.deepcopy(layer))):
            y, expected = run(x, domain), run(x.contiguous(), domain)
            assert y.is_contiguous(memory_format=torch.channels_last)
            close(y, expected, 1e-5)


# Averages, copies and threads


@pytest.mark.parametrize("system", ["batch", "dwt"])
def test_an_average_of_weights_keeps_every_domain(system: str) -> None:
    """In an exponential average each domain's statistics are averaged, and the rows keep their names."""
    network = small_network(system)
    average = AveragedModel(Given(network), multi_avg_fn=get_ema_multi_avg_fn(0.75), use_buffers=True)
    states = []
    for values in (EVERYWHERE, LACKING):
        Given(network)(images(), domain_indices(values))
        states.append({key: value.clone() for key, value in network.named_buffers()})
        average.update_parameters(Given(network))
    averaged: nn.Module = average.module.model
    assert domains_of(averaged) == domains(system)
    for key, value in averaged.named_buffers():
        if key.endswith(STATISTICS[:3]):
            assert len(value) == 3
            close(value, 0.75 * states[0][key] + 0.25 * states[1][key], 1e-6)
    fresh = small_network(system, seed=5).eval()
    fresh.load_state_dict(averaged.state_dict())
    close(Given(fresh)(images(), domain_indices(LACKING)), average.eval()(images(), domain_indices(LACKING)), 1e-6)


@pytest.mark.parametrize("system", ["batch", "dial", "gated", "wbn", "dwt"])
def test_a_deep_copy_is_equal_and_independent(system: str) -> None:
    network = small_network(system)
    twin = copy.deepcopy(network)
    assert domains_of(twin) == domains_of(network)
    before = {key: value.clone() for key, value in network.named_buffers()}
    Given(twin)(images(), domain_indices(EVERYWHERE))
    assert all(torch.equal(value, before[key]) for key, value in network.named_buffers())
    assert any(not torch.equal(value, before[key]) for key, value in twin.named_buffers())
    Given(network)(images(), domain_indices(EVERYWHERE))
    same_statistics(twin, network, 0)
    close(Given(twin.eval())(images(), 2), Given(network.eval())(images(), 2), 0)


@pytest.mark.parametrize("system", ["batch", "dson", "gated", "dwt"])
def test_four_threads_with_different_conditions(system: str) -> None:
    """One domain, indices, weights and other indices at the same time compute what each computes by itself."""
    network = Given(small_network(system).eval())
    conditions: list[Any] = [1, torch.tensor(EVERYWHERE), WEIGHTS, torch.tensor(LACKING)]

    def serve(domain: Any) -> list[Tensor]:
        with torch.inference_mode():
            return [network(images(), domain) for _ in range(8)]

    serial = [serve(domain)[0] for domain in conditions]
    with ThreadPoolExecutor(4) as threads:
        for expected, answers in zip(serial, threads.map(serve, conditions), strict=True):
            assert all(torch.equal(answer, expected) for answer in answers)


def seen_by_threads() -> list[Any]:
    """Return the domain that each of four threads sees when all four are inside a pass."""
    barrier = Barrier(4, timeout=30)

    class Waiting(nn.Module):
        def forward(self, x: Tensor) -> Any:
            barrier.wait()
            condition = current_condition()
            barrier.wait()
            return condition

    network = Given(Waiting())
    with ThreadPoolExecutor(4) as threads:
        return [c and c.domain for c in threads.map(lambda camera: network(images(2), camera), range(4))]


def test_the_condition_belongs_to_its_thread(monkeypatch) -> None:
    """All threads are inside their passes at once; a condition that threads share is refused."""
    assert seen_by_threads() == [0, 1, 2, 3]
    monkeypatch.setattr(condition_module, "_STATE", SimpleNamespace(condition=None))
    assert seen_by_threads() != [0, 1, 2, 3]
