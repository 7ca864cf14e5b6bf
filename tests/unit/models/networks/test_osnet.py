"""OSNet against the paper: sizes of its tables, and its block against the equations written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reid.errors import ConfigError
from reid.models.networks.osnet import ChannelGate, LiteConv3x3, OmniScaleBlock, OSNet


def randomise(network: nn.Module) -> nn.Module:
    """Statistics and affines away from 0 and 1, so that a forgotten one shows."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias.data):
                tensor.normal_()
            for tensor in (module.running_var, module.weight.data):
                tensor.uniform_(0.5, 2.0)
    return network.eval()


def norm_by_hand(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    shape = (1, -1, 1, 1)
    centred = (x - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + norm.eps).sqrt()
    return centred * norm.weight.view(shape) + norm.bias.view(shape)


def lite_by_hand(x: Tensor, layer: LiteConv3x3) -> Tensor:
    mixed = torch.einsum("oc,bchw->bohw", layer.conv1.weight[:, :, 0, 0], x)
    filtered = [F.conv2d(mixed[:, c : c + 1], layer.conv2.weight[c : c + 1], padding=1) for c in range(x.shape[1])]
    return norm_by_hand(torch.cat(filtered, 1), layer.bn).clamp(min=0)


def gate_by_hand(x: Tensor, gate: ChannelGate) -> Tensor:
    hidden = (x.mean((2, 3)) @ gate.fc1.weight[:, :, 0, 0].T + gate.fc1.bias).clamp(min=0)
    return x * torch.sigmoid(hidden @ gate.fc2.weight[:, :, 0, 0].T + gate.fc2.bias)[:, :, None, None]


@pytest.mark.parametrize("inputs", [32, 64])
def test_a_block_is_the_equations_of_the_paper(inputs: int) -> None:
    torch.manual_seed(0)
    block = randomise(OmniScaleBlock(inputs, 64)).double()
    x = torch.randn(2, inputs, 7, 5, dtype=torch.float64)

    middle = norm_by_hand(torch.einsum("oc,bchw->bohw", block.conv1.conv.weight[:, :, 0, 0], x), block.conv1.bn)
    middle = middle.clamp(min=0)
    fused = torch.zeros_like(middle)
    for stream in ([block.conv2a], block.conv2b, block.conv2c, block.conv2d):
        out = middle
        for layer in stream:
            out = lite_by_hand(out, layer)
        fused = fused + gate_by_hand(out, block.gate)
    residual = norm_by_hand(torch.einsum("oc,bchw->bohw", block.conv3.conv.weight[:, :, 0, 0], fused), block.conv3.bn)
    shortcut = x
    if inputs != 64:
        projection = torch.einsum("oc,bchw->bohw", block.downsample.conv.weight[:, :, 0, 0], x)
        shortcut = norm_by_hand(projection, block.downsample.bn)

    torch.testing.assert_close(block(x), (shortcut + residual).clamp(min=0))


@pytest.mark.parametrize(("stream", "side"), [("conv2a", 3), ("conv2b", 5), ("conv2c", 7), ("conv2d", 9)])
def test_stream_t_covers_a_window_of_2t_plus_1(stream: str, side: int) -> None:
    torch.manual_seed(0)
    layers = randomise(OmniScaleBlock(64, 64)).get_submodule(stream)
    for module in layers.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.fill_(10.0)  # no ReLU is off, so no path is hidden
    x = torch.randn(1, 16, 15, 15, requires_grad=True)

    layers(x)[0, :, 7, 7].sum().backward()

    covered = x.grad[0].abs().sum(0).nonzero()
    assert (covered.amax(0) - covered.amin(0) + 1).tolist() == [side, side]


@pytest.mark.parametrize(("width", "channels"), [(0.25, 128), (0.5, 256), (0.75, 384), (1.0, 512)])
def test_the_map_is_a_sixteenth_of_the_image(width: float, channels: int) -> None:
    network = OSNet(width).eval()
    with torch.inference_mode():
        assert network(torch.randn(1, 3, 128, 64)).shape == (1, channels, 8, 4)
    assert network.channels == channels


@pytest.mark.parametrize(("width", "stated"), [(1.0, 2.2), (0.75, 1.3), (0.5, 0.6), (0.25, 0.2)])
def test_parameters_are_as_many_as_the_paper_states(width: float, stated: float) -> None:
    """Millions of parameters, with the 512-wide layer, as in the paper's table of model sizes."""
    network = OSNet(width)
    trunk = sum(parameter.numel() for parameter in network.parameters())
    layer = network.channels * 512 + 512 + 2 * 512
    assert round((trunk + layer) / 1e6, 1) == stated


@pytest.mark.parametrize("width", [0.0, 0.1, 0.3])
def test_a_width_that_cannot_be_built_is_refused(width: float) -> None:
    with pytest.raises(ConfigError, match=f"got {width}"):
        OSNet(width)


def test_an_unknown_variant_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match='did you mean "ain"'):
        OSNet(1.0, "ains")


def test_it_starts_from_he_weights_and_neutral_norms() -> None:
    torch.manual_seed(0)
    network = OSNet(1.0)
    stem = network.conv1.conv.weight
    assert stem.std().item() == pytest.approx((2 / (64 * 7 * 7)) ** 0.5, rel=0.05)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all()
            assert module.bias.eq(0).all()
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            assert module.bias.eq(0).all()


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    network = OSNet(0.25).train()
    network(torch.randn(4, 3, 64, 32)).square().mean().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # the shared gate's one hidden unit may be off for a whole batch; everything else must learn
    assert [name for name in idle if ".gate." not in name] == []
