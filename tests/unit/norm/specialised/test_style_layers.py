"""Layers that take a style from the forward pass (T14).

Catches the style or kernel of the first image used for all, a modulation without its one, with scale and shift swapped
or without a norm, a self-modulation without its hidden ReLUs.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from helpers.styled_maps import CHANNELS, INDICES, STYLE, loop_oracle, maps, moments_of, randomize
from reid.errors import ConditionError
from reid.norm import Given
from reid.norm.specialised.style import (
    DynamicInstanceNorm,
    InstanceNorm,
    Styled,
    conditional_instance_norm,
    dynamic_convolution,
    self_modulation,
    style_modulation,
)


@pytest.mark.parametrize("eps", [1e-5, 1e-8])
def test_conditional_instance_norm_gives_each_image_the_moments_of_its_style(eps: float) -> None:
    layer = randomize(conditional_instance_norm(CHANNELS, 3, eps))
    x = maps()
    got = Given(layer)(x, style=INDICES)
    mean, deviation = moments_of(got)
    torch.testing.assert_close(mean, layer.affine.bias[INDICES], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(deviation, layer.affine.weight[INDICES].abs(), rtol=1e-3, atol=1e-4)
    expected = loop_oracle(x, layer.affine.weight[INDICES], layer.affine.bias[INDICES], eps)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    first = INDICES[0].expand(4)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(Given(layer)(x, style=first), expected, rtol=1e-4, atol=1e-4)


def test_weights_of_styles_mix_their_affines() -> None:
    """One-hot weights are indices; halves lie in the middle, as the output is linear in the affine."""
    layer, x = randomize(conditional_instance_norm(CHANNELS, 3)), maps()
    one_hot = functional.one_hot(INDICES, 3).float()
    torch.testing.assert_close(layer(x, one_hot), layer(x, INDICES))
    other = functional.one_hot(INDICES.flip(0), 3).float()
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
    style = INDICES if isinstance(layer, Styled) and hasattr(layer.affine, "weight") else torch.randn(4, STYLE)
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
    got = Given(layer)(x, torch.tensor([1, 0, 1, 0]), style=INDICES)
    torch.testing.assert_close(got, layer(x, INDICES))


@pytest.mark.parametrize("layer", [conditional_instance_norm(CHANNELS, 3), DynamicInstanceNorm(CHANNELS, STYLE)])
def test_a_missing_style_is_an_error_that_names_the_call(layer: nn.Module) -> None:
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
        (style_modulation(CHANNELS, STYLE), INDICES, "got int64"),
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
        (conditional_instance_norm(CHANNELS, 3), INDICES),
        (style_modulation(CHANNELS, STYLE), torch.randn(4, STYLE)),
        (self_modulation(CHANNELS, STYLE), torch.randn(4, STYLE)),
        (DynamicInstanceNorm(CHANNELS, STYLE, 3, 2), torch.randn(4, STYLE)),
    ],
)
def test_layers_compile_to_one_graph(layer: nn.Module, style: Tensor) -> None:
    network, x = Given(randomize(layer)).eval(), maps()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, style=style), network(x, style=style))
