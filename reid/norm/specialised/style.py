"""Style: the moments of a map over its positions, taken out and replaced by others.

The style of a feature map is its mean and variance in every channel (Huang & Belongie 2017), or all second
moments (Gatys et al. 2016).  Functions take the wanted style as an argument.  Layers, which sit inside a
network, read it from the condition of the forward pass: ``Given(network)(images, style=...)``.  A layer is a
normalization without affine and one part that turns a style into a scale and a shift; which table row or
which vector stands for which camera, nothing here knows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ConditionError, DataError
from reid.norm.condition import current_condition
from reid.norm.statistics import moments, statistics_dtype


def instance_norm(x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Every image and channel to mean ``shift`` and standard deviation ``scale``, x (B, C, H, W) -> the same shape.

    ``scale`` (default 1) and ``shift`` (default 0) are (C,), or (B, C) for an affine of each image's own.
    Computed in at least float32.  A map of one position has no variance: DataError, as it would become the
    shift alone (Ulyanov et al. 2016).
    """
    if x.shape[2] * x.shape[3] < 2:
        raise DataError(
            f"instance normalization needs maps of 2 positions or more, got {tuple(x.shape)}:"
            " use it before the pooling, or on larger images"
        )
    mean, var = moments(x)
    factor = torch.rsqrt(var + eps)
    y = (x - _wide(mean)) * _wide(factor if scale is None else factor * scale)
    return (y if shift is None else y + _wide(shift)).to(x.dtype)


def adain(content: Tensor, style: Tensor, alpha: float = 1.0, eps: float = 1e-5) -> Tensor:
    """The content (B, C, H, W) with means and variances of ``style`` (B or 1, C, h, w) to the part ``alpha`` 0..1.

    sigma(s) (x - mu(x)) / sigma(x) + mu(s) (Huang & Belongie 2017, equation 8).  Both variances are biased and
    have the same ``eps``, so ``adain(x, x)`` is x; with unbiased ones, as in widespread code, output moments
    would depend on the two map sizes.
    """
    _check_pair(content, style)
    mean, var = moments(style)
    return torch.lerp(content, instance_norm(content, (var + eps).sqrt(), mean, eps).to(content.dtype), alpha)


def gram(x: Tensor) -> Tensor:
    """Second moments of the channels over positions: x (B, C, H, W) -> (B, C, C), Cov + m m^T, no order of positions.

    Divided by H W only (Gatys et al. 2016 fold constants into the loss); some code divides by C as well.
    """
    rows = x.to(statistics_dtype(x)).flatten(2)
    return rows @ rows.mT / rows.shape[2]


@torch.no_grad()
def whiten_and_colour(content: Tensor, style: Tensor, alpha: float = 1.0, floor: float = 1e-8) -> Tensor:
    """The content (B, C, H, W) with means and covariance of ``style`` (B or 1, C, h, w) to the part ``alpha`` 0..1.

    E_s D_s^1/2 E_s^T E_c D_c^-1/2 E_c^T (f - m_c) + m_s (Li et al. 2017, equations 1 and 3), in float64.
    Directions with less variance than ``floor`` times the strongest are dropped, which keeps content of
    deficient rank finite; nothing is added to the covariance.  Without gradient: that of an eigenbasis is not
    finite where eigenvalues repeat.
    """
    _check_pair(content, style)
    mean, cov = _covariance(content)
    style_mean, style_cov = _covariance(style)
    transform = _symmetric_power(style_cov, 0.5, floor) @ _symmetric_power(cov, -0.5, floor)
    restyled = transform @ (content.double().flatten(2) - mean[:, :, None]) + style_mean[:, :, None]
    return torch.lerp(content.double(), restyled.view(content.shape), alpha).to(content.dtype)


def dynamic_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Every image with a kernel of its own, padded to keep the size: x (B, C, H, W) -> (B, O, H, W).

    ``weight`` (B, O, C / groups, k, k), k odd; ``bias`` (B, O).  One grouped convolution, no loop over images.
    """
    images, channels, height, width = x.shape
    groups = images * (channels // weight.shape[2])
    flat = x.reshape(1, images * channels, height, width)
    y = functional.conv2d(flat, weight.flatten(0, 1), padding=weight.shape[-1] // 2, groups=groups)
    y = y.view(images, weight.shape[1], height, width)
    return y if bias is None else y + _wide(bias)


class InstanceNorm(nn.Module):
    """:func:`instance_norm` without affine, as a layer: no parameters, the same in training and evaluation."""

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> the same shape."""
        return instance_norm(x, eps=self.eps)


class TableAffine(nn.Module):
    """A row of scale and shift for each of K styles: labels (B,) int64 or weights (B, K) -> (B, C), (B, C).

    Weights mix rows (Dumoulin et al. 2017, section 3.2).  All styles start as scale 1, shift 0.
    """

    def __init__(self, styles: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(styles, channels))
        self.bias = nn.Parameter(torch.zeros(styles, channels))

    def forward(self, style: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift of each image; ConditionError for a style the table does not have."""
        styles = len(self.weight)
        if style.is_floating_point() and style.dim() == 2 and style.shape[1] == styles:
            return style @ self.weight, style @ self.bias
        if style.dtype != torch.int64 or style.dim() != 1:
            raise ConditionError(f"style: expected int64 labels (B,) or weights (B, {styles}), got {_described(style)}")
        if not torch.compiler.is_compiling() and style.device.type == "cpu":
            unknown = style[(style < 0) | (style >= styles)]
            if len(unknown):
                raise ConditionError(f"style {int(unknown[0])} is out of range: this layer has {styles}")
        return self.weight[style], self.bias[style]


class PredictedAffine(nn.Module):
    """Scale and shift predicted from a style vector: (B, S) float -> (B, C), (B, C).

    1 + the first and the second half of a linear map, or with ``hidden`` of an MLP with one hidden layer.  The
    last map starts at zero, so that at first every style gets scale 1 and shift 0.
    """

    def __init__(self, style_size: int, channels: int, hidden: int | None = None) -> None:
        super().__init__()
        self.style_size = style_size
        self.encode = nn.Identity() if hidden is None else nn.Sequential(nn.Linear(style_size, hidden), nn.ReLU())
        self.predict = nn.Linear(hidden or style_size, 2 * channels)
        nn.init.zeros_(self.predict.weight)
        nn.init.zeros_(self.predict.bias)

    def forward(self, style: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift of each image; ConditionError for a style of another size."""
        _check_vector(style, self.style_size)
        scale, shift = self.predict(self.encode(style)).chunk(2, dim=1)
        return 1 + scale, shift


class Styled(nn.Module):
    """A normalization without affine, coloured by the style: y = norm(x) * scale(style) + shift(style).

    ``norm`` maps (B, C, H, W) to the same shape; ``affine`` a style to scale and shift, (B, C) each.
    """

    def __init__(self, norm: nn.Module, affine: nn.Module) -> None:
        super().__init__()
        self.norm, self.affine = norm, affine

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        """x (B, C, H, W) -> the same shape; without ``style`` it is the condition's, or ConditionError."""
        style = current_style() if style is None else style
        _check_rows(style, len(x))
        scale, shift = self.affine(style)
        return torch.addcmul(_wide(shift).to(x.dtype), self.norm(x), _wide(scale).to(x.dtype))


def conditional_instance_norm(channels: int, styles: int, eps: float = 1e-5) -> Styled:
    """Conditional IN (Dumoulin et al. 2017): an affine for each of ``styles`` labels, or a mixture of them."""
    return Styled(InstanceNorm(eps), TableAffine(styles, channels))


def style_modulation(channels: int, style_size: int, hidden: int | None = None, eps: float = 1e-8) -> Styled:
    """StyleGAN's AdaIN (Karras et al. 2019): IN(x) (1 + a(w)) + b(w), a and b linear in the style w.

    With ``hidden`` 256 the AdaIN of MUNIT's decoder (Huang et al. 2018), except that there one MLP serves all
    layers.
    """
    return Styled(InstanceNorm(eps), PredictedAffine(style_size, channels, hidden))


def self_modulation(channels: int, latent_size: int, hidden: int = 32) -> Styled:
    """Self-modulated BN (Chen et al. 2019): BN(x) gamma(z) + beta(z), one hidden layer of ReLUs for both.

    BN without affine, eps 1e-3 and running statistics of decay 0.999, as published.
    """
    norm = nn.BatchNorm2d(channels, eps=1e-3, momentum=1e-3, affine=False)
    return Styled(norm, PredictedAffine(latent_size, channels, hidden))


class DynamicInstanceNorm(nn.Module):
    """Dynamic IN (Jing et al. 2020): IN(x) convolved with a kernel and a bias predicted from the style.

    ``kernel`` k (odd) and ``groups`` choose between AdaIN (k = 1, groups = channels, the default) and a full
    convolution.  Starts as plain IN: the predicted kernel is the identity for every style.
    """

    def __init__(
        self, channels: int, style_size: int, kernel: int = 1, groups: int | None = None, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.style_size, self.eps = style_size, eps
        groups = groups or channels
        identity = nn.init.dirac_(torch.empty(channels, channels // groups, kernel, kernel), groups)
        self.shape = identity.shape
        self.predict = nn.Linear(style_size, identity.numel() + channels)
        nn.init.zeros_(self.predict.weight)
        with torch.no_grad():
            self.predict.bias.copy_(torch.cat([identity.flatten(), torch.zeros(channels)]))

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        """x (B, C, H, W) -> the same shape; without ``style`` it is the condition's, or ConditionError."""
        style = current_style() if style is None else style
        _check_vector(style, self.style_size)
        _check_rows(style, len(x))
        predicted = self.predict(style).to(x.dtype)
        weight, bias = predicted[:, : self.shape.numel()], predicted[:, self.shape.numel() :]
        return dynamic_convolution(instance_norm(x, eps=self.eps), weight.view(-1, *self.shape), bias)


def current_style() -> Tensor:
    """The style of the forward pass that this thread is in; ConditionError if it was given none."""
    condition = current_condition()
    if condition is None or condition.style is None:
        raise ConditionError(
            "this network is coloured by a style and was told none: call Given(network)(images, style=...)"
        )
    return condition.style


def _wide(values: Tensor) -> Tensor:
    """(C,) or (B, C) -> the same with two axes of positions."""
    return values[..., None, None]


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _check_vector(style: Tensor, size: int) -> None:
    if not style.is_floating_point() or style.dim() != 2 or style.shape[1] != size:
        raise ConditionError(f"style: expected float vectors (B, {size}), got {_described(style)}")


def _check_rows(style: Tensor, images: int) -> None:
    """One style an image; a single row would broadcast and hide a mistake."""
    if len(style) != images:
        raise ConditionError(f"style: expected one row for each of {images} images, got {_described(style)}")


def _check_pair(content: Tensor, style: Tensor) -> None:
    if style.dim() != 4 or style.shape[1] != content.shape[1] or len(style) not in (1, len(content)):
        raise DataError(
            f"style map: expected {content.shape[1]} channels and 1 or {len(content)} images as the content"
            f" {tuple(content.shape)}, got {tuple(style.shape)}"
        )


def _covariance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, C) and biased covariance (B, C, C) over positions, in float64."""
    rows = x.double().flatten(2)
    mean = rows.mean(2)
    centred = rows - mean[:, :, None]
    return mean, centred @ centred.mT / rows.shape[2]


def _symmetric_power(cov: Tensor, exponent: float, floor: float) -> Tensor:
    """``cov`` (B, C, C) to a power on the directions above ``floor`` times its largest eigenvalue, zero elsewhere."""
    values, vectors = torch.linalg.eigh(cov)  # ascending
    kept = values > floor * values[:, -1:].clamp_min(torch.finfo(values.dtype).tiny)
    powers = torch.where(kept, values.clamp_min(torch.finfo(values.dtype).tiny).pow(exponent), 0.0)
    power: Tensor = (vectors * powers[:, None, :]) @ vectors.mT
    return power
