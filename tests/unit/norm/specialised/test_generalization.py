"""MixStyle, SNR and DomainNorm against their formulas, image by image (T14).

The wrong layers these tests catch: variances mixed instead of deviations, one ratio for the whole batch,
statistics that carry gradient, mixing in evaluation; a gate that restores the wrong part or the image, pairs of an
image with itself in the loss, the loss's signs swapped; channels brought to unit length before the instance norm, or
positions instead of channels, or by another length, or after a norm of the batch.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.norm.specialised.generalization import SNR, DomainNorm, MixStyle, Restitution, dual_causality_loss, mix_style
from reid.norm.specialised.style import instance_norm

CHANNELS = 5
PARTNER = torch.tensor([2, 0, 3, 1])
SHARE = torch.tensor([0.0, 0.3, 0.8, 1.0])


def maps(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, CHANNELS, 6, 4, generator=generator)
    scale = torch.rand(4, CHANNELS, 1, 1, generator=generator) * 3 + 0.2
    return x * scale + 2 * torch.randn(4, CHANNELS, 1, 1, generator=generator)


def mixed_moments(x: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """Means and deviations image by image; ``power`` 1 mixes deviations, 2 variances."""
    mean, deviation = x.mean((2, 3)), x.std((2, 3), correction=0)
    rows = []
    for i, (j, share) in enumerate(zip(PARTNER.tolist(), SHARE.tolist(), strict=True)):
        mixed = share * deviation[i] ** power + (1 - share) * deviation[j] ** power
        rows.append((share * mean[i] + (1 - share) * mean[j], mixed ** (1 / power)))
    means, deviations = zip(*rows, strict=True)
    return torch.stack(means), torch.stack(deviations)


def test_mixed_images_have_mixed_means_and_deviations() -> None:
    """Share 0 is the partner's style, share 1 the own."""
    x = maps()
    y = mix_style(x, PARTNER, SHARE)
    mean, deviation = mixed_moments(x, power=1)
    torch.testing.assert_close(y.mean((2, 3)), mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(y.std((2, 3), correction=0), deviation, rtol=1e-4, atol=1e-5)
    assert torch.equal(y[3], x[3])
    torch.testing.assert_close(instance_norm(y), instance_norm(x), rtol=1e-3, atol=1e-3)  # the content stays


@pytest.mark.parametrize("wrong", ["variances", "one ratio"])
def test_the_formula_refuses_wrong_mixtures(wrong: str) -> None:
    x = maps()
    got = mix_style(x, PARTNER, SHARE if wrong == "variances" else SHARE[1].expand(4)).std((2, 3), correction=0)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(got, mixed_moments(x, power=2 if wrong == "variances" else 1)[1], rtol=1e-3, atol=0)


def test_no_gradient_passes_through_the_statistics() -> None:
    """y is then linear in x with one slope for each image and channel; with gradient, a plain sum has none."""
    x = maps().requires_grad_(True)
    mix_style(x, PARTNER, SHARE).sum().backward()
    var = x.detach().var((2, 3), correction=0) + 1e-6
    slope = mixed_moments(x.detach(), 1)[1] / var.sqrt()
    torch.testing.assert_close(x.grad, slope[:, :, None, None].expand_as(x), rtol=1e-4, atol=1e-4)


def check_gradient(mixing) -> None:
    """The slope of every image and channel is the factor of its deviation, with nothing by way of the statistics."""
    x = maps().requires_grad_(True)
    mixing(x).sum().backward()
    slope = mixed_moments(x.detach(), 1)[1] / (x.detach().var((2, 3), correction=0) + 1e-6).sqrt()
    torch.testing.assert_close(x.grad, slope[:, :, None, None].expand_as(x), rtol=1e-4, atol=1e-4)


def attached(x: Tensor) -> Tensor:
    """Wrong: gradient passes through means and deviations."""
    mean, deviation = x.mean((2, 3)), (x.var((2, 3), correction=0) + 1e-6).sqrt()
    share = SHARE[:, None]
    to_mean, to_deviation = (share * v + (1 - share) * v[PARTNER] for v in (mean, deviation))
    factor = to_deviation / deviation
    return x * factor[:, :, None, None] + (to_mean - mean * factor)[:, :, None, None]


def test_statistics_with_gradient_are_refused() -> None:
    check_gradient(lambda x: mix_style(x, PARTNER, SHARE))
    torch.testing.assert_close(attached(maps()), mix_style(maps(), PARTNER, SHARE), rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError):
        check_gradient(attached)


def test_mixstyle_is_the_identity_in_evaluation_and_at_probability_0() -> None:
    x = maps()
    assert torch.equal(MixStyle(1.0).eval()(x), x)
    assert torch.equal(MixStyle(0.0).train()(x), x)


def test_mixstyle_mixes_with_its_probability_and_a_ratio_for_each_image() -> None:
    """The layer's draws, read from two images of constant means 0 and 1; the permutation moves both or none."""
    x = instance_norm(torch.randn(2, 1, 8, 8)) + torch.tensor([0.0, 1.0])[:, None, None, None]
    torch.manual_seed(0)
    layer = MixStyle(0.4, alpha=0.5).train()
    outputs = [layer(x) for _ in range(400)]
    moved = [y for y in outputs if not torch.equal(y, x)]
    assert 50 < len(moved) < 110  # 0.4 of the batches, half of which are permuted
    shifts = torch.stack([(y - x).mean((1, 2, 3)) for y in moved])  # (M, 2): 1 - lambda_0 and lambda_1 - 1
    assert (shifts.sum(1).abs() > 0.05).float().mean() > 0.5  # one ratio for both would cancel
    assert shifts[:, 0].max() > 0.95  # all of the other's style is among them


def test_mixstyle_of_a_small_alpha_mostly_keeps_one_style() -> None:
    """Beta(0.1, 0.1) is near 0 or 1 most of the time, Beta(1, 1) is uniform."""
    x = instance_norm(torch.randn(2, 1, 8, 8)) + torch.tensor([0.0, 1.0])[:, None, None, None]
    torch.manual_seed(0)

    def between(alpha: float) -> float:
        layer = MixStyle(1.0, alpha).train()
        means = torch.stack([layer(x).mean((1, 2, 3)) for _ in range(200)])
        return float(((means > 0.1) & (means < 0.9)).float().mean())

    assert between(0.1) < between(1.0) / 2


def test_mixstyle_compiles_to_one_graph() -> None:
    x = maps()
    compiled = torch.compile(MixStyle(0.0).train(), backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), x)


def gated(bias: float) -> SNR:
    """An SNR whose gate is the sigmoid of ``bias`` whatever the image."""
    layer = SNR(CHANNELS, reduction=2)
    nn.init.zeros_(layer.gate[2].weight)
    nn.init.constant_(layer.gate[2].bias, bias)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


def test_an_open_gate_restores_the_image_and_a_closed_one_nothing() -> None:
    x = maps()
    torch.testing.assert_close(gated(40.0)(x), x, rtol=1e-5, atol=1e-5)
    closed = gated(-120.0)
    expected = functional.instance_norm(x, weight=closed.weight, bias=closed.bias)
    torch.testing.assert_close(closed(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(closed.restitute(x).contaminated, x, rtol=1e-5, atol=1e-5)


def test_the_gate_weights_the_removed_style() -> None:
    """Squeeze-and-excitation on the residual, channel by channel; on the image itself it would differ."""
    torch.manual_seed(0)
    layer, x = SNR(CHANNELS, reduction=2), maps()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    maps_of = layer.restitute(x)
    normal = functional.instance_norm(x, weight=layer.weight, bias=layer.bias)
    removed = x - normal

    def excited(squeezed: Tensor) -> Tensor:
        first, last = layer.gate[0], layer.gate[2]
        hidden = (squeezed @ first.weight.T + first.bias).clamp_min(0)
        return 1 / (1 + (-(hidden @ last.weight.T + last.bias)).exp())

    gate = excited(removed.mean((2, 3)))[:, :, None, None]
    torch.testing.assert_close(layer(x), normal + gate * removed, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(maps_of.enhanced + maps_of.contaminated, x + maps_of.normalized, rtol=1e-4, atol=1e-4)
    wrong = excited(x.mean((2, 3)))[:, :, None, None]
    assert (gate - wrong).abs().max() > 0.01


WRONG_RESTITUTIONS = {
    "the other part": lambda x, normal, gate: normal + (1 - gate) * (x - normal),
    "the image weighed": lambda x, normal, gate: normal + gate * x,
    "added to the image": lambda x, normal, gate: x + gate * (x - normal),
    "one gate for all channels": lambda x, normal, gate: normal + gate.mean(1, keepdim=True) * (x - normal),
    "nothing given back": lambda x, normal, gate: normal,
}


@pytest.mark.parametrize("wrong", WRONG_RESTITUTIONS)
def test_wrong_restitutions_are_refused(wrong: str) -> None:
    torch.manual_seed(0)
    layer, x = SNR(CHANNELS, reduction=2), maps()
    normal = functional.instance_norm(x, weight=layer.weight, bias=layer.bias)
    gate = layer.gate((x - normal).mean((2, 3))).sigmoid()[:, :, None, None]
    torch.testing.assert_close(layer(x), normal + gate * (x - normal), rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(layer(x), WRONG_RESTITUTIONS[wrong](x, normal, gate), rtol=1e-4, atol=1e-4)


def pair_oracle(parts: Restitution, identities: list[int], itself: bool = False) -> float:
    """The loss over pairs, one after the other; ``itself`` counts an image as its own positive."""

    def distance(x: Tensor, i: int, j: int) -> float:
        a, b = x.mean((2, 3))[[i, j]].tolist()
        dot = sum(p * q for p, q in zip(a, b, strict=True))
        return 0.5 - dot / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b)) / 2

    def softplus(value: float) -> float:
        return math.log1p(math.exp(value))

    terms: dict[bool, list[float]] = {True: [], False: []}
    for i, first in enumerate(identities):
        for j, second in enumerate(identities):
            if i == j and not itself:
                continue
            plain, good, bad = (distance(x, i, j) for x in (parts.normalized, parts.enhanced, parts.contaminated))
            sign = 1 if first == second else -1
            terms[first == second].append(softplus(sign * (good - plain)) + softplus(sign * (plain - bad)))
    return sum(sum(values) / len(values) for values in terms.values() if values)


@pytest.mark.parametrize("identities", [[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 0, 1]])
def test_the_loss_is_the_sum_over_pairs(identities: list[int]) -> None:
    parts = Restitution(maps(0), maps(1), maps(2))
    loss = dual_causality_loss(parts, torch.tensor(identities))
    assert float(loss) == pytest.approx(pair_oracle(parts, identities), rel=1e-5)
    if identities == [0, 0, 1, 1]:
        assert float(loss) != pytest.approx(pair_oracle(parts, identities, itself=True), rel=1e-3)


def test_the_loss_rewards_maps_that_separate_identities() -> None:
    """Best when the enhanced maps separate and the contaminated ones confuse, worst the other way round."""
    identities = torch.tensor([0, 0, 1, 1])
    separate = torch.eye(CHANNELS)[[0, 0, 1, 1]][:, :, None, None]
    confused = torch.eye(CHANNELS)[[0, 1, 0, 1]][:, :, None, None]
    neutral = torch.ones(4, CHANNELS, 1, 1)
    good = dual_causality_loss(Restitution(neutral, separate, confused), identities)
    bad = dual_causality_loss(Restitution(neutral, confused, separate), identities)
    assert good < dual_causality_loss(Restitution(neutral, neutral, neutral), identities) < bad


def test_domainnorm_is_unit_channels_of_the_instance_norm() -> None:
    """Position by position; and the other order is another layer."""
    layer, x = DomainNorm(CHANNELS), maps()
    normal = functional.instance_norm(x)
    expected = torch.empty_like(x)
    for h in range(6):
        for w in range(4):
            column = normal[:, :, h, w]
            expected[:, :, h, w] = column / column.square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(x).norm(dim=1), torch.ones(4, 6, 4))
    for wrong in (
        functional.instance_norm(functional.normalize(x)),  # the other order
        normal,  # no unit length
        functional.normalize(normal.flatten(2), dim=2).view_as(x),  # over positions instead of channels
        functional.normalize(functional.batch_norm(x, None, None, training=True)),  # statistics of the batch
        normal / normal.abs().sum(1, keepdim=True),  # another length
    ):
        with pytest.raises(AssertionError):
            torch.testing.assert_close(wrong, expected, rtol=0.01, atol=0.01)


def test_domainnorm_does_not_depend_on_gain_and_offset_of_an_image() -> None:
    x, layer = maps(), DomainNorm(CHANNELS)
    gain, offset = torch.rand(4, CHANNELS, 1, 1) + 0.5, torch.randn(4, CHANNELS, 1, 1)
    torch.testing.assert_close(layer(x * gain + offset), layer(x), rtol=1e-3, atol=1e-3)
    assert (functional.normalize(x * gain + offset) - functional.normalize(x)).abs().max() > 0.1
    assert (instance_norm(x).norm(dim=1) - 1).abs().max() > 0.5  # what instance norm by itself leaves


def test_domainnorm_ends_with_an_affine_and_no_running_state() -> None:
    x, layer = maps(), DomainNorm(CHANNELS)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    unit = DomainNorm(CHANNELS)(x)
    expected = unit * layer.weight[:, None, None] + layer.bias[:, None, None]
    torch.testing.assert_close(layer.eval()(x), expected)
    assert set(layer.state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize("layer", [MixStyle(1.0), SNR(CHANNELS), DomainNorm(CHANNELS)])
def test_layers_keep_bfloat16_under_autocast(layer: nn.Module) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.train()(maps().bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("layer", [SNR(CHANNELS), DomainNorm(CHANNELS)])
def test_gradients_are_those_of_finite_differences(layer: nn.Module) -> None:
    x = maps()[:2, :, :2, :2].double().requires_grad_(True)
    assert torch.autograd.gradcheck(layer.double(), x)
    layer.float()
