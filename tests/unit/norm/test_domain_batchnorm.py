"""DomainBatchNorm against its slow oracle, a loop over plain BatchNorm layers: one for each domain.

The wrong layers these tests catch, each shown to be refused at the end: statistics mixed between domains, the
variance between images lost, biased and unbiased variance swapped, the first row's label used for the whole batch,
affine not shared, or that of the first domain for all, momentum taken for decay, statistics without gradient, running
statistics of absent domains touched, a domain of one value normalized to zero.
"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reid.errors import ConditionError
from reid.norm import Condition, DomainBatchNorm, Given, given

CHANNELS = 5
NAMES = ("a", "b", "c")


def make_layer(**options) -> DomainBatchNorm:
    """A layer whose three domains and affine all differ."""
    torch.manual_seed(0)
    layer = DomainBatchNorm(CHANNELS, NAMES, **options)
    with torch.no_grad():
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
        if layer.weight is not None:
            layer.weight.uniform_(0.5, 2)
            layer.bias.normal_()
    return layer


def plain_of(layer: DomainBatchNorm, domain: int, kind: type[nn.Module] = nn.BatchNorm2d) -> nn.Module:
    """torch's own layer with the state of one domain."""
    plain = kind(CHANNELS, eps=layer.eps, momentum=layer.momentum)
    state = {}
    for key, value in layer.state_dict().items():
        if isinstance(value, Tensor):
            per_domain = key not in ("weight", "bias") or layer.affine == "domain"
            state[key] = value[domain] if per_domain else value
    plain.load_state_dict(state)
    return plain.train(layer.training)


def loop_oracle(layer: DomainBatchNorm, x: Tensor, labels: Tensor) -> tuple[Tensor, list[nn.Module]]:
    """Pick out each domain's images and give them to a BatchNorm of their own."""
    plains = [plain_of(layer, g) for g in range(len(layer.domains))]
    out = torch.empty_like(x)
    for g, plain in enumerate(plains):
        if (labels == g).any():
            out[labels == g] = plain(x[labels == g])
    return out, plains


def vectorised(layer: DomainBatchNorm, x: Tensor, labels: Tensor) -> Tensor:
    with given(Condition(labels)):
        return layer(x)


def sorted_runs(layer: DomainBatchNorm, x: Tensor, labels: Tensor) -> Tensor:
    return Given(layer)(x, labels)


PATHS = pytest.mark.parametrize("path", [vectorised, sorted_runs])
MODES = pytest.mark.parametrize("training", [True, False])
AFFINE = pytest.mark.parametrize("affine", ["shared", "domain", None])


@MODES
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shape", [(6, CHANNELS, 4, 3), (6, CHANNELS)])
def test_an_int_domain_is_torchs_batchnorm_bit_for_bit(training: bool, momentum: float | None, shape: tuple) -> None:
    """T1: output, buffers and gradients."""
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


def check_a_mixed_batch(path, training: bool, affine: str | None, momentum: float | None) -> None:
    """Outputs, buffers and gradients of a batch with 1 to 4 images a domain, in no order."""
    layer = make_layer(affine=affine, momentum=momentum).train(training)
    if affine is None:
        layer_for_loop = make_layer(affine="shared", momentum=momentum).train(training)
        nn.init.ones_(layer_for_loop.weight)
        nn.init.zeros_(layer_for_loop.bias)
    else:
        layer_for_loop = copy.deepcopy(layer)
    labels = torch.tensor([2, 0, 1, 2, 2, 0, 2])
    x = (torch.randn(7, CHANNELS, 4, 3) * 3 + labels[:, None, None, None]).requires_grad_(True)
    twin = x.detach().clone().requires_grad_(True)
    expected, plains = loop_oracle(layer_for_loop, twin, labels)
    got = path(layer, x, labels)
    torch.testing.assert_close(got, expected, rtol=2e-5, atol=1e-5)
    direction = torch.randn_like(got)
    (got * direction).sum().backward()
    (expected * direction).sum().backward()
    torch.testing.assert_close(x.grad, twin.grad, rtol=1e-4, atol=1e-5)
    for g, plain in enumerate(plains):
        torch.testing.assert_close(layer.running_mean[g], plain.running_mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer.running_var[g], plain.running_var, rtol=1e-5, atol=1e-6)
        assert layer.num_batches_tracked[g] == plain.num_batches_tracked
    if affine == "domain":
        torch.testing.assert_close(
            layer.weight.grad, torch.stack([p.weight.grad for p in plains]), rtol=1e-4, atol=1e-4
        )
    elif affine == "shared":
        torch.testing.assert_close(layer.weight.grad, sum(p.weight.grad for p in plains), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer.bias.grad, sum(p.bias.grad for p in plains), rtol=1e-4, atol=1e-4)


@PATHS
@MODES
@AFFINE
@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_mixed_batch_is_the_loop_over_domains(path, training: bool, affine: str | None, momentum) -> None:
    """T2."""
    check_a_mixed_batch(path, training, affine, momentum)


def test_rows_sorted_at_the_door_are_exact() -> None:
    """T2: by ``Given`` the mixed batch equals each domain's own BatchNorm bit for bit."""
    layer = make_layer()
    labels = torch.tensor([2, 0, 1, 2, 2, 0, 2])
    x = torch.randn(7, CHANNELS, 4, 3)
    expected, plains = loop_oracle(layer, x, labels)
    assert torch.equal(sorted_runs(layer, x, labels), expected)
    assert all(torch.equal(layer.running_var[g], plain.running_var) for g, plain in enumerate(plains))


@AFFINE
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradient_the_runs_are_written_in_place_bit_for_bit(affine, memory, dtype, mode) -> None:
    """In evaluation no copy puts the runs together; the input and the kept statistics stay."""
    layer, labels = make_layer(affine=affine).eval(), torch.tensor([2, 0, 1, 2, 2, 0, 2])
    x = torch.randn(7, CHANNELS, 4, 3).to(dtype).to(memory_format=memory)
    before, state = x.clone(), {key: value.clone() for key, value in layer.named_buffers()}
    expected = loop_oracle(layer, x, labels)[0] if affine else sorted_runs(layer, x, labels)
    with mode():
        y = sorted_runs(layer, x, labels)
    assert y.is_contiguous(memory_format=memory)
    assert torch.equal(y, expected)
    assert torch.equal(x, before)
    assert all(torch.equal(value, state[key]) for key, value in layer.named_buffers())


@PATHS
def test_gradients_are_those_of_finite_differences(path) -> None:
    """T2: gradcheck in float64, in training, where the statistics depend on the batch."""
    layer = make_layer().double()
    labels = torch.tensor([1, 0, 1, 0, 2])
    x = torch.randn(5, CHANNELS, 2, 2, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        fresh = copy.deepcopy(layer)
        del fresh.weight, fresh.bias
        fresh.weight, fresh.bias = weight, bias
        return path(fresh, x, labels)

    inputs = (x, layer.weight.detach().requires_grad_(True), layer.bias.detach().requires_grad_(True))
    assert torch.autograd.gradcheck(run, inputs)


@PATHS
@MODES
def test_absent_domains_stay_bit_for_bit(path, training: bool) -> None:
    """T3."""
    check_absent_domains(path, training)


@PATHS
def test_a_domain_with_a_single_value_uses_its_running_statistics(path) -> None:
    """T3: one image after global pooling has no variance; normalizing it by itself would erase it."""
    layer = make_layer()
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(4, CHANNELS)
    y = path(layer, x, torch.tensor([0, 1, 0, 0]))
    expected = plain_of(layer.eval(), 1, nn.BatchNorm1d)(x[1:2])
    torch.testing.assert_close(y[1:2], expected)
    assert torch.equal(layer.running_mean[1], before["running_mean"][1])
    assert layer.num_batches_tracked.tolist() == [1, 0, 0]


def test_one_image_alone_as_an_int_domain_uses_running_statistics() -> None:
    layer = make_layer()
    x = torch.randn(1, CHANNELS)
    torch.testing.assert_close(Given(layer)(x, 2), plain_of(copy.deepcopy(layer).eval(), 2, nn.BatchNorm1d)(x))


@PATHS
@MODES
def test_a_domain_does_not_feel_the_others(path, training: bool) -> None:
    """T4: other images in domain b leave domain a's output bit-equal."""
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    x = torch.randn(6, CHANNELS, 3, 3)
    other = torch.where((labels == 1)[:, None, None, None], x * 100 + 7, x)
    first = path(make_layer().train(training), x, labels)
    second = path(make_layer().train(training), other, labels)
    assert torch.equal(first[labels == 0], second[labels == 0])
    assert not torch.equal(first[labels == 1], second[labels == 1])


@PATHS
@MODES
@settings(max_examples=25, deadline=None)
@hypothesis_given(data=st.data())
def test_order_of_rows_and_names_of_domains_do_not_matter(path, training: bool, data) -> None:
    """T5: permuting the batch permutes the output; renaming labels with their rows changes nothing."""
    rows = data.draw(st.integers(1, 9))
    labels = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=rows, max_size=rows)))
    shuffle = torch.tensor(data.draw(st.permutations(range(rows))))
    rename = torch.tensor(data.draw(st.permutations(range(3))))  # domain g becomes rename[g]
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, CHANNELS, 3, 2, generator=generator) * 2 + 1
    layer = make_layer(affine="domain").train(training)
    renamed = DomainBatchNorm(CHANNELS, [NAMES[g] for g in torch.argsort(rename)], affine="domain").train(training)
    renamed.load_state_dict(layer.state_dict())
    y = path(copy.deepcopy(layer), x, labels)
    torch.testing.assert_close(
        path(copy.deepcopy(layer), x[shuffle], labels[shuffle]), y[shuffle], rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(path(renamed, x, rename[labels]), y, rtol=1e-4, atol=1e-5)


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
    labels = torch.randint(0, 3, (rows,), generator=generator)
    x = torch.randn(rows, CHANNELS, height, width, generator=generator) + shift
    one, other = make_layer(), make_layer()
    # A run of two near-equal values magnifies rounding by 1/sqrt(eps): compare with that in mind.
    torch.testing.assert_close(vectorised(one, x, labels), sorted_runs(other, x, labels), rtol=1e-3, atol=2e-2)
    torch.testing.assert_close(one.running_mean, other.running_mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@PATHS
def test_half_precision_activations_keep_exact_statistics(path, dtype: torch.dtype) -> None:
    """The variance of values above 255 overflows float16: statistics are float32."""
    layer, reference = make_layer(), make_layer()
    labels = torch.tensor([0, 1] * 4)
    x = (torch.randn(8, CHANNELS, 4, 4) * 300).to(dtype)
    y = path(layer, x, labels)
    assert y.dtype == dtype
    path(reference, x.float(), labels)
    torch.testing.assert_close(layer.running_var, reference.running_var, rtol=1e-3, atol=0)
    assert torch.isfinite(y).all()


def test_a_missing_condition_raises() -> None:
    with pytest.raises(ConditionError, match=r"a, b, c.*Given"):
        make_layer()(torch.randn(2, CHANNELS, 2, 2))
    assert DomainBatchNorm(CHANNELS, ["only"])(torch.randn(2, CHANNELS, 2, 2)).shape == (2, CHANNELS, 2, 2)


@pytest.mark.parametrize("domain", [3, -1, torch.tensor([0, 3]), torch.tensor([0, -1])])
def test_a_domain_out_of_range_raises(domain) -> None:
    with pytest.raises(ConditionError, match="out of range"):
        Given(make_layer())(torch.randn(2, CHANNELS, 2, 2), domain)


@pytest.mark.parametrize("labels", [torch.tensor([0.0, 1.0]), torch.tensor([0, 1, 2]), torch.tensor([[0], [1]])])
def test_labels_of_another_shape_or_type_raise(labels: Tensor) -> None:
    with pytest.raises(ConditionError, match=r"expected int64 of shape \(2,\)"):
        Given(make_layer())(torch.randn(2, CHANNELS, 2, 2), labels)


@MODES
def test_an_empty_batch_stays_empty(training: bool) -> None:
    layer = make_layer().train(training)
    labels = torch.zeros(0, dtype=torch.int64)
    assert Given(layer)(torch.zeros(0, CHANNELS, 2, 2), labels).shape == (0, CHANNELS, 2, 2)
    assert torch.isfinite(layer.running_var).all()


@pytest.mark.parametrize("domain", [[0, 1], ["a", 1], 0.5])
def test_a_domain_of_another_type_raises(domain: object) -> None:
    with pytest.raises(ConditionError, match=type(domain).__name__):
        Given(make_layer())(torch.randn(2, CHANNELS, 2, 2), domain)


# The oracle refuses wrong layers.


class Loop:
    """A layer written out as a loop over its domains, with one mistake; a path as the tests above take it."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def __call__(self, layer: DomainBatchNorm, x: Tensor, labels: Tensor) -> Tensor:
        if self.wrong == "the first row's label":
            labels = labels[:1].expand_as(labels)
        rows = [self._row(layer, x, labels, domain) for domain in range(len(layer.domains))]
        self._update_absent(layer, labels)
        scale, shift = (torch.stack(values)[labels][:, :, None, None] for values in zip(*rows, strict=True))
        return x * scale + shift

    def _row(self, layer: DomainBatchNorm, x: Tensor, labels: Tensor, domain: int) -> tuple[Tensor, Tensor]:
        own = x if self.wrong == "domains mixed" else x[labels == domain]
        mean, var = layer.running_mean[domain].clone(), layer.running_var[domain].clone()
        if layer.training and (labels == domain).any():
            mean = own.mean((0, 2, 3))
            if self.wrong == "the running mean subtracted":
                mean = layer.running_mean[domain].clone()
            axes, correction = (0, 2, 3), int(self.wrong == "unbiased variance normalizes")
            var = own.var(axes, correction=correction)
            if self.wrong == "variance between images lost":
                var = own.var((2, 3), correction=0).mean(0)
            self._update(layer, domain, own)
        if self.wrong == "statistics detached":
            mean, var = mean.detach(), var.detach()
        affine = 0 if self.wrong == "affine of the first domain" else domain
        weight, bias = (p[affine] if p.dim() == 2 else p for p in (layer.weight, layer.bias))
        if self.wrong == "affine of each domain":
            weight = weight * (1 + 0.1 * domain)
        eps = 1e-3 if self.wrong == "another eps" else layer.eps
        scale = weight / (var + eps).sqrt()
        return scale, bias - mean * scale

    @torch.no_grad()
    def _update(self, layer: DomainBatchNorm, domain: int, own: Tensor) -> None:
        layer.num_batches_tracked[domain] += 1
        rate = 1.0 if self.wrong == "the last batch alone" else layer.momentum
        rate = 1 - rate if self.wrong == "momentum as decay" else rate
        correct = own[:, 0].numel() > 1 and self.wrong != "biased variance kept"
        var = own.var((0, 2, 3), correction=int(correct))
        layer.running_mean[domain] += rate * (own.mean((0, 2, 3)) - layer.running_mean[domain])
        layer.running_var[domain] += rate * (var - layer.running_var[domain])

    @torch.no_grad()
    def _update_absent(self, layer: DomainBatchNorm, labels: Tensor) -> None:
        if self.wrong == "absent domains touched" and layer.training:
            absent = torch.bincount(labels, minlength=3) == 0
            layer.running_mean[absent] *= 1 - layer.momentum


IN_TRAINING = (
    "domains mixed",
    "the first row's label",
    "variance between images lost",
    "unbiased variance normalizes",
    "biased variance kept",
    "momentum as decay",
    "the last batch alone",
    "the running mean subtracted",
    "statistics detached",
    "affine of each domain",
    "another eps",
)


@pytest.mark.parametrize("wrong", IN_TRAINING)
def test_the_loop_refuses_wrong_layers_in_training(wrong: str) -> None:
    check_a_mixed_batch(Loop(""), True, "shared", 0.1)  # else the refusal would say nothing
    with pytest.raises(AssertionError):
        check_a_mixed_batch(Loop(wrong), True, "shared", 0.1)


@pytest.mark.parametrize("affine", ["shared", "domain"])
@pytest.mark.parametrize("wrong", ["the first row's label", "affine of the first domain", "another eps"])
def test_the_loop_refuses_wrong_layers_in_evaluation(wrong: str, affine: str) -> None:
    check_a_mixed_batch(Loop(""), False, affine, 0.1)
    if wrong == "affine of the first domain" and affine == "shared":
        check_a_mixed_batch(Loop(wrong), False, affine, 0.1)  # no mistake where there is only one
        return
    with pytest.raises(AssertionError):
        check_a_mixed_batch(Loop(wrong), False, affine, 0.1)


def check_absent_domains(path, training: bool) -> None:
    layer = make_layer().train(training)
    before = copy.deepcopy(layer.state_dict())
    path(layer, torch.randn(4, CHANNELS, 3, 3), torch.tensor([0, 2, 2, 0]))
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(layer.state_dict()[key][1], before[key][1])
        assert torch.equal(layer.state_dict()[key][0], before[key][0]) is not training


def check_a_single_value(path) -> None:
    layer = make_layer()
    x = torch.randn(4, CHANNELS)
    y = path(layer, x[:, :, None, None], torch.tensor([0, 1, 0, 0])).flatten(1)
    torch.testing.assert_close(y[1:2], plain_of(make_layer().eval(), 1, nn.BatchNorm1d)(x[1:2]))
    assert torch.equal(layer.running_mean[1], make_layer().running_mean[1])


def test_touched_absent_domains_and_erased_single_images_are_refused() -> None:
    check_absent_domains(vectorised, True)
    check_absent_domains(Loop(""), True)
    with pytest.raises(AssertionError):
        check_absent_domains(Loop("absent domains touched"), True)
    check_a_single_value(vectorised)
    with pytest.raises(AssertionError):  # a loop over BatchNorm's formula knows no single values: they become 0
        check_a_single_value(Loop(""))


# Running statistics in closed form (T16: EagleEye's recalibration, Li et al. 2020).


@settings(max_examples=30, deadline=None)
@hypothesis_given(
    rate=st.sampled_from([0.01, 0.1, 0.5, 1.0]), count=st.integers(1, 12), mixed=st.booleans(), seed=st.integers(0, 99)
)
def test_running_statistics_have_their_closed_form(rate: float, count: int, mixed: bool, seed: int) -> None:
    """u_T = (1 - r)^T u_0 + r sum_k (1 - r)^(T - k) u_k in every domain present; at rate 1 the last batch alone."""
    generator = torch.Generator().manual_seed(seed)
    layer = make_layer(momentum=rate).double().train()
    before = copy.deepcopy(layer)
    batches = [torch.randn(6, CHANNELS, 3, 2, generator=generator).double() * 2 + k for k in range(count)]
    labels = torch.tensor([0, 2, 0, 2, 0, 2]) if mixed else torch.zeros(6, dtype=torch.int64)
    for x in batches:
        (sorted_runs if mixed else vectorised)(layer, x, labels)
    for domain in labels.unique().tolist():
        for key, batch in (
            ("running_mean", lambda x: x.mean((0, 2, 3))),
            ("running_var", lambda x: x.var((0, 2, 3), correction=1)),
        ):
            expected = (1 - rate) ** count * getattr(before, key)[domain]
            for k, x in enumerate(batches, 1):
                expected = expected + rate * (1 - rate) ** (count - k) * batch(x[labels == domain])
            torch.testing.assert_close(getattr(layer, key)[domain], expected)
    assert torch.equal(layer.running_mean[1], before.running_mean[1])
    assert torch.equal(layer.weight, before.weight)
