"""What happens with an image of a domain that the network does not know: exactly what the policy is for.

The wrong policies that these tests catch: distances of variances, of the first layer only, or in
the network of another domain; weights that grow with the distance; a mixture of vectors of unequal length, of logits
by softmax, or of statistics; one nearest domain for the whole batch; unknown domains taken for the last one.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ConditionError, ConfigError
from reid.norm import DomainBatchNorm, Given, add_domain, camera_batchnorm, convert_norm
from reid.norm.statistics import moments
from reid.norm.statistics_source import BatchStatistics, Prior
from reid.norm.unseen_domains import (
    UNKNOWN_DOMAIN,
    UNSEEN_DOMAIN_ANSWERS,
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
    """Make a network with three cameras whose statistics differ much."""
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
        with pytest.raises(ConditionError, match=r"a, b, c.*error, prior, nearest, mixture"):
            UNSEEN_DOMAIN_ANSWERS["error"](net, images)
        assert UNSEEN_DOMAIN_ANSWERS["prior"](net, images).shape == (4, 5)
        assert torch.equal(UNSEEN_DOMAIN_ANSWERS["nearest"](net, images), nearest(net, images))
        assert UNSEEN_DOMAIN_ANSWERS["mixture"](net, images).shape == (4, 5)
        with pytest.raises(ConditionError, match="domains"):
            UNSEEN_DOMAIN_ANSWERS["nearest"](nn.Sequential(nn.BatchNorm2d(3)), images)


def test_a_source_can_be_put_in_for_evaluation() -> None:
    net, images = network(), crops(6)
    with torch.no_grad():
        before = Given(net)(images, 0)
        assert torch.allclose(Given(with_source(net, Prior(1e12)))(images, 0), before, atol=1e-4)
        batch = with_source(net, BatchStatistics())
        assert not torch.allclose(Given(batch)(images, 0), before, atol=1e-2)
        assert not torch.allclose(Given(batch)(images[:3], 0), Given(batch)(images, 0)[:3], atol=1e-3)
        assert torch.equal(Given(net)(images, 0), before)  # the network given is as it was


def one_by_one(net: nn.Module, images: Tensor, domain: list[int], policy: str) -> Tensor:
    """Run every image by itself: nearest by the smallest distance, mixture weighed by inverse distances."""
    found = []
    for image, label in zip(images.split(1), domain, strict=True):
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
    """Make five images of very different contrast and brightness, whose nearest domains differ."""
    return crops(5) * torch.tensor([0.3, 1.0, 3.0, 6.0, 0.1])[:, None, None, None] + SHIFTS[:, None, None, None]


@pytest.mark.parametrize("policy", ["nearest", "mixture"])
@pytest.mark.parametrize("domain", [[0, UNKNOWN_DOMAIN, 2, UNKNOWN_DOMAIN, 1], [UNKNOWN_DOMAIN] * 5, [2, 1, 0, 1, 2]])
def test_images_of_unknown_domains_are_answered_one_by_one(policy: str, domain: list[int]) -> None:
    """This catches rows that come back in another order, unknown domains taken for the last one (index -1 of a
    list), a policy applied to images of known domains, one nearest domain for the whole batch."""
    net, images = network(), spread_crops()
    with torch.no_grad():
        expected = one_by_one(net, images, domain, policy)
        torch.testing.assert_close(answer(net, images, torch.tensor(domain), policy), expected, rtol=1e-4, atol=1e-5)
        if UNKNOWN_DOMAIN in domain:
            last = one_by_one(net, images, [len(NAMES) - 1 if label < 0 else label for label in domain], policy)
            assert not torch.allclose(last, expected, atol=1e-3)
        everyone = one_by_one(net, images, [UNKNOWN_DOMAIN] * 5, policy)
        assert torch.allclose(everyone, expected, atol=1e-4) == (domain == [UNKNOWN_DOMAIN] * 5)
        domains = domain_distances(net, images).argmin(1)
        assert len(domains.unique()) > 1  # else one domain for the whole batch would do
        with pytest.raises(ConfigError, match='"guess"'):
            answer(net, images, 0, "guess")
        with pytest.raises(ConditionError, match="a, b, c"):
            answer(net, images, UNKNOWN_DOMAIN, "error")


# BN embeddings written out, and the mistakes that the comparison refuses.


def slow_mixture(net: nn.Module, images: Tensor, wrong: str = "") -> tuple[Tensor, Tensor]:
    """Compute distances (B, G) and mixed embeddings (B, D), image by image, with one mistake."""
    distances, vectors = torch.zeros(len(images), 3), []
    for i, image in enumerate(images):
        outputs = []
        for g in range(3):
            x, moved = image[None], g
            for module in net:
                if isinstance(module, DomainBatchNorm):
                    if x.dim() == 4 and not (wrong == "first layer" and module is not net[1]):
                        mean, var = moments(x)
                        scale = (lambda v: v) if wrong == "variances" else torch.sqrt
                        distances[i, g] += (mean[0] - module.running_mean[g]).square().sum()
                        distances[i, g] += (scale(var[0]) - scale(module.running_var[g])).square().sum()
                    moved = 0 if wrong == "one network for all" else g
                    x = Given(module)(x, moved)
                else:
                    x = module(x)
            outputs.append(x[0])
        d = distances[i]
        weights = {"proportional": d / d.sum(), "softmax": torch.softmax(-d, 0)}.get(wrong, 1 / d / (1 / d).sum())
        unit = torch.stack([o if wrong == "unequal lengths" else o / o.norm() for o in outputs])
        vectors.append(functional.normalize((weights[:, None] * unit).sum(0), dim=0))
    return distances, torch.stack(vectors)


def check_mixture(found: tuple[Tensor, Tensor]) -> None:
    with torch.no_grad():
        expected = slow_mixture(network(), spread_crops())
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "wrong", ["variances", "first layer", "one network for all", "proportional", "softmax", "unequal lengths"]
)
def test_wrong_mixtures_are_refused(wrong: str) -> None:
    net, images = network(), spread_crops()
    with torch.no_grad():
        check_mixture((domain_distances(net, images), mixture(net, images)))
        mistaken = slow_mixture(net, images, wrong)
    with pytest.raises(AssertionError):
        check_mixture(mistaken)


def test_mixed_statistics_are_not_a_mixture() -> None:
    """The policy "prior" normalizes once, by a mixture of statistics; "mixture" adds the embeddings of the domains."""
    net, images = network(), crops()
    with torch.no_grad():
        equal = mixture(net, images, torch.full((len(images), 3), 1 / 3))
        prior = functional.normalize(UNSEEN_DOMAIN_ANSWERS["prior"](net, images), dim=1)
        assert not torch.allclose(equal, prior, atol=1e-2)
        layer = net[1]
        mean = layer.running_mean.mean(0)
        var = layer.running_var.mean(0) + (layer.running_mean - mean).square().mean(0)
        wider = add_domain(net, "new")[1]
        torch.testing.assert_close(wider.running_mean[3], mean)
        torch.testing.assert_close(wider.running_var[3], var)
        assert not torch.allclose(wider.running_var[3], layer.running_var.mean(0), rtol=0.1)  # between the means lost
