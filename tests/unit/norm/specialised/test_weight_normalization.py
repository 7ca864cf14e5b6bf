"""Spectral norm and ONI against singular values (T15).

The wrong parametrizations these tests catch: a spectral norm of one iteration, of the Frobenius norm or of the longest
filter; ONI without the division by the Frobenius norm (the published
column variant), without centring, centring that costs a rank, groups of a convolution orthogonalized together,
an iteration that diverges on nearly singular filters; the norm of the filters' matrix taken for the operator's.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from reid.errors import ConfigError
from reid.norm.specialised.weight_normalization import ONI, fold_weights, normalize_weights, operator_norm

SHAPES = [(16, 8, 3, 3), (72, 16), (16, 72), (96, 3, 3, 3)]


def random_weight(*shape: int, scale: float = 0.3, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def singular_values(weight: Tensor) -> Tensor:
    return torch.linalg.svdvals(weight.detach().double().flatten(1))


def polar_oracle(weight: Tensor) -> Tensor:
    """The orthogonal matrix nearest to the centred filters, by their singular vectors."""
    z = weight.double().flatten(1)
    z = z - z.mean(1 if z.shape[0] < z.shape[1] else 0, keepdim=True)
    u, _, v = torch.linalg.svd(z, full_matrices=False)
    return (u @ v).view(weight.shape)


def published_steps(weight: Tensor, iterations: int, divide: bool = True) -> Tensor:
    """The row variant as it is printed, one matrix; without ``divide`` the column variant's omission."""
    z = weight.double().flatten(1)
    z = z - z.mean(1, keepdim=True)
    s = z @ z.T + 1e-5 * torch.eye(len(z))
    size = s.norm()
    s = s / size if divide else s
    b = torch.eye(len(z), dtype=z.dtype)
    for _ in range(iterations):
        b = 1.5 * b - 0.5 * torch.linalg.matrix_power(b, 3) @ s
    return (b @ z / size.sqrt()).view(weight.shape)


@pytest.mark.parametrize("iterations", [0, 1, 3, 5, 7])
def test_rows_are_the_published_steps(iterations: int) -> None:
    weight = random_weight(16, 8, 3, 3)
    got = ONI(iterations, gain=1.0)(weight)
    torch.testing.assert_close(got.double(), published_steps(weight, iterations), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-4, 0.3, 100.0])
def test_rows_and_columns_become_orthogonal_whatever_the_scale(shape: tuple[int, ...], scale: float) -> None:
    weight = random_weight(*shape, scale=scale)
    got = ONI(iterations=9, gain=1.0)(weight)
    torch.testing.assert_close(got.double(), polar_oracle(weight), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(singular_values(got), torch.ones(min(got.flatten(1).shape)).double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("scale", [0.3, 0.01])
def test_the_published_column_variant_is_not_orthogonal(scale: float) -> None:
    """Without the division by |S|_F it diverges, or keeps the spread of the weights."""
    columns = random_weight(72, 16, scale=scale).T
    torch.testing.assert_close(
        singular_values(published_steps(columns, 9)), torch.ones(16).double(), rtol=0, atol=0.02
    )  # epsilon shows in small weights
    wrong = published_steps(columns, 9, divide=False)
    assert not wrong.isfinite().all() or (singular_values(wrong) - 1).abs().max() > 0.3


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_grow_with_the_iterations_up_to_one(shape: tuple[int, ...]) -> None:
    weight = random_weight(*shape)
    values = torch.stack([singular_values(ONI(t, gain=1.0)(weight)) for t in range(9)])
    assert (values <= 1 + 1e-5).all()
    assert (values[1:] >= values[:-1] - 1e-5).all()
    spread = (values - 1).abs().amax(1)
    assert spread[0] > 0.5
    assert spread[5] < 0.1
    assert spread[8] < 1e-3


def test_the_gain_is_the_length_of_the_filters() -> None:
    weight = random_weight(16, 8, 3, 3)
    torch.testing.assert_close(ONI(7)(weight).flatten(1).norm(dim=1), torch.full((16,), 2**0.5), rtol=1e-3, atol=0)
    torch.testing.assert_close(ONI(3, gain=0.5)(weight), ONI(3, gain=1.0)(weight) / 2)


def test_long_filters_are_centred() -> None:
    weight = random_weight(16, 8, 3, 3) + 1
    torch.testing.assert_close(ONI(7)(weight).flatten(1).mean(1), torch.zeros(16), rtol=0, atol=1e-5)
    assert ONI(7)(random_weight(16, 16)).mean(1).abs().max() > 1e-3  # where it would cost a rank they are not


def test_nearly_singular_filters_do_not_diverge() -> None:
    """A square weight of deficient rank in float32: the recursion as printed runs away."""
    weight = random_weight(16, 16)
    weight[0] = weight[1] + 1e-6
    for iterations in (9, 12, 20, 40):
        assert singular_values(ONI(iterations, gain=1.0)(weight)).max() < 1 + 1e-4
    s = weight @ weight.T / (weight @ weight.T).norm()
    b = torch.eye(16)
    for _ in range(20):
        b = 1.5 * b - 0.5 * b @ b @ b @ s
    assert not (b @ s @ b.T).trace() < 20  # it would be 16; infinity and NaN are not below either


def test_groups_are_orthogonal_each_by_itself() -> None:
    weight = random_weight(12, 4, 3, 3)
    expected = torch.cat([ONI(7)(part) for part in weight.split(4)])
    torch.testing.assert_close(ONI(7, groups=3)(weight), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(ONI(7)(weight), expected, rtol=1e-2, atol=1e-2)


def test_gradients_flow_and_are_those_of_finite_differences() -> None:
    for shape in ((3, 5), (5, 3), (3, 3)):
        weight = random_weight(*shape).double().requires_grad_(True)
        assert torch.autograd.gradcheck(ONI(4), weight)


def test_oni_is_orthogonal_under_autocast_too() -> None:
    weight = random_weight(16, 72)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ONI(7, gain=1.0)(weight)
    torch.testing.assert_close(got, ONI(7, gain=1.0)(weight))


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Flatten(),
        nn.Linear(8 * 16, 4),
    )


def test_spectral_norm_brings_the_filters_matrix_to_norm_one() -> None:
    """After enough power iterations; in evaluation nothing moves."""
    network = normalize_weights(small_network(), "spectral")
    x = torch.randn(2, 3, 4, 4)
    for _ in range(100):
        network(x)
    network.eval()
    for index in (0, 3, 5):
        assert float(singular_values(network[index].weight)[0]) == pytest.approx(1, abs=1e-3)
    assert torch.equal(network(x), network(x))


def test_wrong_spectral_norms_are_refused() -> None:
    """One power iteration from anywhere, the Frobenius norm, the longest filter: none brings the first value to 1."""
    weight = random_weight(16, 8, 3, 3).flatten(1)

    def check(found: Tensor) -> None:
        assert float(singular_values(found)[0]) == pytest.approx(1, abs=1e-3)

    right = normalize_weights(nn.Linear(72, 16), "spectral")
    with torch.no_grad():
        right.parametrizations.weight.original.copy_(weight)
        for _ in range(100):
            right(torch.zeros(1, 72))
    check(right.eval().weight)
    start = functional.normalize(torch.ones(16), dim=0)
    once = (weight.T @ start).norm()
    for wrong in (weight, weight / weight.norm(), weight / weight.norm(dim=1).max(), weight / once):
        with pytest.raises(AssertionError):
            check(wrong)


def test_oni_is_put_on_every_weight_with_the_groups_of_its_convolution() -> None:
    network = normalize_weights(small_network(), "oni")
    for index, groups in ((0, 1), (3, 2), (5, 1)):
        original = network[index].parametrizations.weight.original
        assert torch.equal(network[index].weight, ONI(groups=groups)(original))
    network(torch.randn(2, 3, 4, 4)).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("method", ["spectral", "oni"])
def test_folding_gives_a_plain_network_of_the_same_outputs(method: str) -> None:
    plain = small_network()
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    network = normalize_weights(plain, method)
    x = torch.randn(2, 3, 4, 4)
    network(x)
    folded = fold_weights(network)
    assert set(folded.state_dict()) == set(before)
    assert torch.equal(folded.eval()(x), network.eval()(x))
    assert parametrize.is_parametrized(network[0])
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())


def test_an_unknown_normalization_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="known: spectral, oni"):
        normalize_weights(small_network(), "weight")


def operator_matrix(layer: nn.Conv2d, size: tuple[int, int]) -> Tensor:
    """The convolution as a matrix: the images of all unit maps."""
    units = torch.eye(layer.in_channels * size[0] * size[1]).view(-1, layer.in_channels, *size)
    return functional.conv2d(
        units, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups
    ).flatten(1)


@pytest.mark.parametrize(
    "options", [{"padding": 1}, {"stride": 2}, {"padding": 2, "dilation": 2}, {"padding": 1, "groups": 2}]
)
def test_the_operator_norm_is_the_largest_singular_value_of_the_convolution(options: dict) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, **options)
    expected = float(singular_values(operator_matrix(layer, (7, 5)))[0])
    got = operator_norm(layer, (7, 5))
    assert got == pytest.approx(expected, rel=2e-3)
    assert got <= expected * (1 + 1e-6)


def test_a_filters_matrix_of_norm_one_does_not_bound_the_convolution_by_one() -> None:
    """The caveat of spectral norm and ONI: a 3x3 convolution can still stretch a map, at most 3 times."""
    for method in ("spectral", "oni"):
        torch.manual_seed(0)
        network = normalize_weights(nn.Conv2d(16, 16, 3, padding=1), method)
        for _ in range(100):
            network(torch.zeros(1, 16, 3, 3))
        largest = float(singular_values(network.eval().weight)[0])
        stretch = operator_norm(network, (9, 7)) / largest
        assert 1.2 < stretch <= 3
    narrow = normalize_weights(nn.Conv2d(16, 16, 1), "oni")
    assert operator_norm(narrow, (9, 7)) == pytest.approx(float(singular_values(narrow.weight)[0]), rel=1e-2)


def test_the_operator_norm_does_not_change_the_layer() -> None:
    layer = normalize_weights(nn.Conv2d(4, 4, 3), "spectral").train()
    before = layer.state_dict()
    before = {key: value.clone() for key, value in before.items()}
    with torch.no_grad():
        operator_norm(layer, (5, 5))
    assert layer.training
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_the_operator_norm_is_that_of_the_served_layer() -> None:
    """A spectral norm whose power iteration has not settled is measured as it is, not as it would become."""
    torch.manual_seed(0)
    layer = normalize_weights(nn.Conv2d(16, 16, 3, padding=1), "spectral")
    with torch.no_grad():
        layer.parametrizations.weight.original.normal_()
    unsettled = operator_norm(layer, (5, 5))
    assert unsettled == pytest.approx(operator_norm(fold_weights(layer), (5, 5)), rel=1e-5)
    for _ in range(100):
        layer(torch.zeros(1, 16, 3, 3))
    assert operator_norm(layer, (5, 5)) < 0.9 * unsettled
