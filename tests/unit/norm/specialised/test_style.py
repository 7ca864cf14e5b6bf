"""Instance norms and styles against loops over images and channels (T14).

The wrong layers these tests catch: statistics over the batch instead of the image, unbiased variance on one
side, the first image's style used for all, a Gram matrix divided by the channels too, an identity matrix added
to the covariance before whitening, the first image's kernel used for all, statistics in half precision; a modulation
without its one, with scale and shift swapped or without a norm, a self-modulation without its hidden ReLUs.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ConditionError, DataError
from reid.norm import Given
from reid.norm.specialised.style import (
    DynamicInstanceNorm,
    InstanceNorm,
    Styled,
    adain,
    conditional_instance_norm,
    dynamic_convolution,
    gram,
    instance_norm,
    self_modulation,
    style_modulation,
    whiten_and_colour,
)

CHANNELS, STYLE = 6, 4
LABELS = torch.tensor([2, 0, 1, 2])


def maps(images: int = 4, channels: int = CHANNELS, size: tuple[int, int] = (5, 3), seed: int = 0) -> Tensor:
    """Correlated maps whose images and channels differ in mean and deviation, float32."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, channels, *size, generator=generator)
    x = torch.einsum("cd,bdhw->bchw", torch.randn(channels, channels, generator=generator), x)
    return x * torch.linspace(0.5, 2, images)[:, None, None, None] + torch.arange(channels)[:, None, None]


def loop_oracle(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """Each image and channel by itself; ``scale`` and ``shift`` (B, C)."""
    out = torch.empty_like(x)
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            values = x[i, c]
            mean = values.sum() / values.numel()
            var = (values - mean).square().sum() / values.numel()
            out[i, c] = (values - mean) / (var + eps).sqrt() * scale[i, c] + shift[i, c]
    return out


def randomize(layer: nn.Module, seed: int = 1) -> nn.Module:
    """Parameters that make every style differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def moments_of(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean((2, 3)), x.std((2, 3), correction=0)


@settings(deadline=None, max_examples=30)
@hypothesis_given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(2, 6))
def test_instance_norm_is_the_loop_and_torchs(images: int, channels: int, height: int, width: int) -> None:
    x = maps(images, channels, (height, width))
    scale, shift = torch.randn(images, channels), torch.randn(images, channels)
    torch.testing.assert_close(instance_norm(x, scale, shift), loop_oracle(x, scale, shift), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        instance_norm(x, scale[0], shift[0]),
        functional.instance_norm(x, weight=scale[0], bias=shift[0]),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("wrong", ["batch", "unbiased"])
def test_the_loop_refuses_wrong_instance_norms(wrong: str) -> None:
    x = maps()
    axes, correction = {"batch": ((0, 2, 3), 0), "unbiased": ((2, 3), 1)}[wrong]
    var, mean = torch.var_mean(x, axes, correction=correction, keepdim=True)
    ones = torch.ones(x.shape[:2])
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            (x - mean) * torch.rsqrt(var + 1e-5), loop_oracle(x, ones, 0 * ones), rtol=1e-3, atol=1e-3
        )


def test_instance_norm_has_the_gradient_of_finite_differences() -> None:
    x = maps(2, 3, (2, 3)).double().requires_grad_(True)
    scale, shift = torch.randn(2, 2, 3, dtype=torch.float64).requires_grad_(True).unbind(0)
    assert torch.autograd.gradcheck(instance_norm, (x, scale, shift))


def test_half_precision_keeps_statistics_in_float32() -> None:
    """In float16 the squares of values above 255 overflow."""
    x = maps() * 200
    half = instance_norm(x.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), instance_norm(x.half().float()), rtol=2e-3, atol=2e-3)
    assert x.half().square().isinf().any()


def test_a_map_of_one_position_is_refused() -> None:
    with pytest.raises(DataError, match="2 positions"):
        instance_norm(torch.randn(3, CHANNELS, 1, 1))


@pytest.mark.parametrize("rows", [1, 4])
def test_adain_has_the_moments_of_the_style(rows: int) -> None:
    content, style = maps(), maps(rows, size=(7, 9), seed=3)
    mean, deviation = moments_of(adain(content, style))
    wanted_mean, wanted_deviation = moments_of(style)
    torch.testing.assert_close(mean, wanted_mean.expand_as(mean), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(deviation, wanted_deviation.expand_as(deviation), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(adain(content, content), content, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(adain(content, style, 0.5), (content + adain(content, style)) / 2, rtol=1e-5, atol=1e-5)


def test_unbiased_deviations_miss_the_style() -> None:
    """The moments of the two map sizes then differ by about 1 / (2 H W)."""
    content, style = maps(), maps(size=(7, 9), seed=3)
    var, mean = torch.var_mean(style, (2, 3), correction=1)
    wrong = instance_norm(content, var.sqrt(), mean)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(moments_of(wrong)[1], moments_of(style)[1], rtol=1e-4, atol=1e-5)


def test_adain_refuses_maps_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="6 channels and 1 or 4 images"):
        adain(maps(), maps(3))
    with pytest.raises(DataError, match=r"got \(4, 5, 5, 3\)"):
        whiten_and_colour(maps(), maps(channels=5))


def test_gram_is_the_sum_over_positions() -> None:
    x = maps()
    expected = torch.zeros(4, CHANNELS, CHANNELS)
    for i in range(5):
        for j in range(3):
            expected += x[:, :, i, j, None] * x[:, None, :, i, j] / 15
    torch.testing.assert_close(gram(x), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(gram(x) / CHANNELS, expected, rtol=1e-4, atol=1e-4)


def test_gram_is_covariance_plus_mean_and_knows_no_positions() -> None:
    x = maps()
    rows = x.flatten(2)
    for i, image in enumerate(rows):
        mean = image.mean(1)
        torch.testing.assert_close(gram(x)[i], torch.cov(image, correction=0) + mean[:, None] * mean)
    shuffled = rows[:, :, torch.randperm(15)].view(x.shape)
    torch.testing.assert_close(gram(shuffled), gram(x))
    assert (torch.linalg.eigvalsh(gram(x).double()) > -1e-5).all()


def test_whitening_and_colouring_gives_mean_and_covariance_of_the_style() -> None:
    content, style = maps(size=(9, 7)).double() * 0.3, maps(size=(6, 8), seed=3).double()
    restyled = whiten_and_colour(content, style)
    for got, wanted in zip(restyled.flatten(2), style.flatten(2), strict=True):
        torch.testing.assert_close(torch.cov(got, correction=0), torch.cov(wanted, correction=0))
        torch.testing.assert_close(got.mean(1), wanted.mean(1))
    torch.testing.assert_close(whiten_and_colour(content, content), content)
    torch.testing.assert_close(whiten_and_colour(content, style, alpha=0.5), (content + restyled) / 2)


def test_an_identity_added_to_the_covariance_misses_the_style() -> None:
    """A ridge of 1 instead of epsilon, as in a widespread implementation."""
    content, style = maps(1, size=(9, 7)).double() * 0.3, maps(1, size=(6, 8), seed=3).double()
    centred = content.flatten(2)[0] - content.mean((2, 3))[0, :, None]

    def cov_of_output(ridge: float) -> Tensor:
        values, vectors = torch.linalg.eigh(torch.cov(centred, correction=0) + ridge * torch.eye(CHANNELS))
        whitened = vectors @ torch.diag(values.rsqrt()) @ vectors.T @ centred
        return torch.cov(torch.linalg.cholesky(torch.cov(style.flatten(2)[0], correction=0)) @ whitened, correction=0)

    wanted = torch.cov(style.flatten(2)[0], correction=0)
    torch.testing.assert_close(cov_of_output(1e-12), wanted)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(cov_of_output(1.0), wanted, rtol=0.1, atol=0.1)


def test_content_of_deficient_rank_stays_finite() -> None:
    """Fewer positions than channels, and a dead channel."""
    content = maps(channels=8, size=(2, 2))
    content[:, 0] = 0
    restyled = whiten_and_colour(content, maps(channels=8, size=(6, 8), seed=3))
    assert restyled.isfinite().all()
    assert restyled.abs().max() < 1e3


@pytest.mark.parametrize("eps", [1e-5, 1e-8])
def test_conditional_instance_norm_gives_each_image_the_moments_of_its_style(eps: float) -> None:
    layer = randomize(conditional_instance_norm(CHANNELS, 3, eps))
    x = maps()
    got = Given(layer)(x, style=LABELS)
    mean, deviation = moments_of(got)
    torch.testing.assert_close(mean, layer.affine.bias[LABELS], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(deviation, layer.affine.weight[LABELS].abs(), rtol=1e-3, atol=1e-4)
    expected = loop_oracle(x, layer.affine.weight[LABELS], layer.affine.bias[LABELS], eps)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    first = LABELS[0].expand(4)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(Given(layer)(x, style=first), expected, rtol=1e-4, atol=1e-4)


def test_weights_of_styles_mix_their_affines() -> None:
    """One-hot weights are labels; halves lie in the middle, as the output is linear in the affine."""
    layer, x = randomize(conditional_instance_norm(CHANNELS, 3)), maps()
    one_hot = functional.one_hot(LABELS, 3).float()
    torch.testing.assert_close(layer(x, one_hot), layer(x, LABELS))
    other = functional.one_hot(LABELS.flip(0), 3).float()
    middle = (layer(x, one_hot) + layer(x, other)) / 2
    torch.testing.assert_close(layer(x, (one_hot + other) / 2), middle, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        conditional_instance_norm(CHANNELS, 3, 1e-8),
        style_modulation(CHANNELS, STYLE),
        style_modulation(CHANNELS, STYLE, hidden=7),
        DynamicInstanceNorm(CHANNELS, STYLE, kernel=3, groups=2, eps=1e-8),
    ],
)
def test_every_layer_starts_as_instance_norm(layer: nn.Module) -> None:
    x = maps()
    style = LABELS if isinstance(layer, Styled) and hasattr(layer.affine, "weight") else torch.randn(4, STYLE)
    torch.testing.assert_close(layer(x, style), InstanceNorm(1e-8)(x), rtol=1e-6, atol=1e-6)


def test_style_modulation_is_one_plus_a_linear_map() -> None:
    layer, x, style = randomize(style_modulation(CHANNELS, STYLE)), maps(), torch.randn(4, STYLE)
    weight, bias = layer.affine.predict.weight, layer.affine.predict.bias
    predicted = style @ weight.T + bias
    expected = loop_oracle(x, 1 + predicted[:, :CHANNELS], predicted[:, CHANNELS:], 1e-8)
    torch.testing.assert_close(layer(x, style), expected, rtol=1e-4, atol=1e-4)


WRONG_MODULATIONS = {
    "without the one": lambda x, p: loop_oracle(x, p[:, :CHANNELS], p[:, CHANNELS:], 1e-8),
    "scale and shift swapped": lambda x, p: loop_oracle(x, 1 + p[:, CHANNELS:], p[:, :CHANNELS], 1e-8),
    "the first image's style": lambda x, p: loop_oracle(
        x, 1 + p[:1, :CHANNELS].expand(4, -1), p[:1, CHANNELS:].expand(4, -1), 1e-8
    ),
    "no normalization": lambda x, p: x * (1 + p[:, :CHANNELS, None, None]) + p[:, CHANNELS:, None, None],
}


@pytest.mark.parametrize("wrong", WRONG_MODULATIONS)
def test_wrong_modulations_are_refused(wrong: str) -> None:
    layer, x, style = randomize(style_modulation(CHANNELS, STYLE)), maps(), torch.randn(4, STYLE)
    predicted = layer.affine.predict(style)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(layer(x, style), WRONG_MODULATIONS[wrong](x, predicted), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_self_modulation_starts_as_batchnorm_bit_for_bit(training: bool) -> None:
    layer = self_modulation(CHANNELS, STYLE).train(training)
    plain = nn.BatchNorm2d(CHANNELS, eps=1e-3, momentum=1e-3, affine=False).train(training)
    x = maps()
    assert torch.equal(layer(x, torch.randn(4, STYLE)), plain(x))
    assert torch.equal(layer.norm.running_var, plain.running_var)


def test_self_modulation_is_a_hidden_layer_of_relus() -> None:
    layer, x, style = randomize(self_modulation(CHANNELS, STYLE, hidden=5)), maps(), torch.randn(4, STYLE)
    hidden, head = layer.affine.encode[0], layer.affine.predict
    predicted = (style @ hidden.weight.T + hidden.bias).clamp_min(0) @ head.weight.T + head.bias
    scale, shift = 1 + predicted[:, :CHANNELS, None, None], predicted[:, CHANNELS:, None, None]
    normal = functional.batch_norm(x, None, None, training=True, eps=1e-3)
    torch.testing.assert_close(layer(x, style), normal * scale + shift, rtol=1e-5, atol=1e-5)
    linear = (style @ hidden.weight.T + hidden.bias) @ head.weight.T + head.bias  # without its ReLUs
    for wrong in (
        functional.instance_norm(x, eps=1e-3) * scale + shift,  # statistics of the image
        functional.batch_norm(x, None, None, training=True, eps=1e-5) * scale + shift,  # another eps
        normal * (scale - 1) + shift,  # without the one
        normal * (1 + linear[:, :CHANNELS, None, None]) + linear[:, CHANNELS:, None, None],
    ):
        with pytest.raises(AssertionError):
            torch.testing.assert_close(wrong, normal * scale + shift, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=20)
@hypothesis_given(st.integers(1, 4), st.sampled_from([1, 3]), st.sampled_from([1, 2, 6]))
def test_a_dynamic_convolution_is_the_loop_over_images(images: int, kernel: int, groups: int) -> None:
    x = maps(images)
    weight = torch.randn(images, CHANNELS, CHANNELS // groups, kernel, kernel)
    bias = torch.randn(images, CHANNELS)
    rows = [
        functional.conv2d(x[i : i + 1], weight[i], bias[i], padding=kernel // 2, groups=groups) for i in range(images)
    ]
    torch.testing.assert_close(dynamic_convolution(x, weight, bias), torch.cat(rows), rtol=1e-4, atol=1e-4)


def test_one_kernel_for_all_images_is_not_dynamic() -> None:
    x, weight = maps(), torch.randn(4, CHANNELS, 1, 3, 3)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            functional.conv2d(x, weight[0], padding=1, groups=CHANNELS), dynamic_convolution(x, weight)
        )


def test_a_dynamic_norm_of_single_positions_is_conditional_instance_norm() -> None:
    dynamic, x = DynamicInstanceNorm(CHANNELS, STYLE), maps()
    randomize(dynamic)
    style = torch.randn(4, STYLE)
    predicted = dynamic.predict(style)
    expected = loop_oracle(x, predicted[:, :CHANNELS], predicted[:, CHANNELS:])
    torch.testing.assert_close(Given(dynamic)(x, style=style), expected, rtol=1e-4, atol=1e-4)


def test_the_style_stays_with_its_image_when_rows_are_sorted_by_domain() -> None:
    layer, x = randomize(conditional_instance_norm(CHANNELS, 3)), maps()
    got = Given(layer)(x, torch.tensor([1, 0, 1, 0]), style=LABELS)
    torch.testing.assert_close(got, layer(x, LABELS))


@pytest.mark.parametrize("layer", [conditional_instance_norm(CHANNELS, 3), DynamicInstanceNorm(CHANNELS, STYLE)])
def test_a_missing_style_is_an_error_that_says_how_to_pass_one(layer: nn.Module) -> None:
    with pytest.raises(ConditionError, match=r"Given\(network\)\(images, style=\.\.\.\)"):
        Given(layer)(maps(), 0)
    with pytest.raises(ConditionError, match="style="):
        layer(maps())


@pytest.mark.parametrize(
    ("layer", "style", "message"),
    [
        (conditional_instance_norm(CHANNELS, 3), torch.tensor([0, 1, 2, 3]), "style 3 is out of range"),
        (conditional_instance_norm(CHANNELS, 3), torch.tensor([0, 1, 2, -1]), "style -1 is out of range"),
        (conditional_instance_norm(CHANNELS, 3), torch.zeros(4, 2), r"weights \(B, 3\)"),
        (conditional_instance_norm(CHANNELS, 3), torch.tensor([1]), "each of 4 images"),
        (style_modulation(CHANNELS, STYLE), torch.zeros(4, STYLE + 1), r"\(B, 4\)"),
        (style_modulation(CHANNELS, STYLE), LABELS, "got int64"),
        (DynamicInstanceNorm(CHANNELS, STYLE), torch.zeros(1, STYLE), "each of 4 images"),
    ],
)
def test_a_style_that_does_not_fit_is_an_error(layer: nn.Module, style: Tensor, message: str) -> None:
    with pytest.raises(ConditionError, match=message):
        Given(layer)(maps(), style=style)


@pytest.mark.parametrize("layer", [style_modulation(CHANNELS, STYLE), DynamicInstanceNorm(CHANNELS, STYLE)])
def test_autocast_keeps_the_dtype_and_the_values(layer: nn.Module) -> None:
    randomize(layer)
    x, style = maps(), torch.randn(4, STYLE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = layer(x.bfloat16(), style)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), layer(x, style), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("layer", "style"),
    [
        (conditional_instance_norm(CHANNELS, 3), LABELS),
        (style_modulation(CHANNELS, STYLE), torch.randn(4, STYLE)),
        (self_modulation(CHANNELS, STYLE), torch.randn(4, STYLE)),
        (DynamicInstanceNorm(CHANNELS, STYLE, 3, 2), torch.randn(4, STYLE)),
    ],
)
def test_layers_compile_to_one_graph(layer: nn.Module, style: Tensor) -> None:
    network, x = Given(randomize(layer)).eval(), maps()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, style=style), network(x, style=style))
