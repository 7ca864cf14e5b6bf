"""Style: remove the moments of a map over its positions and replace them by others.

The style of a feature map is its mean and variance in every channel (Huang & Belongie 2017), or all second moments
(Gatys et al. 2016).  Functions take the wanted style as an argument.  Layers inside a network take it from
``Given(network)(images, style=...)``; such a layer is a normalization without affine, and a part that turns a style
into scale and shift.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ConditionError, DataError
from reid.norm.condition import current_condition
from reid.norm.statistics import moments, statistics_dtype


def instance_norm(x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Give every channel of every image a mean and a standard deviation (Ulyanov et al. 2016).

    Args:
        x: (B, C, H, W); computed in at least float32.
        scale: The standard deviations (C,), or (B, C) for each image; 1 by default.
        shift: The means (C,), or (B, C) for each image; 0 by default.
        eps: Is added to variances.

    Returns:
        (B, C, H, W), of the type of ``x``.

    Raises:
        DataError: If a map has one position, and so no variance.

    Example:
        >>> y = instance_norm(torch.randn(2, 3, 8, 8), shift=torch.full((3,), 5.0))
        >>> y.mean((2, 3)).allclose(torch.full((2, 3), 5.0), atol=1e-5)
        True
    """
    if x.shape[2] * x.shape[3] < 2:
        raise DataError(
            f"instance normalization needs maps of 2 positions or more, got {tuple(x.shape)}:"
            " use it before the pooling, or on larger images"
        )
    mean, var = moments(x)
    factor = torch.rsqrt(var + eps)
    y = (x - _as_maps(mean)) * _as_maps(factor if scale is None else factor * scale)
    return (y if shift is None else y + _as_maps(shift)).to(x.dtype)


def adain(content: Tensor, style: Tensor, alpha: float = 1.0, eps: float = 1e-5) -> Tensor:
    """Give a map the means and variances of another: sigma(s) (x - mu(x)) / sigma(x) + mu(s).

    Huang & Belongie 2017, equation 8.  Both variances are biased and have the same ``eps``, so ``adain(x, x)`` is x;
    with unbiased ones, as in widespread code, the moments of the result would depend on the sizes of the two maps.

    Args:
        content: x (B, C, H, W).
        style: s (B or 1, C, h, w).
        alpha: The fraction of the style, 0..1.
        eps: Is added to variances.

    Returns:
        (B, C, H, W).

    Raises:
        DataError: If the two maps do not belong together.
    """
    _check_pair(content, style)
    mean, var = moments(style)
    return torch.lerp(content, instance_norm(content, (var + eps).sqrt(), mean, eps).to(content.dtype), alpha)


def gram(x: Tensor) -> Tensor:
    """Compute the second moments Cov + m m^T of the channels over positions: x (B, C, H, W) -> (B, C, C).

    They are divided by H W only (Gatys et al. 2016 put constants into the loss); some code divides by C as well.
    """
    rows = x.to(statistics_dtype(x)).flatten(2)
    return rows @ rows.mT / rows.shape[2]


@torch.no_grad()
def whiten_and_colour(content: Tensor, style: Tensor, alpha: float = 1.0, floor: float = 1e-8) -> Tensor:
    """Give a map the means and the covariance of another, in float64 and without a gradient.

    E_s D_s^1/2 E_s^T E_c D_c^-1/2 E_c^T (f - m_c) + m_s (Li et al. 2017, equations 1 and 3).  Nothing is added to the
    covariance.  The gradient of an eigenbasis is not finite where eigenvalues repeat, so there is none.

    Args:
        content: f (B, C, H, W).
        style: (B or 1, C, h, w).
        alpha: The fraction of the style, 0..1.
        floor: Directions with less variance than this fraction of the largest are dropped, which keeps the result
            finite for content of deficient rank.

    Returns:
        (B, C, H, W).

    Raises:
        DataError: If the two maps do not belong together.
    """
    _check_pair(content, style)
    mean, cov = _covariance(content)
    style_mean, style_cov = _covariance(style)
    transform = _symmetric_power(style_cov, 0.5, floor) @ _symmetric_power(cov, -0.5, floor)
    restyled = transform @ (content.double().flatten(2) - mean[:, :, None]) + style_mean[:, :, None]
    return torch.lerp(content.double(), restyled.view(content.shape), alpha).to(content.dtype)


def dynamic_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve every image with its own kernel, as one grouped convolution without a loop over images.

    Args:
        x: (B, C, H, W).
        weight: (B, O, C / groups, k, k), k odd.
        bias: (B, O).

    Returns:
        (B, O, H, W); padding keeps the size.
    """
    images, channels, height, width = x.shape
    groups = images * (channels // weight.shape[2])
    flat = x.reshape(1, images * channels, height, width)
    y = functional.conv2d(flat, weight.flatten(0, 1), padding=weight.shape[-1] // 2, groups=groups)
    y = y.view(images, weight.shape[1], height, width)
    return y if bias is None else y + _as_maps(bias)


class InstanceNorm(nn.Module):
    """:func:`instance_norm` without affine, as a layer: no parameters, the same in training and evaluation."""

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (B, C, H, W); the result has the same shape."""
        return instance_norm(x, eps=self.eps)


class TableAffine(nn.Module):
    """A table with a row of scale and shift for each of K styles, which start with scale 1 and shift 0.

    A style is an index, int64 (B,), or weights (B, K) that mix rows (Dumoulin et al. 2017, section 3.2).
    """

    def __init__(self, styles: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(styles, channels))
        self.bias = nn.Parameter(torch.zeros(styles, channels))

    def forward(self, style: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and shift (B, C) of each image; raise ConditionError for a style that is not in the table."""
        styles = len(self.weight)
        if style.is_floating_point() and style.dim() == 2 and style.shape[1] == styles:
            return style @ self.weight, style @ self.bias
        if style.dtype != torch.int64 or style.dim() != 1:
            raise ConditionError(f"style: expected int64 indices (B,) or weights (B, {styles}), got {_describe(style)}")
        if not torch.compiler.is_compiling() and style.device.type == "cpu":
            unknown = style[(style < 0) | (style >= styles)]
            if len(unknown):
                raise ConditionError(f"style {int(unknown[0])} is out of range: this layer has {styles}")
        return self.weight[style], self.bias[style]


class PredictedAffine(nn.Module):
    """Scale and shift that a network predicts from a style vector: (B, S) float -> (B, C), (B, C).

    They are 1 + the first half, and the second half, of a linear map, or with ``hidden`` of an MLP with one hidden
    layer.  The last map starts with zeros, so that at first every style gets scale 1 and shift 0.
    """

    def __init__(self, style_size: int, channels: int, hidden: int | None = None) -> None:
        super().__init__()
        self.style_size = style_size
        self.encode = nn.Identity() if hidden is None else nn.Sequential(nn.Linear(style_size, hidden), nn.ReLU())
        self.predict = nn.Linear(hidden or style_size, 2 * channels)
        nn.init.zeros_(self.predict.weight)
        nn.init.zeros_(self.predict.bias)

    def forward(self, style: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and shift (B, C) of each image; raise ConditionError for a style of another size."""
        _check_vector(style, self.style_size)
        scale, shift = self.predict(self.encode(style)).chunk(2, dim=1)
        return 1 + scale, shift


class Styled(nn.Module):
    """A normalization whose scale and shift depend on a style: y = norm(x) * scale(style) + shift(style).

    Args:
        norm: Maps (B, C, H, W) to the same shape, without affine.
        affine: Maps a style to scale and shift, (B, C) each.
    """

    def __init__(self, norm: nn.Module, affine: nn.Module) -> None:
        super().__init__()
        self.norm, self.affine = norm, affine

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        """Normalize x (B, C, H, W); ``style`` is by default the one that ``Given`` passes, or ConditionError."""
        style = current_style() if style is None else style
        _check_rows(style, len(x))
        scale, shift = self.affine(style)
        return torch.addcmul(_as_maps(shift).to(x.dtype), self.norm(x), _as_maps(scale).to(x.dtype))


def conditional_instance_norm(channels: int, styles: int, eps: float = 1e-5) -> Styled:
    """Build conditional IN (Dumoulin et al. 2017): an affine for each of ``styles`` styles, or a mixture of them.

    Example:
        >>> from reid.norm import Given
        >>> layer = Given(conditional_instance_norm(3, styles=2))
        >>> layer(torch.randn(4, 3, 8, 8), style=torch.tensor([0, 1, 1, 0])).shape
        torch.Size([4, 3, 8, 8])
    """
    return Styled(InstanceNorm(eps), TableAffine(styles, channels))


def style_modulation(channels: int, style_size: int, hidden: int | None = None, eps: float = 1e-8) -> Styled:
    """Build StyleGAN's AdaIN (Karras et al. 2019): IN(x) (1 + a(w)) + b(w), a and b linear in the style w.

    With ``hidden`` 256 it is the AdaIN of MUNIT's decoder (Huang et al. 2018), where one MLP serves all layers.
    """
    return Styled(InstanceNorm(eps), PredictedAffine(style_size, channels, hidden))


def self_modulation(channels: int, latent_size: int, hidden: int = 32) -> Styled:
    """Build self-modulated BN (Chen et al. 2019): BN(x) gamma(z) + beta(z), one hidden layer of ReLUs for both.

    As published, BN has no affine, eps 1e-3, and running statistics with decay 0.999.
    """
    norm = nn.BatchNorm2d(channels, eps=1e-3, momentum=1e-3, affine=False)
    return Styled(norm, PredictedAffine(latent_size, channels, hidden))


class DynamicInstanceNorm(nn.Module):
    """Dynamic IN (Jing et al. 2020): IN(x), convolved with a kernel and a bias that are predicted from the style.

    It starts as plain IN: the predicted kernel is the identity for every style.

    Args:
        channels: C.
        style_size: The length of a style vector.
        kernel: The side of the kernel, odd.
        groups: The groups of the convolution; by default as many as channels, which with a kernel of 1 is AdaIN.
        eps: Is added to variances.
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
        """Normalize x (B, C, H, W); ``style`` is by default the one that ``Given`` passes, or ConditionError."""
        style = current_style() if style is None else style
        _check_vector(style, self.style_size)
        _check_rows(style, len(x))
        predicted = self.predict(style).to(x.dtype)
        weight, bias = predicted[:, : self.shape.numel()], predicted[:, self.shape.numel() :]
        return dynamic_convolution(instance_norm(x, eps=self.eps), weight.view(-1, *self.shape), bias)


def current_style() -> Tensor:
    """Return the style of the forward pass of this thread; raise ConditionError if there is none."""
    condition = current_condition()
    if condition is None or condition.style is None:
        raise ConditionError(
            "this network depends on a style and was given none: call Given(network)(images, style=...)"
        )
    return condition.style


def _as_maps(values: Tensor) -> Tensor:
    """(C,) or (B, C) -> (C, 1, 1) or (B, C, 1, 1)."""
    return values[..., None, None]


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _check_vector(style: Tensor, size: int) -> None:
    if not style.is_floating_point() or style.dim() != 2 or style.shape[1] != size:
        raise ConditionError(f"style: expected float vectors (B, {size}), got {_describe(style)}")


def _check_rows(style: Tensor, images: int) -> None:
    """Check that there is a style for each image; a single row would broadcast and hide a mistake."""
    if len(style) != images:
        raise ConditionError(f"style: expected one row for each of {images} images, got {_describe(style)}")


def _check_pair(content: Tensor, style: Tensor) -> None:
    if style.dim() != 4 or style.shape[1] != content.shape[1] or len(style) not in (1, len(content)):
        raise DataError(
            f"style map: expected {content.shape[1]} channels and 1 or {len(content)} images as the content"
            f" {tuple(content.shape)}, got {tuple(style.shape)}"
        )


def _covariance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean (B, C) and biased covariance (B, C, C) over positions, in float64."""
    rows = x.double().flatten(2)
    mean = rows.mean(2)
    centred = rows - mean[:, :, None]
    return mean, centred @ centred.mT / rows.shape[2]


def _symmetric_power(cov: Tensor, exponent: float, floor: float) -> Tensor:
    """Raise ``cov`` (B, C, C) to a power; directions below ``floor`` times its largest eigenvalue become zero."""
    values, vectors = torch.linalg.eigh(cov)  # ascending
    kept = values > floor * values[:, -1:].clamp_min(torch.finfo(values.dtype).tiny)
    powers = torch.where(kept, values.clamp_min(torch.finfo(values.dtype).tiny).pow(exponent), 0.0)
    power: Tensor = (vectors * powers[:, None, :]) @ vectors.mT
    return power
