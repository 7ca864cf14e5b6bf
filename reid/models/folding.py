"""Fold the BatchNorm of a network for inference into its convolutions, and give each convolution its ReLU.

A network for one camera needs no norm layers: BatchNorm with fixed statistics is a scale and a shift of each channel,
which the convolution before it takes over (Jacob et al., "Quantization and Training of Neural Networks", CVPR 2018,
section 3.2).  The result is the same up to rounding, and spares a pass over every map.
"""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from reid.errors import ConfigError
from reid.models.embedder import Embedder
from reid.norm.convert import norm_layers

_RELU_METHODS = ("relu", "relu_")
_RELU_FUNCTIONS = (torch.relu, torch.relu_, functional.relu, functional.relu_)


class FoldedEmbedder(nn.Module):
    """An embedder whose backbone is folded; pooling, neck and the scaling to unit length stay in float32.

    Args:
        network: An embedder without domains, in evaluation mode; it stays as it is.
        source: Its file, for messages.
        dtype: What the backbone computes in.
        fuse_relu: Whether a convolution also computes the ReLU after it, in one pass; on a CPU with oneDNN only.

    Raises:
        ConfigError: If its backbone cannot be traced, or a norm chooses its statistics for each image.

    Example:
        >>> from reid.models.embedder import NetworkSpec
        >>> network, images = Embedder(NetworkSpec("osnet_x0_25")).eval(), torch.rand(2, 3, 64, 32)
        >>> bool((FoldedEmbedder(network, "example")(images) - network(images)).abs().max() < 1e-5)
        True
    """

    def __init__(
        self, network: nn.Module, source: str, dtype: torch.dtype = torch.float32, fuse_relu: bool = False
    ) -> None:
        super().__init__()
        if not isinstance(network, Embedder):
            raise ConfigError(f"{source}: expected a network of PyTorch to fold, got {type(network).__name__}")
        if norm_layers(network):
            raise ConfigError(
                f"{source}: its norms choose statistics for each image, so none can be folded; run it eager"
            )
        body = fold_batchnorm(network.backbone, source)
        if fuse_relu and can_fuse_relu():
            body = fuse_relus(body)
        self.dtype = dtype
        self.backbone = body.to(dtype).to(memory_format=torch.channels_last)
        self.pooling, self.neck = copy.deepcopy(network.pooling), copy.deepcopy(network.neck)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Compute the embeddings (B, D) float32, rows of unit length, of prepared images (B, 3, H, W) float32."""
        maps = self.backbone(images.to(self.dtype).contiguous(memory_format=torch.channels_last))
        return self.finish(self.pooling(maps.float()))

    def finish(self, features: Tensor) -> Tensor:
        """Compute the embeddings (B, D) of pooled features (B, C), both float32."""
        return functional.normalize(self.neck(features))


def fold_batchnorm(backbone: nn.Module, source: str) -> fx.GraphModule:
    """Trace a backbone and fold each BatchNorm that follows a convolution into it.

    Args:
        backbone: In evaluation mode; it stays as it is.
        source: Its file, for messages.

    Returns:
        A traced copy.  A BatchNorm that follows something else stays.

    Raises:
        ConfigError: If it cannot be traced, because its steps depend on the values of an image.
    """
    try:
        traced = fx.symbolic_trace(copy.deepcopy(backbone).eval())
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{source}: its network cannot be traced, so run it eager ({reason})") from error
    modules, calls = dict(traced.named_modules()), _calls(traced)
    for node in list(traced.graph.nodes):
        before = _convolution_before(node, modules, calls)
        if before is None or not _calls_a(node, modules, nn.BatchNorm2d) or calls[node.target] > 1:
            continue
        conv, norm = modules[str(before.target)], modules[str(node.target)]
        _replace(traced, str(before.target), fuse_conv_bn_eval(conv, norm))
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.graph.lint()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced


def can_fuse_relu() -> bool:
    """Return whether this PyTorch has the convolution with a step behind it, which its own compiler calls on a CPU."""
    return bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def fuse_relus(traced: fx.GraphModule) -> fx.GraphModule:
    """Let each convolution that a ReLU follows compute it too, in place; the result is the same bit for bit or nearly.

    Args:
        traced: A traced network without training; it changes.
    """
    modules, calls = dict(traced.named_modules()), _calls(traced)
    with_relu = set()
    for node in list(traced.graph.nodes):
        before = _convolution_before(node, modules, calls) if _is_relu(node, modules) else None
        conv = None if before is None else modules[str(before.target)]
        if before is not None and isinstance(conv, nn.Conv2d) and _pads_zeros(conv):
            with_relu.add(before.target)
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    for name, module in modules.items():
        if name in with_relu and isinstance(module, nn.Conv2d):
            _replace(traced, name, _ConvolutionWithRelu(module))
    traced.graph.lint()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced


class _ConvolutionWithRelu(nn.Module):
    """A convolution and the ReLU of its result, computed by oneDNN in one pass."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self._geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)

    def forward(self, x: Tensor) -> Tensor:
        run = torch.ops.mkldnn._convolution_pointwise
        result: Tensor = run(x, self.weight, self.bias, *self._geometry, "relu", [], "")
        return result


def _calls(traced: fx.GraphModule) -> Counter[object]:
    """How often each module is called."""
    return Counter(node.target for node in traced.graph.nodes if node.op == "call_module")


def _convolution_before(node: fx.Node, modules: dict[str, nn.Module], calls: Counter[object]) -> fx.Node | None:
    """The call of a convolution whose result only this node uses; None where there is no such call."""
    before = node.args[0] if node.args else None
    if not isinstance(before, fx.Node) or not _calls_a(before, modules, nn.Conv2d):
        return None
    return before if len(before.users) == 1 and calls[before.target] == 1 else None


def _pads_zeros(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _calls_a(node: object, modules: dict[str, nn.Module], kind: type[nn.Module]) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_module" and type(modules[str(node.target)]) is kind


def _is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    return (
        (node.op == "call_method" and node.target in _RELU_METHODS)
        or (node.op == "call_function" and node.target in _RELU_FUNCTIONS)
        or _calls_a(node, modules, nn.ReLU)
    )


def _replace(traced: fx.GraphModule, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(traced.get_submodule(parent), child, module)
