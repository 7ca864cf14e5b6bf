"""Whitening is compared with slow, obvious code: a loop over domains and blocks, textbook covariances, BatchNorm.

The wrong code that these tests catch: ZCA taken for Cholesky, no shrinkage, running covariances that are shrunk,
unbiased, mixed between domains or without the covariance between images, the domain of the first row used for the
whole batch, running statistics of absent domains changed, matrices of evaluation that are not computed again.
"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers.whitening_oracles import (
    METHODS,
    NAMES,
    SIZE,
    C,
    block_diagonal,
    close,
    columns,
    images,
    make_layer,
    slow_cov,
    slow_root,
    slow_whitening,
)
from reid.norm import Condition, DomainBatchNorm, Given, given
from reid.norm.covariance import covariances
from reid.norm.domain_whitening import DomainWhitening

# The layer.


@METHODS
@settings(max_examples=15, deadline=None)
@hypothesis_given(domain=st.lists(st.integers(0, 2), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_training_is_the_loop_over_domains(method: str, domain: list[int], seed: int) -> None:
    x, layer = images(len(domain), seed, torch.float64), make_layer(method=method)
    before = copy.deepcopy(layer)
    y = Given(layer)(x, torch.tensor(domain))
    expected = slow_whitening(x, domain, method) * layer.weight[:, None, None] + layer.bias[:, None, None]
    close(y, expected, 1e-7)
    for row, (mean, cov) in enumerate(zip(layer.running.mean, layer.running.cov, strict=True)):
        old = before.running[row : row + 1]
        if row not in domain:
            assert torch.equal(mean, old.mean[0])
            assert torch.equal(cov, old.cov[0])
            continue
        own = x[torch.tensor(domain) == row]
        dense = torch.stack([slow_cov(own)[i : i + SIZE, i : i + SIZE] for i in range(0, C, SIZE)])
        close(mean, 0.9 * old.mean[0] + 0.1 * columns(own).mean(1))
        close(cov, 0.9 * old.cov[0] + 0.1 * dense)  # biased, and not shrunk
        assert layer.num_batches_tracked[row] == 1


def test_the_oracle_fails_on_wrong_layers() -> None:
    x, domain = images(6, dtype=torch.float64), [0, 1, 2, 1, 0, 2]
    expected = slow_whitening(x, domain)
    wrong = {
        "the domain of the first row": slow_whitening(x, [domain[0]] * 6),
        "zca": slow_whitening(x, domain, "zca"),
        "no shrinkage": slow_whitening(x, domain, eps=0.0),
        "BatchNorm": torch.cat([slow_whitening(x[:, [c] * C], domain)[:, :1] for c in range(C)], 1),
    }
    for name, y in wrong.items():
        assert (y - expected).abs().max() > 1e-4, name


def check_running(running: Tensor, x: Tensor) -> None:
    """Check the running covariances (K, g, g) of one domain after one batch of momentum 1: biased, and not shrunk."""
    dense = slow_cov(x)
    close(running, torch.stack([dense[i : i + SIZE, i : i + SIZE] for i in range(0, C, SIZE)]))


def test_the_oracle_fails_on_wrong_statistics() -> None:
    x, domain = images(6, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1, 0])
    own, layer = x[domain == 0], make_layer(momentum=1.0)
    Given(layer)(x, domain)
    right = layer.running.cov[0]
    check_running(right, own)
    values = columns(own).shape[1]
    wrong = {
        "unbiased": right * values / (values - 1),
        "shrunk": 0.999 * right + 0.001 * torch.eye(SIZE),
        "only variances": torch.diag_embed(right.diagonal(dim1=-2, dim2=-1)),
        "domains mixed": covariances(x, torch.zeros(6).long(), 1, SIZE).cov[0],
        "between images lost": torch.stack(
            [covariances(image[None], torch.zeros(1).long(), 1, SIZE).cov[0] for image in own]
        ).mean(0),
        "of the other domain": layer.running.cov[1],
    }
    for cov in wrong.values():
        with pytest.raises(AssertionError):
            check_running(cov, own)


def test_blocks_of_one_channel_are_batchnorm() -> None:
    x, domain, eps = images(8), torch.tensor([0, 1, 1, 0, 1, 1, 0, 0]), 1e-3
    y = Given(DomainWhitening(C, NAMES[:2], block_size=1, eps=eps))(x, domain)
    plain = Given(DomainBatchNorm(C, NAMES[:2], eps=eps / (1 - eps)))(x, domain)
    close(y, plain / (1 - eps) ** 0.5, 1e-4)  # 1 / sqrt((1 - eps) var + eps)


@METHODS
def test_all_paths_agree_in_evaluation(method: str) -> None:
    x, layer = images(6, dtype=torch.float64), make_layer(method=method).eval()
    domain = torch.tensor([2, 0, 1, 1, 0, 2])
    mixed, soft = Given(layer)(x, domain), Given(layer)(x, torch.eye(3).double()[domain])
    close(soft, mixed)
    for row, index in enumerate(domain.tolist()):
        single = Given(layer)(x[row : row + 1], index)
        close(single[0], mixed[row])
        running = layer.running
        w = block_diagonal(
            torch.stack([slow_root(0.999 * s + 0.001 * torch.eye(SIZE), method) for s in running.cov[index]])
        )
        white = torch.einsum("cd,dhw->chw", w, x[row] - running.mean[index][:, None, None])
        close(mixed[row], white * layer.weight[:, None, None] + layer.bias[:, None, None])
        extracted = layer.extracted(index)
        assert isinstance(extracted, nn.Conv2d)
        assert torch.equal(extracted(x), Given(layer)(x, index))


def test_soft_weights_mix_outputs() -> None:
    x, layer = images(4, dtype=torch.float64), make_layer().eval()
    weights = torch.softmax(torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), 1)
    outputs = torch.stack([Given(layer)(x, domain) for domain in range(3)], 1)  # (B, G, C, H, W)
    close(Given(layer)(x, weights), (weights[:, :, None, None, None] * outputs).sum(1))


def test_gradients_are_those_of_the_oracle_and_domains_are_independent() -> None:
    x, domain = images(6, dtype=torch.float64), [0, 1, 1, 0, 1, 0]
    slope = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    layer, fast, slow = make_layer(), x.clone().requires_grad_(), x.clone().requires_grad_()
    (Given(layer)(fast, torch.tensor(domain)) * slope).sum().backward()
    (slow_whitening(slow, domain) * layer.weight.detach()[:, None, None] * slope).sum().backward()
    close(fast.grad, slow.grad, 1e-7)
    other = x.clone()
    other[[1, 2, 4]] *= 7
    outputs = [Given(make_layer())(images_, torch.tensor(domain)) for images_ in (x, other)]
    assert torch.equal(*(y[[0, 3, 5]] for y in outputs))


def test_evaluation_after_one_batch_of_momentum_one_is_training() -> None:
    x, domain, layer = images(dtype=torch.float64), torch.tensor([0, 1, 2] * 3), make_layer(momentum=1.0)
    y = Given(layer)(x, domain)
    close(Given(layer.eval())(x, domain), y)


def test_momentum_none_averages_batches() -> None:
    layer = make_layer(momentum=None)
    parts = [images(4, seed, torch.float64) for seed in (1, 2, 3)]
    for part in parts:
        Given(layer)(part, 1)
    close(layer.running.mean[1], torch.stack([columns(part).mean(1) for part in parts]).mean(0))
    assert layer.num_batches_tracked.tolist() == [0, 3, 0]


def test_a_domain_with_too_few_values_is_whitened_by_its_running_statistics() -> None:
    layer = make_layer(plain=nn.BatchNorm1d)
    vectors, domain = images(SIZE + 4, dtype=torch.float64)[:, :, 0, 0], torch.tensor([0] * (SIZE + 1) + [1] * SIZE)
    before, evaluated = copy.deepcopy(layer), copy.deepcopy(layer).eval()
    y = Given(layer)(vectors, domain)
    close(y[SIZE + 1 :], Given(evaluated)(vectors, domain)[SIZE + 1 :])
    assert (y[: SIZE + 1] - Given(evaluated)(vectors, domain)[: SIZE + 1]).abs().max() > 0.1
    assert torch.equal(layer.running.cov[1], before.running.cov[1])
    assert layer.num_batches_tracked.tolist() == [1, 0, 0]
    linear = layer.eval().extracted(1)
    assert isinstance(linear, nn.Linear)
    close(linear(vectors), Given(layer)(vectors, 1))


def test_a_condition_without_update_moves_nothing() -> None:
    layer = make_layer()
    before = copy.deepcopy(layer.state_dict())
    with given(Condition(torch.tensor([0, 1, 1, 0]), update=False)):
        layer(images(4, dtype=torch.float64))
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items() if key != "_extra_state")


def test_matrices_follow_every_change_of_the_statistics() -> None:
    x, layer = images(dtype=torch.float64), make_layer().eval()
    other = covariances(images(5, 70, torch.float64), torch.zeros(5).long(), 1, SIZE)
    first = Given(layer)(x, 1)
    assert layer.whitening is layer.eval().whitening  # nothing was written, so nothing is computed again
    stale = layer.whitening
    layer.set_statistics(1, other, 0)
    expected = Given(layer)(x, 1)
    written = make_layer().eval()
    with torch.no_grad():  # as an average of weights (EMA) writes
        written.running_mean[1], written.running_cov[1] = other.mean[0], other.cov[0]
    loaded = make_layer().eval()
    loaded.load_state_dict(layer.state_dict())
    replaced, tensor = make_layer().eval(), layer.running_cov.clone()
    while tensor._version < replaced.running_cov._version:  # only its identity differs from that of the old one
        tensor.add_(0)
    replaced.running_mean, replaced.running_cov = layer.running_mean.clone(), tensor
    for changed in (written, loaded, replaced, copy.deepcopy(written), copy.deepcopy(layer)):
        assert torch.equal(Given(changed)(x, 1), expected)
    layer.whitening = stale  # the wrong layer: new means, old matrices
    assert (Given(layer)(x, 1) - expected).abs().max() > 1e-2
    assert (first - expected).abs().max() > 1e-2


def test_a_layer_used_in_inference_mode_can_be_trained() -> None:
    """A layer first used under inference_mode can still be trained, and evaluated with gradients."""
    x = images(6, dtype=torch.float64).requires_grad_()
    layer = make_layer()
    with torch.no_grad():
        layer.running_cov.mul_(2)
    with torch.inference_mode():
        served = Given(layer.eval())(x, 0)
        moved = copy.deepcopy(layer)
        assert torch.equal(Given(moved)(x, 0), served)
    y = Given(layer)(x, 0)
    y.sum().backward()
    assert torch.equal(y, served.clone())
    Given(layer.train())(x, 0).sum().backward()


def test_half_precision_computes_in_float32() -> None:
    x, domain = images(8), torch.tensor([0, 1] * 4)
    layer = DomainWhitening(C, NAMES[:2], block_size=SIZE)
    expected = Given(copy.deepcopy(layer))(x.bfloat16().float(), domain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = Given(layer)(x.bfloat16(), domain)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected.bfloat16())
    x.requires_grad_()
    Given(layer)(x.bfloat16(), domain).float().sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("domain", [1, torch.tensor([0, 1, 2] * 2)])
def test_channels_last_gives_the_same_and_stays_channels_last(domain: int | Tensor) -> None:
    x = images(6, dtype=torch.float64)
    for mode in (True, False):
        expected, y = (
            Given(make_layer().train(mode))(maps, domain)
            for maps in (x, x.contiguous(memory_format=torch.channels_last))
        )
        close(expected, y)
        assert expected.is_contiguous()
        assert y.is_contiguous(memory_format=torch.channels_last)
