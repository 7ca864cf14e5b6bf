"""Every system by a slow oracle, image by image in float64, written out for one layer.

An oracle takes the name of a mistake.  Without one it computes what the layer must give; with one it is a wrong
implementation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.norm import Condition, DomainBatchNorm, given

CHANNELS = 6

LABELS = [0, 1, 0, 1, 1, 0, 1]

EVEN = [0, 1, 0, 1]

Rows = list[tuple[Tensor, Tensor]]


def layer_with(domain_affine: bool = False, **parts: nn.Module) -> DomainBatchNorm:
    """Make a layer in float64 whose two domains, channels and learned parts all differ."""
    torch.manual_seed(0)
    layer = DomainBatchNorm(CHANNELS, ("a", "b"), affine="domain" if domain_affine else "shared")
    for name, part in parts.items():
        setattr(layer, name, part)
    layer.double()
    with torch.no_grad():
        for parameter in (p for p in layer.parameters() if p.dim()):  # the alpha of DIAL stays as it was given
            parameter.copy_(torch.rand(parameter.shape) + 0.3 * torch.randn(parameter.shape))
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return layer


def images(count: int = len(LABELS), seed: int = 1, size: tuple[int, int] = (3, 2)) -> Tensor:
    """Draw maps whose images and channels differ in mean and deviation."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(count, CHANNELS, 1, 1, generator=generator, dtype=torch.float64) + 0.5
    offset = 2 * torch.randn(count, CHANNELS, 1, 1, generator=generator, dtype=torch.float64)
    return torch.randn(count, CHANNELS, *size, generator=generator, dtype=torch.float64) * scale + offset


def run(layer: nn.Module, x: Tensor, domain: Tensor | int | None) -> Tensor:
    with given(Condition(domain)):
        return layer(x)


def of(x: Tensor, correction: int = 0) -> tuple[Tensor, Tensor]:
    """Compute the mean and the variance (C,) of all values of some images."""
    return x.mean((0, 2, 3)), x.var((0, 2, 3), correction=correction)


def of_weighted(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    share = (weights / weights.sum()).view(-1, 1, 1, 1) / x[0, 0].numel()
    mean = (share * x).sum((0, 2, 3))
    return mean, (share * (x - mean.view(1, -1, 1, 1)).square()).sum((0, 2, 3))


def standard(image: Tensor, mean: Tensor, var: Tensor, layer: DomainBatchNorm) -> Tensor:
    """Standardize one image (C, H, W) by statistics (C,)."""
    return (image - mean[:, None, None]) / (var + layer.eps).sqrt()[:, None, None]


def affine(layer: DomainBatchNorm, y: Tensor, domain: int = 0) -> Tensor:
    weight, bias = (p[domain] if p.dim() == 2 else p for p in (layer.weight, layer.bias))
    return y * weight[:, None, None] + bias[:, None, None]


def domain_rows(layer: DomainBatchNorm, x: Tensor, domain: list[int]) -> Rows:
    """Return the statistics of each domain: the batch's in training, the running ones in evaluation."""
    if not layer.training:
        return list(zip(layer.running_mean, layer.running_var, strict=True))
    return [of(x[[i for i, label in enumerate(domain) if label == g]]) for g in (0, 1)]


def ibn(layer: DomainBatchNorm, x: Tensor, domain: list[int], wrong: str = "") -> Tensor:
    """Normalize half of the channels by image, the others by domain."""
    rows, half, out = domain_rows(layer, x, domain), CHANNELS // 2, []
    for image, label in zip(x, domain, strict=True):
        own = of(image[None], int(wrong == "unbiased instance variance"))
        instance, batch = standard(image, *own, layer), standard(image, *rows[label], layer)
        if wrong == "halves swapped":
            instance, batch = batch, instance
        if wrong == "instance statistics of the batch":
            instance = standard(image, *of(x), layer)
        if wrong == "every other channel":
            odd = torch.arange(CHANNELS)[:, None, None] % 2 == 1
            out.append(affine(layer, torch.where(odd, batch, instance)))
            continue
        out.append(affine(layer, torch.cat([instance[:half], batch[half:]])))
    return torch.stack(out)


def blend(layer: DomainBatchNorm, x: Tensor, domain: list[int], wrong: str = "") -> Tensor:
    """Compute BIN: rho BN + (1 - rho) IN, a mixture of outputs, then one affine."""
    rows, out = domain_rows(layer, x, domain), []
    rho = layer.source.gate.detach().clamp(0, 1)
    rho = {"gate turned round": 1 - rho, "gate of the first channel": rho[:1].expand(CHANNELS)}.get(wrong, rho)
    for image, label in zip(x, domain, strict=True):
        own = of(image[None])
        if wrong == "statistics mixed":
            mean, var = (rho * a + (1 - rho) * b for a, b in zip(rows[label], own, strict=True))
            out.append(affine(layer, standard(image, mean, var, layer)))
            continue
        part = rho[:, None, None]
        mixed = part * standard(image, *rows[label], layer) + (1 - part) * standard(image, *own, layer)
        if wrong == "affine only of the batch part":
            mixed = part * affine(layer, standard(image, *rows[label], layer)) + (1 - part) * standard(
                image, *own, layer
            )
        out.append(mixed if wrong == "affine only of the batch part" else affine(layer, mixed))
    return torch.stack(out)


def dson(layer: DomainBatchNorm, x: Tensor, domain: list[int], wrong: str = "") -> Tensor:
    """Compute DSON: mixed means and variances, with weights for each of them in every domain."""
    rows, out = domain_rows(layer, x, domain), []
    for image, label in zip(x, domain, strict=True):
        own, (mean, var) = of(image[None]), rows[label]
        w, v = torch.sigmoid(layer.source.logits.detach())[0 if wrong == "weights of the first domain" else label]
        w, v = {"weights turned round": (1 - w, 1 - v), "one weight for both": (w, w)}.get(wrong, (w, v))
        mixed = w * mean + (1 - w) * own[0], v * var + (1 - v) * own[1]
        if wrong == "variance between the means added":
            mixed = mixed[0], mixed[1] + v * (1 - v) * (mean - own[0]).square()
        y = standard(image, *mixed, layer)
        if wrong == "outputs mixed":
            y = w * standard(image, mean, var, layer) + (1 - w) * standard(image, *own, layer)
        out.append(affine(layer, y, 0 if wrong == "affine of the first domain" else label))
    return torch.stack(out)


def dial(layer: DomainBatchNorm, x: Tensor, domain: list[int], wrong: str = "") -> Tensor:
    """Compute DIAL: cross-domain statistics with the variance around the mixed mean."""
    alpha, rows, out = layer.source.alpha.detach().clamp(0.5, 1), domain_rows(layer, x, domain), []
    if wrong == "alpha turned round":
        alpha = 1 - alpha
    if not layer.training:  # running statistics were mixed when they were measured
        return torch.stack(
            [affine(layer, standard(image, *rows[label], layer)) for image, label in zip(x, domain, strict=True)]
        )
    for image, label in zip(x, domain, strict=True):
        (mean, var), (other, other_var) = rows[label], rows[1 - label]
        mixed = alpha * mean + (1 - alpha) * other
        within = alpha * var + (1 - alpha) * other_var
        between = alpha * (mean - mixed).square() + (1 - alpha) * (other - mixed).square()
        if wrong == "by number of images":
            share = domain.count(label) / len(domain)
            mixed, between = share * mean + (1 - share) * other, share * (1 - share) * (mean - other).square()
            within = share * var + (1 - share) * other_var
        if wrong == "variances mixed":
            between = 0 * between
        out.append(affine(layer, standard(image, mixed, within + between, layer)))
    return torch.stack(out)


def transnorm(layer: DomainBatchNorm, x: Tensor, domain: list[int], wrong: str = "") -> Tensor:
    """Compute TransNorm: BatchNorm by domain, times 1 + the transferability of the channel."""
    rows, out = domain_rows(layer, x, domain), []
    scaled = [mean if wrong == "raw means" else mean / (var + layer.eps).sqrt() for mean, var in rows]
    distance = (scaled[0] - scaled[1]).abs()
    near = distance if wrong == "far channels count more" else 1 / (1 + distance)
    factor = near / near.sum() * (1 if wrong == "sums to one" else CHANNELS)
    factor = factor if wrong == "without the one" else 1 + factor
    for image, label in zip(x, domain, strict=True):
        y = standard(image, *rows[0 if wrong == "the other domain's statistics" else label], layer)
        weight, bias = layer.weight[:, None, None], layer.bias[:, None, None]
        part = factor[:, None, None]
        out.append(y * weight * part + bias if wrong == "shift not weighed" else (y * weight + bias) * part)
    return torch.stack(out)


def latent(layer: DomainBatchNorm, x: Tensor, weights: Tensor, wrong: str = "") -> Tensor:
    """Compute WBN: statistics by weights, outputs mixed by the same weights, then the affine."""
    if wrong == "weights of the first image":
        weights = weights[:1].expand_as(weights)
    hard = functional.one_hot(weights.argmax(1), 2).to(weights)
    rows, out = list(zip(layer.running_mean, layer.running_var, strict=True)), []
    for k in (0, 1) if layer.training else ():
        members = (hard if wrong == "statistics of the likeliest" else weights)[:, k]
        if members.sum() * x[0, 0].numel() > 1:  # less than a value has no variance
            rows[k] = of_weighted(x, members)
    for image, share in zip(x, hard if wrong == "only the likeliest" else weights, strict=True):
        if wrong == "statistics mixed":
            mean, var = (share[0] * a + share[1] * b for a, b in zip(*rows, strict=True))
            out.append(affine(layer, standard(image, mean, var, layer)))
            continue
        out.append(affine(layer, sum(share[k] * standard(image, *rows[k], layer) for k in (0, 1))))
    return torch.stack(out)


def gated(layer: DomainBatchNorm, x: Tensor, domain: list[int] | None, wrong: str = "") -> Tensor:
    """Compute gated BN: outputs of all domains, affine included, mixed by the gate; by domain where it is given."""
    if domain is not None:
        rows = domain_rows(layer, x, domain)
        return torch.stack([affine(layer, standard(i, *rows[g], layer), g) for i, g in zip(x, domain, strict=True)])
    first, last, rows, out = layer.gate.layers[0], layer.gate.layers[2], domain_rows(layer, x, []), []
    logits = []
    for image in x:
        moments = of(x if wrong == "a gate that sees the batch" else image[None])
        hidden = (first.weight @ torch.cat([moments[0], (moments[1] + 1e-5).sqrt()]) + first.bias).clamp_min(0)
        logits.append(last.weight @ hidden + last.bias)
    p = torch.softmax(torch.stack(logits), 0 if wrong == "softmax over the batch" else 1)
    p = functional.one_hot(p.argmax(1), 2).to(p) if wrong == "the likeliest branch" else p
    p = torch.full_like(p, 0.5) if wrong == "no gate" else p
    for image, share in zip(x, p, strict=True):
        branches = [standard(image, *rows[k], layer) for k in (0, 1)]
        if wrong == "affine of the first branch":
            out.append(affine(layer, share[0] * branches[0] + share[1] * branches[1]))
            continue
        out.append(share[0] * affine(layer, branches[0], 0) + share[1] * affine(layer, branches[1], 1))
    return torch.stack(out)


def prior(layer: DomainBatchNorm, x: Tensor, domain: list[int], wrong: str = "") -> Tensor:
    """Compute the prior of Schneider et al.: running statistics count as N images beside the n of the batch."""
    number, running, out = layer.source.images, list(zip(layer.running_mean, layer.running_var, strict=True)), []
    for image, label in zip(x, domain, strict=True):
        own = x if wrong == "all images of the batch" else x[[i for i, g in enumerate(domain) if g == label]]
        n = len(own) * (x[0, 0].numel() if wrong == "pixels counted" else 1)
        share = n / (n + number)
        share = 1 - share if wrong == "turned round" else share
        mean, var = of(own, int(wrong == "unbiased"))
        between = share * (1 - share) * (mean - running[label][0]).square()
        mixed = (1 - share) * running[label][1] + share * var
        mixture = layer.source.variance == "mixture"
        if mixture != (wrong == "the other variance"):
            mixed = mixed + between
        out.append(affine(layer, standard(image, (1 - share) * running[label][0] + share * mean, mixed, layer)))
    return torch.stack(out)


def nado(layer: DomainBatchNorm, x: Tensor, domain: list[int], wrong: str = "") -> Tensor:
    """Compute prediction-time BatchNorm: in evaluation the statistics of each domain in the batch."""
    rows = [of(x[[i for i, label in enumerate(domain) if label == g]], int(wrong == "unbiased")) for g in (0, 1)]
    rows = [of(x)] * 2 if wrong == "domains mixed" else rows
    if wrong == "running statistics":
        rows = list(zip(layer.running_mean, layer.running_var, strict=True))
    if wrong == "by image":
        return torch.stack([affine(layer, standard(image, *of(image[None]), layer)) for image in x])
    return torch.stack([affine(layer, standard(i, *rows[g], layer)) for i, g in zip(x, domain, strict=True)])


def weights_of(count: int, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(2 * torch.randn(count, 2, generator=generator, dtype=torch.float64), 1)


class SystemCase:
    """How a layer is made and called, what it is compared with, and the mistakes that must be refused."""

    def __init__(
        self,
        layer: Callable[[], DomainBatchNorm],
        oracle: Callable[..., Tensor],
        wrong: tuple[str, ...],
        asked: str = "labels",
        modes: tuple[bool, ...] = (True, False),
    ) -> None:
        self.layer, self.oracle, self.wrong, self.asked, self.modes = layer, oracle, wrong, asked, modes

    def found(self, x: Tensor, indices: list[int], training: bool) -> Tensor:
        domain = {"labels": torch.tensor(indices), "weights": weights_of(len(x)), "nothing": None}[self.asked]
        return run(self.layer().train(training), x, domain)

    def expected(self, x: Tensor, indices: list[int], training: bool, wrong: str = "") -> Tensor:
        domain = {"labels": indices, "weights": weights_of(len(x)), "nothing": None}[self.asked]
        return self.oracle(self.layer().train(training), x, domain, wrong)
