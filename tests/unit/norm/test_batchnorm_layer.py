"""DomainBatchNorm against its slow oracle, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers.domain_loop import (
    AFFINE,
    CHANNELS,
    MODES,
    NAMES,
    PATHS,
    check_a_mixed_batch,
    check_absent_domains,
    loop_oracle,
    make_layer,
    plain_of,
    sorted_runs,
    vectorised,
)
from reid.errors import ConditionError
from reid.norm import DomainBatchNorm, Given


@MODES
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shape", [(6, CHANNELS, 4, 3), (6, CHANNELS)])
def test_an_int_domain_is_torchs_batchnorm_bit_for_bit(training: bool, momentum: float | None, shape: tuple) -> None:
    """Output, buffers and gradients are compared."""
    layer = make_layer(momentum=momentum).train(training)
    plain = plain_of(layer, 1, nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)
    before = layer.running_mean.clone()
    x = torch.randn(shape, requires_grad=True)
    twin = x.detach().clone().requires_grad_(True)
    for _ in range(3):
        ours, theirs = Given(layer)(x, 1), plain(twin)
        assert torch.equal(ours, theirs)
    (ours.square().sum()).backward()
    (theirs.square().sum()).backward()
    assert torch.equal(x.grad, twin.grad)
    assert torch.equal(layer.weight.grad, plain.weight.grad)
    assert torch.equal(layer.running_mean[1], plain.running_mean)
    assert torch.equal(layer.running_var[1], plain.running_var)
    assert layer.num_batches_tracked[1] == plain.num_batches_tracked
    assert torch.equal(layer.running_mean[[0, 2]], before[[0, 2]])


@PATHS
@MODES
@AFFINE
@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_mixed_batch_is_the_loop_over_domains(path, training: bool, affine: str | None, momentum) -> None:
    check_a_mixed_batch(path, training, affine, momentum)


def test_rows_sorted_by_given_are_exact() -> None:
    """With ``Given`` a mixed batch equals the BatchNorm of each domain bit for bit."""
    layer = make_layer()
    domain = torch.tensor([2, 0, 1, 2, 2, 0, 2])
    x = torch.randn(7, CHANNELS, 4, 3)
    expected, plains = loop_oracle(layer, x, domain)
    assert torch.equal(sorted_runs(layer, x, domain), expected)
    assert all(torch.equal(layer.running_var[g], plain.running_var) for g, plain in enumerate(plains))


@AFFINE
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradient_the_runs_are_written_in_place_bit_for_bit(affine, memory, dtype, mode) -> None:
    """In evaluation no copy joins the runs; the input and the running statistics stay as they are."""
    layer, domain = make_layer(affine=affine).eval(), torch.tensor([2, 0, 1, 2, 2, 0, 2])
    x = torch.randn(7, CHANNELS, 4, 3).to(dtype).to(memory_format=memory)
    before, state = x.clone(), {key: value.clone() for key, value in layer.named_buffers()}
    expected = loop_oracle(layer, x, domain)[0] if affine else sorted_runs(layer, x, domain)
    with mode():
        y = sorted_runs(layer, x, domain)
    assert y.is_contiguous(memory_format=memory)
    assert torch.equal(y, expected)
    assert torch.equal(x, before)
    assert all(torch.equal(value, state[key]) for key, value in layer.named_buffers())


@PATHS
def test_gradients_are_those_of_finite_differences(path) -> None:
    """Gradients are checked in float64 and in training, where the statistics depend on the batch."""
    layer = make_layer().double()
    domain = torch.tensor([1, 0, 1, 0, 2])
    x = torch.randn(5, CHANNELS, 2, 2, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        fresh = copy.deepcopy(layer)
        del fresh.weight, fresh.bias
        fresh.weight, fresh.bias = weight, bias
        return path(fresh, x, domain)

    inputs = (x, layer.weight.detach().requires_grad_(True), layer.bias.detach().requires_grad_(True))
    assert torch.autograd.gradcheck(run, inputs)


@PATHS
@MODES
def test_absent_domains_stay_bit_for_bit(path, training: bool) -> None:
    check_absent_domains(path, training)


@PATHS
def test_a_domain_with_a_single_value_uses_its_running_statistics(path) -> None:
    """One image after global pooling has no variance; normalizing it by itself would erase it."""
    layer = make_layer()
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(4, CHANNELS)
    y = path(layer, x, torch.tensor([0, 1, 0, 0]))
    expected = plain_of(layer.eval(), 1, nn.BatchNorm1d)(x[1:2])
    torch.testing.assert_close(y[1:2], expected)
    assert torch.equal(layer.running_mean[1], before["running_mean"][1])
    assert layer.num_batches_tracked.tolist() == [1, 0, 0]


def test_a_single_image_of_one_domain_uses_running_statistics() -> None:
    layer = make_layer()
    x = torch.randn(1, CHANNELS)
    torch.testing.assert_close(Given(layer)(x, 2), plain_of(copy.deepcopy(layer).eval(), 2, nn.BatchNorm1d)(x))


@PATHS
@MODES
def test_other_domains_do_not_change_a_domain(path, training: bool) -> None:
    """Other images of one domain leave the outputs of another domain bit-equal."""
    domain = torch.tensor([0, 1, 0, 1, 1, 0])
    x = torch.randn(6, CHANNELS, 3, 3)
    other = torch.where((domain == 1)[:, None, None, None], x * 100 + 7, x)
    first = path(make_layer().train(training), x, domain)
    second = path(make_layer().train(training), other, domain)
    assert torch.equal(first[domain == 0], second[domain == 0])
    assert not torch.equal(first[domain == 1], second[domain == 1])


@PATHS
@MODES
@settings(max_examples=25, deadline=None)
@hypothesis_given(data=st.data())
def test_order_of_rows_and_names_of_domains_do_not_matter(path, training: bool, data) -> None:
    """Permuting the batch permutes the output; renaming domains together with their rows changes nothing."""
    rows = data.draw(st.integers(1, 9))
    domain = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=rows, max_size=rows)))
    shuffle = torch.tensor(data.draw(st.permutations(range(rows))))
    rename = torch.tensor(data.draw(st.permutations(range(3))))  # domain g becomes rename[g]
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, CHANNELS, 3, 2, generator=generator) * 2 + 1
    layer = make_layer(affine="domain").train(training)
    renamed = DomainBatchNorm(CHANNELS, [NAMES[g] for g in torch.argsort(rename)], affine="domain").train(training)
    renamed.load_state_dict(layer.state_dict())
    y = path(copy.deepcopy(layer), x, domain)
    torch.testing.assert_close(
        path(copy.deepcopy(layer), x[shuffle], domain[shuffle]), y[shuffle], rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(path(renamed, x, rename[domain]), y, rtol=1e-4, atol=1e-5)


@settings(max_examples=30, deadline=None)
@hypothesis_given(
    rows=st.integers(1, 8),
    height=st.integers(1, 4),
    width=st.integers(1, 4),
    seed=st.integers(0, 1000),
    shift=st.floats(-50, 50),
)
def test_both_paths_agree(rows: int, height: int, width: int, seed: int, shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    domain = torch.randint(0, 3, (rows,), generator=generator)
    x = torch.randn(rows, CHANNELS, height, width, generator=generator) + shift
    one, other = make_layer(), make_layer()
    # A run of two near-equal values magnifies rounding by 1/sqrt(eps): compare with that in mind.
    torch.testing.assert_close(vectorised(one, x, domain), sorted_runs(other, x, domain), rtol=1e-3, atol=2e-2)
    torch.testing.assert_close(one.running_mean, other.running_mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@PATHS
def test_half_precision_activations_keep_exact_statistics(path, dtype: torch.dtype) -> None:
    """The variance of values above 255 overflows float16: statistics are float32."""
    layer, reference = make_layer(), make_layer()
    domain = torch.tensor([0, 1] * 4)
    x = (torch.randn(8, CHANNELS, 4, 4) * 300).to(dtype)
    y = path(layer, x, domain)
    assert y.dtype == dtype
    path(reference, x.float(), domain)
    torch.testing.assert_close(layer.running_var, reference.running_var, rtol=1e-3, atol=0)
    assert torch.isfinite(y).all()


def test_a_missing_condition_raises() -> None:
    with pytest.raises(ConditionError, match=r"a, b, c.*Given"):
        make_layer()(torch.randn(2, CHANNELS, 2, 2))
    assert DomainBatchNorm(CHANNELS, ["only"])(torch.randn(2, CHANNELS, 2, 2)).shape == (2, CHANNELS, 2, 2)


@pytest.mark.parametrize(
    ("domain", "wrong"), [(3, 3), (-1, -1), (torch.tensor([0, 3]), 3), (torch.tensor([0, -1]), -1)]
)
def test_a_domain_out_of_range_raises(domain: int | Tensor, wrong: int) -> None:
    with pytest.raises(ConditionError, match=rf"domain {wrong} .* 3$"):
        Given(make_layer())(torch.randn(2, CHANNELS, 2, 2), domain)


@pytest.mark.parametrize("domain", [torch.tensor([0.0, 1.0]), torch.tensor([0, 1, 2]), torch.tensor([[0], [1]])])
def test_domains_of_another_shape_or_type_raise(domain: Tensor) -> None:
    with pytest.raises(ConditionError, match=r"\(2,\)"):
        Given(make_layer())(torch.randn(2, CHANNELS, 2, 2), domain)


@MODES
def test_an_empty_batch_stays_empty(training: bool) -> None:
    layer = make_layer().train(training)
    domain = torch.zeros(0, dtype=torch.int64)
    assert Given(layer)(torch.zeros(0, CHANNELS, 2, 2), domain).shape == (0, CHANNELS, 2, 2)
    assert torch.isfinite(layer.running_var).all()


@pytest.mark.parametrize("domain", [[0, 1], ["a", 1], 0.5])
def test_a_domain_of_another_type_raises(domain: object) -> None:
    with pytest.raises(ConditionError, match=type(domain).__name__):
        Given(make_layer())(torch.randn(2, CHANNELS, 2, 2), domain)
