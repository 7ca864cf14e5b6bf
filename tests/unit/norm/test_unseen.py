"""What happens with an image of a domain that the network does not know: always what was asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ConditionError, ConfigError
from reid.norm import DomainBatchNorm, Given, camera_batchnorm, convert_norm
from reid.norm.source import Batch, Prior
from reid.norm.stats import moments
from reid.norm.unseen import (
    STRANGER,
    UNSEEN,
    answer,
    domain_distances,
    domain_weights,
    mixture,
    nearest,
    with_source,
)

NAMES = ("a", "b", "c")
SHIFTS = torch.tensor([-4.0, 0.0, 4.0, 8.0, -8.0])


def network() -> nn.Module:
    """Three cameras with statistics far apart."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(5),
    )  # fmt: skip
    converted = convert_norm(plain, camera_batchnorm(NAMES)).eval()
    with torch.no_grad():
        for layer in converted.modules():
            if isinstance(layer, DomainBatchNorm):
                layer.running_mean.normal_().mul_(2)
                layer.running_var.uniform_(0.3, 3)
    return converted


def crops(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 9, 8, generator=torch.Generator().manual_seed(1))


def test_distances_are_those_of_full_gaussians_summed_over_the_maps() -> None:
    net, images = network(), crops()
    with torch.no_grad():
        found = domain_distances(net, images)
        for g in range(3):
            expected = torch.zeros(len(images))
            x = images
            for module in net[:5]:
                if isinstance(module, DomainBatchNorm):
                    mean, var = moments(x)
                    mu, sigma = module.running_mean[g], torch.diag(module.running_var[g])
                    for i in range(len(images)):
                        cross = torch.diag((torch.diag(var[i]) @ sigma).diagonal().sqrt())  # commuting matrices
                        bures = torch.trace(torch.diag(var[i]) + sigma - 2 * cross)
                        expected[i] += (mean[i] - mu).square().sum() + bures
                    x = Given(module)(x, g)
                else:
                    x = module(x)
            assert torch.allclose(found[:, g], expected, rtol=1e-4)


def test_weights_lie_on_the_simplex_and_a_distance_of_zero_takes_all() -> None:
    weights = domain_weights(torch.tensor([[1.0, 2.0, 4.0], [0.0, 5.0, 5.0]]))
    assert torch.allclose(weights[0], torch.tensor([4.0, 2.0, 1.0]) / 7)
    assert weights[1, 0] > 1 - 1e-6
    assert torch.allclose(weights.sum(1), torch.ones(2))


def test_nearest_takes_the_domain_whose_statistics_the_images_have() -> None:
    net, images = network(), crops(64)
    with torch.no_grad():
        mean, var = moments(net[0](images))
        net[1].running_mean[1], net[1].running_var[1] = mean.mean(0), var.mean(0)
        net[1].running_mean[[0, 2]] += 8.0
        assert domain_distances(net, images).argmin(1).tolist() == [1] * 64
        assert torch.equal(nearest(net, images), Given(net)(images, 1))


def test_a_mixture_of_equal_branches_is_the_branch_and_equal_weights_an_ensemble() -> None:
    net, images = network(), crops()
    with torch.no_grad():
        same = convert_norm(
            nn.Sequential(*[nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()]), camera_batchnorm(NAMES)
        )
        same.eval()
        assert torch.allclose(mixture(same, images), functional.normalize(Given(same)(images, 2)), atol=1e-6)
        branches = [functional.normalize(Given(net)(images, g)) for g in range(3)]
        ensemble = functional.normalize(sum(branches) / 3)
        found = mixture(net, images, torch.full((len(images), 3), 1 / 3))
        assert torch.allclose(found, ensemble, atol=1e-6)
        raw = functional.normalize(sum(Given(net)(images, g) for g in range(3)))
        assert not torch.allclose(found, raw, atol=1e-3)  # vectors of unequal length would not count equally
        certain = mixture(net, images, torch.tensor([[0.0, 1.0, 0.0]]).expand(len(images), 3))
        assert torch.allclose(certain, branches[1], atol=1e-6)


def test_policies_by_name() -> None:
    net, images = network(), crops()
    with torch.no_grad():
        with pytest.raises(ConditionError, match=r"it knows a, b, c.*error, prior, nearest, mixture"):
            UNSEEN["error"](net, images)
        assert UNSEEN["prior"](net, images).shape == (4, 5)
        assert torch.equal(UNSEEN["nearest"](net, images), nearest(net, images))
        assert UNSEEN["mixture"](net, images).shape == (4, 5)
        with pytest.raises(ConditionError, match="without domains"):
            UNSEEN["nearest"](nn.Sequential(nn.BatchNorm2d(3)), images)


def test_a_source_can_be_put_in_for_evaluation() -> None:
    net, images = network(), crops(6)
    with torch.no_grad():
        before = Given(net)(images, 0)
        assert torch.allclose(Given(with_source(net, Prior(1e12)))(images, 0), before, atol=1e-4)
        batch = with_source(net, Batch())
        assert not torch.allclose(Given(batch)(images, 0), before, atol=1e-2)
        assert not torch.allclose(Given(batch)(images[:3], 0), Given(batch)(images, 0)[:3], atol=1e-3)
        assert torch.equal(Given(net)(images, 0), before)  # the network given is as it was


def one_by_one(net: nn.Module, images: Tensor, labels: list[int], policy: str) -> Tensor:
    """Every image alone, from the definitions: nearest by least distance, mixture weighed by inverse distances."""
    found = []
    for image, label in zip(images.split(1), labels, strict=True):
        if label >= 0:
            found.append(Given(net)(image, label))
            continue
        distances = domain_distances(net, image)[0].tolist()
        outputs = [Given(net)(image, g) for g in range(len(NAMES))]
        if policy == "nearest":
            found.append(outputs[distances.index(min(distances))])
        else:
            shares = [1 / distance / sum(1 / d for d in distances) for distance in distances]
            unit = [share * output / output.norm() for share, output in zip(shares, outputs, strict=True)]
            found.append(functional.normalize(torch.stack(unit).sum(0)))
    return torch.cat(found)


def spread_crops() -> Tensor:
    """Five images of very different contrast and brightness: their nearest domains differ."""
    return crops(5) * torch.tensor([0.3, 1.0, 3.0, 6.0, 0.1])[:, None, None, None] + SHIFTS[:, None, None, None]


@pytest.mark.parametrize("policy", ["nearest", "mixture"])
@pytest.mark.parametrize("labels", [[0, STRANGER, 2, STRANGER, 1], [STRANGER] * 5, [2, 1, 0, 1, 2]])
def test_strangers_are_answered_one_by_one(policy: str, labels: list[int]) -> None:
    """Catches: rows that come back in another order, strangers that are taken for the last domain (label -1 of a
    list), a policy applied to images of known domains, one nearest domain for the whole batch."""
    net, images = network(), spread_crops()
    with torch.no_grad():
        expected = one_by_one(net, images, labels, policy)
        torch.testing.assert_close(answer(net, images, torch.tensor(labels), policy), expected, rtol=1e-4, atol=1e-5)
        if STRANGER in labels:
            last = one_by_one(net, images, [len(NAMES) - 1 if label < 0 else label for label in labels], policy)
            assert not torch.allclose(last, expected, atol=1e-3)
        everyone = one_by_one(net, images, [STRANGER] * 5, policy)
        assert torch.allclose(everyone, expected, atol=1e-4) == (labels == [STRANGER] * 5)
        domains = domain_distances(net, images).argmin(1)
        assert len(domains.unique()) > 1  # else one domain for the whole batch would do
        with pytest.raises(ConfigError, match="policy for an unknown domain"):
            answer(net, images, 0, "guess")
        with pytest.raises(ConditionError, match="does not know"):
            answer(net, images, STRANGER, "error")
