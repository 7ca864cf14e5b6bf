"""CovNorm against what it is by definition: projections onto principal directions found by numpy's SVD of the data.

The wrong versions these tests catch: data not centred, whitening by variances instead of standard deviations, the
smallest directions kept instead of the largest, whitening of the inputs also used for recolouring the outputs,
statistics averaged over batches instead of merged.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reid.errors import ConditionError, ConfigError, DataError
from reid.norm import Given, convert_norm, domain_batchnorm
from reid.norm.added_domain import domain_sizes, only_domain
from reid.norm.covariance import CovarianceStatistics
from reid.norm.specialised.adapters import FullAdapter, LowRankAdapter, adapted_layers, add_adapters
from reid.norm.specialised.covnorm import compress, compress_adapters, principal

NAMES = ("people", "vehicles")


def correlated(rows: int, channels: int, seed: int = 0) -> Tensor:
    """Data (rows, channels) with a falling spectrum and a mean far from zero, float64."""
    generator = torch.Generator().manual_seed(seed)
    spread = 0.6 ** torch.arange(channels, dtype=torch.float64)
    mixing = torch.linalg.qr(torch.randn(channels, channels, generator=generator, dtype=torch.float64))[0]
    noise = torch.randn(rows, channels, generator=generator, dtype=torch.float64)
    return (noise * spread) @ mixing.T + 3 * torch.randn(channels, generator=generator, dtype=torch.float64)


def stats_of(rows: Tensor) -> CovarianceStatistics:
    centred = rows - rows.mean(0)
    return CovarianceStatistics(
        rows.mean(0)[None], (centred.T @ centred / len(rows))[None, None], torch.tensor([float(len(rows))])
    )


def matrix_of(outputs: int, inputs: int, seed: int = 1) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(adapter: nn.Module, rows: Tensor) -> Tensor:
    """An adapter on vectors (N, I), as maps of one position."""
    with torch.no_grad():
        return adapter(rows.to(next(adapter.parameters()).dtype)[:, :, None, None])[:, :, 0, 0]


def projection(rows: Tensor, count: int) -> np.ndarray:
    """The oracle: onto the leading directions, by SVD of the centred data."""
    centred = (rows - rows.mean(0)).numpy()
    leading = np.linalg.svd(centred, full_matrices=False)[2][:count]
    return leading.T @ leading


@settings(max_examples=25, deadline=None)
@hypothesis_given(
    inputs=st.integers(2, 10), outputs=st.integers(2, 10), variance=st.sampled_from([0.5, 0.9, 0.995, 1.0]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_the_low_rank_adapter_is_the_adapter_between_projections(inputs, outputs, variance, seed) -> None:
    """C M W (x - mean) + mean z = P_z A P_x (x - mean) + mean z, whatever the data."""
    x, matrix = correlated(200, inputs, seed), matrix_of(outputs, inputs, seed)
    z = x @ matrix.T
    small = compress(FullAdapter(matrix), stats_of(x), variance)
    kept_z, kept_x = small.mini.shape
    expected = (
        z.mean(0).numpy() + (x - x.mean(0)).numpy() @ (projection(z, kept_z) @ matrix.numpy() @ projection(x, kept_x)).T
    )
    np.testing.assert_allclose(run(small, x).numpy(), expected, rtol=1e-6, atol=1e-6)


def test_all_directions_reproduce_the_adapter() -> None:
    x, matrix = correlated(500, 16).float(), matrix_of(12, 16).float()
    small = compress(FullAdapter(matrix), stats_of(x.double()), variance=1.0)
    torch.testing.assert_close(run(small, x), run(FullAdapter(matrix), x), rtol=1e-5, atol=1e-5)
    assert small.mini.shape == (12, 16)


def test_white_inputs_and_enough_variance() -> None:
    x, matrix = correlated(500, 16), matrix_of(16, 16)
    stats = stats_of(x)
    small = compress(FullAdapter(matrix), stats)
    white = run_whiten(small, x)
    covariance = white.T @ white / len(x)
    torch.testing.assert_close(covariance, torch.eye(len(covariance), dtype=torch.float64), rtol=0, atol=1e-9)
    spectrum = np.sort(np.linalg.eigvalsh(stats.cov[0, 0].numpy()))[::-1]
    kept = small.whiten.shape[0]
    assert spectrum[:kept].sum() / spectrum.sum() >= 0.995 > spectrum[: kept - 1].sum() / spectrum.sum()


def run_whiten(small: LowRankAdapter, x: Tensor) -> Tensor:
    return ((x - x.mean(0)) @ small.whiten.T).detach()


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.995])
def test_the_error_is_what_was_cut_off(variance: float) -> None:
    """With all of x kept it is Eckart and Young's least error; with x cut too, theirs and what A makes of x's tail."""
    x, matrix = correlated(300, 12), matrix_of(12, 12)
    z = x @ matrix.T
    small = compress(FullAdapter(matrix), stats_of(x), variance)
    kept_z, kept_x = small.mini.shape
    assert kept_z < 12
    tail_z = np.linalg.svd((z - z.mean(0)).numpy())[1][kept_z:]
    tail_x = np.linalg.svd((x - x.mean(0)).numpy())[1][kept_x:]
    error = float((run(small, x) - z).square().sum())
    least = float((tail_z**2).sum())
    bound = least + float(torch.linalg.matrix_norm(matrix, 2)) ** 2 * float((tail_x**2).sum())
    assert least * (1 - 1e-9) <= error <= bound * (1 + 1e-9)
    best_z = np.asarray(z.mean(0)) + (z - z.mean(0)).numpy() @ projection(z, kept_z)
    assert np.square(best_z - z.numpy()).sum() == pytest.approx(least)


def uncentred(x: Tensor, matrix: Tensor, count: int) -> Tensor:
    directions = torch.linalg.svd(x @ matrix.T, full_matrices=False)[2][:count]
    return x @ matrix.T @ directions.T @ directions - (x @ matrix.T).mean(0)


def smallest_kept(x: Tensor, matrix: Tensor, count: int) -> Tensor:
    z = x @ matrix.T
    directions = torch.linalg.svd(z - z.mean(0), full_matrices=False)[2][-count:]
    return (z - z.mean(0)) @ directions.T @ directions


def by_variance(x: Tensor, matrix: Tensor, count: int) -> Tensor:
    kept = principal(stats_of(x).cov[0, 0], 1.0)
    centred = x - x.mean(0)
    return centred @ (kept.vectors / kept.variances) @ (kept.vectors * kept.variances.sqrt()).T @ matrix.T


def recoloured_by_inputs(x: Tensor, matrix: Tensor, count: int) -> Tensor:
    kept = principal(stats_of(x).cov[0, 0], 0.9)
    return (x - x.mean(0)) @ kept.vectors @ kept.vectors.T @ matrix.T @ kept.vectors @ kept.vectors.T


@pytest.mark.parametrize("wrong", [uncentred, smallest_kept, by_variance, recoloured_by_inputs])
def test_the_oracles_refuse_wrong_versions(wrong: Callable) -> None:
    """The right one has the least error of its rank, up to the tail of x; none of these does."""
    x, matrix = correlated(300, 12), matrix_of(12, 12)
    z = x @ matrix.T
    small = compress(FullAdapter(matrix), stats_of(x), 0.9)
    right = (run(small, x) - z).square().sum()
    assert (wrong(x, matrix, len(small.mini)) + z.mean(0) - z).square().sum() > 1.2 * right


def test_directions_without_variance_stay_finite() -> None:
    """Channels that never fire, and data of lower rank than channels."""
    x = correlated(200, 3) @ matrix_of(3, 8)
    x[:, 2] = 0
    matrix = matrix_of(6, 8)
    small = compress(FullAdapter(matrix), stats_of(x), variance=1.0)
    assert all(torch.isfinite(parameter).all() for parameter in small.parameters())
    torch.testing.assert_close(run(small, x), x @ matrix.T, rtol=1e-6, atol=1e-6)
    constant = correlated(50, 1) @ torch.ones(1, 8, dtype=torch.float64)
    assert compress(FullAdapter(matrix), stats_of(constant)).mini.shape == (2, 2)  # never fewer than two


def trained_network(placement: str = "parallel") -> nn.Module:
    torch.manual_seed(0)
    plain = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    network = add_adapters(convert_norm(plain, domain_batchnorm(NAMES)), NAMES, placement)
    with torch.no_grad():
        for layer in adapted_layers(network).values():
            for row in range(len(NAMES)):
                layer.adapter(row).weight.normal_(std=0.3)
        for row in range(len(NAMES)):
            for _ in range(3):
                Given(network.train())(torch.randn(8, 3, 12, 8) + row, row)
    return network.eval()


@pytest.mark.parametrize("placement", ["series", "parallel"])
def test_a_network_keeps_its_embeddings_and_its_other_domains(placement: str) -> None:
    network = trained_network(placement)
    batches = [torch.randn(8, 3, 12, 8) + 1 for _ in range(3)]
    before = copy.deepcopy(network.state_dict())
    full = compress_adapters(network, batches, "vehicles", variance=1.0)
    small = compress_adapters(network, iter(batches), "vehicles", variance=0.9)
    x = batches[0]
    torch.testing.assert_close(Given(full)(x, 1), Given(network)(x, 1), rtol=1e-4, atol=1e-4)
    near = nn.functional.cosine_similarity(Given(small)(x, 1), Given(network)(x, 1))
    assert bool((near > 0.95).all())
    assert not torch.allclose(Given(small)(x, 1), Given(network)(x, 1))
    assert torch.equal(Given(small)(x, 0), Given(network)(x, 0))
    after = network.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items() if isinstance(v, Tensor))
    indices = torch.tensor([0, 1] * 4)
    with torch.no_grad():
        mixed = torch.where(indices[:, None] == 0, Given(small)(x, 0), Given(small)(x, 1))
    torch.testing.assert_close(Given(small)(x, indices), mixed)


def test_statistics_are_merged_over_batches_not_averaged() -> None:
    network = trained_network()
    images = torch.cat([torch.randn(6, 3, 12, 8) * 0.2 + shift for shift in (-3, 0, 3)])
    whole = compress_adapters(network, [images], "people")
    parts = compress_adapters(network, [images[:6], images[6:8], images[8:]], "people")
    for name, layer in adapted_layers(whole).items():
        one, other = layer.adapter(0).affine(), adapted_layers(parts)[name].adapter(0).affine()
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    averaged = [compress_adapters(network, [part], "people") for part in images.split(6)]
    mean = torch.stack([adapted_layers(net)["3"].adapter(0).affine()[0] for net in averaged]).mean(0)
    assert not torch.allclose(mean, adapted_layers(whole)["3"].adapter(0).affine()[0], rtol=1e-2, atol=1e-2)


def test_the_size_is_that_of_the_three_factors_and_the_offset() -> None:
    network = trained_network()
    small = compress_adapters(network, [torch.randn(8, 3, 12, 8)], "people", variance=0.7)
    expected = 0
    for layer in adapted_layers(small).values():
        kept_z, kept_x = layer.adapter(0).mini.shape
        outputs, inputs = layer.out_channels, layer.in_channels
        expected += inputs * kept_x + outputs * kept_z + kept_x * kept_z + outputs
    norms = 2 * (2 * 16)
    assert domain_sizes(small)["people"].parameters == expected + norms
    assert domain_sizes(small)["vehicles"] == domain_sizes(network)["vehicles"]
    deep = adapted_layers(small)["3"].adapter(0)
    assert sum(p.numel() for p in deep.parameters()) < adapted_layers(network)["3"].adapter(0).weight.numel()


def test_only_the_mini_adaptation_can_be_trained() -> None:
    small = only_domain(compress_adapters(trained_network(), [torch.randn(8, 3, 12, 8)], "people"), "people")
    adapters = [layer.adapter(0) for layer in adapted_layers(small).values()]
    for adapter in adapters:
        for key in ("whiten", "recolour", "offset"):
            adapter.get_parameter(key).requires_grad_(False)
    small(torch.randn(4, 3, 12, 8)).square().sum().backward()
    assert all(adapter.mini.grad.any() and adapter.whiten.grad is None for adapter in adapters)


def test_mistakes_are_named() -> None:
    network, batch = trained_network(), torch.randn(8, 3, 12, 8)
    with pytest.raises(ConfigError, match="variance: expected"):
        compress_adapters(network, [batch], "people", variance=1.5)
    with pytest.raises(ConfigError, match="no adapters"):
        compress_adapters(nn.Conv2d(3, 3, 3), [batch], "people")
    with pytest.raises(ConditionError, match='did you mean "people"'):
        compress_adapters(network, [batch], "peopel")
    with pytest.raises(DataError, match=r"^0: .*3 channels, got 0"):
        compress_adapters(network, [], "people")
    with pytest.raises(DataError, match=r"^3: .*got 4"):
        compress_adapters(network, [torch.randn(1, 3, 4, 4)], "people")
    with torch.no_grad():
        adapted_layers(network)["3"].adapter(0).weight.zero_()
    with pytest.raises(DataError, match=r"^3, domain people: "):
        compress_adapters(network, [batch], "people")
