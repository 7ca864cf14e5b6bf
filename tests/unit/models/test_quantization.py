"""int8: whole numbers as numpy rounds them, per channel, and gates, sums and what follows the pooling left in float32.

The oracle is arithmetic in numpy.  Caught: one scale for all channels, a scale of 128 steps, padding with a whole
number that does not mean 0, gates or the embedding in int8, and channels that are made larger and not smaller again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ConfigError, DataError
from reid.models.embedder import Embedder, NetworkSpec
from reid.models.graph_export import export_graph
from tests.helpers.small_checkpoints import randomize_norms

onnx = pytest.importorskip("onnx", reason='pip install "reid-multidomain[onnx]"')
pytest.importorskip("onnxscript", reason='pip install "reid-multidomain[onnx]"')
pytest.importorskip("onnxruntime", reason='pip install "reid-multidomain[onnx]"')

from reid.models.equalization import equalize_channels  # noqa: E402
from reid.models.quantization import pooled_nodes, quantize_graph, quantize_weights  # noqa: E402
from reid.models.runtime import open_graph  # noqa: E402

IMAGES = np.random.default_rng(0).normal(size=(16, 3, 32, 16)).astype(np.float32)


def rounded_weights(weights: np.ndarray) -> np.ndarray:
    """The slow version: number by number, in float64, as weights that int8 can hold."""
    result = np.empty(weights.shape)
    for channel in range(len(weights)):
        scale = float(np.abs(weights[channel]).max()) / 127 or 1.0
        for place in np.ndindex(weights.shape[1:]):
            result[(channel, *place)] = round(float(weights[(channel, *place)]) / scale) * scale
    return result


class OneConvolution(nn.Module):
    """A padded convolution whose channels differ a hundredfold, ReLU, the mean of the map, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        with torch.no_grad():
            self.conv.weight *= torch.logspace(-1, 1, 8).reshape(-1, 1, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> (B, 4)."""
        return self.linear(functional.relu(self.conv(images)).mean((2, 3)))


class Light(nn.Module):
    """A pointwise and a depthwise convolution, as OSNet and MobileNet have them, with channels of unlike range."""

    def __init__(self, with_relu: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.with_relu = with_relu
        self.point, self.depth = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        with torch.no_grad():
            factors = torch.logspace(-1, 1, 8)
            self.point.weight *= factors.reshape(-1, 1, 1, 1)
            self.point.bias *= factors
            self.depth.weight /= factors.reshape(-1, 1, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> (B, 8)."""
        maps = self.point(images)
        return self.depth(functional.relu(maps) if self.with_relu else maps).mean((2, 3))


def run(graph: bytes, program: str = "onnx") -> np.ndarray:
    return open_graph(program, graph, "test").run(IMAGES)


def tensors_of(graph: bytes) -> dict[str, np.ndarray]:
    model = onnx.load_from_string(graph)
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


@pytest.fixture(scope="module")
def osnet() -> bytes:
    torch.manual_seed(0)
    return export_graph(randomize_norms(Embedder(NetworkSpec("osnet_x0_25"))), 32, 16)


@pytest.fixture(scope="module")
def quantized_osnet(osnet: bytes) -> bytes:
    return quantize_graph(osnet, IMAGES, "test")


def test_weights_are_rounded_per_channel() -> None:
    weights = np.random.default_rng(1).normal(size=(5, 3, 3, 3)).astype(np.float32)
    weights *= np.float32([1e-3, 1, 100, 1, 0]).reshape(-1, 1, 1, 1)
    whole, scales = quantize_weights(weights)
    assert whole.dtype == np.int8
    assert whole.min() >= -127
    np.testing.assert_allclose(whole * scales.reshape(-1, 1, 1, 1), rounded_weights(weights), rtol=1e-5, atol=1e-9)
    one_scale = np.rint(weights / (np.abs(weights).max() / 127)) * (np.abs(weights).max() / 127)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(one_scale, rounded_weights(weights), rtol=1e-5, atol=1e-9)


def test_the_file_holds_these_whole_numbers_and_scales() -> None:
    network = OneConvolution().eval()
    found = tensors_of(quantize_graph(export_graph(network, 32, 16), IMAGES, "test"))
    whole, scales = quantize_weights(network.conv.weight.detach().numpy())
    np.testing.assert_array_equal(found["conv.weight_quantized"], whole)
    np.testing.assert_allclose(found["conv.weight_scale"], scales, rtol=1e-6)
    assert found["linear.weight"].dtype == np.float32


@pytest.mark.parametrize("program", ["onnx", "openvino"])
def test_a_quantized_network_computes_what_numpy_computes(program: str) -> None:
    """Every step in float64 with rounded images, weights and maps; zeros around the image stay zeros."""
    pytest.importorskip(program)
    network = OneConvolution().eval()
    graph = quantize_graph(export_graph(network, 32, 16), IMAGES, "test")
    found = tensors_of(graph)

    def rounded(values: np.ndarray, name: str) -> np.ndarray:
        scale, zero = float(found[f"{name}_scale"]), int(found[f"{name}_zero_point"])
        return (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale

    weights = rounded_weights(network.conv.weight.detach().numpy())
    maps = functional.conv2d(
        torch.from_numpy(rounded(IMAGES.astype(np.float64), "images")),
        torch.from_numpy(weights),
        network.conv.bias.detach().double(),
        padding=1,
    )
    name = next(key for key in found if key.startswith("relu") and key.endswith("_scale")).removesuffix("_scale")
    pooled = rounded(maps.clamp(min=0).numpy(), name).mean((2, 3))
    expected = pooled @ network.linear.weight.detach().numpy().T + network.linear.bias.detach().numpy()
    np.testing.assert_allclose(run(graph, program), expected, atol=3e-3 * np.abs(expected).max())


@pytest.mark.parametrize("with_relu", [False, True])
def test_equalized_channels_change_nothing_and_have_one_range(with_relu: bool) -> None:
    network = Light(with_relu).eval()
    graph = export_graph(network, 32, 16)
    equalized = equalize_channels(graph, IMAGES, "test")
    np.testing.assert_allclose(run(equalized), run(graph), rtol=1e-4, atol=1e-5)
    numbers = tensors_of(equalized)
    maps = functional.conv2d(
        torch.from_numpy(IMAGES), torch.tensor(numbers["point.weight"]), torch.tensor(numbers["point.bias"])
    )
    maps = maps.clamp(min=0) if with_relu else maps.abs()
    largest = maps.amax((0, 2, 3))
    np.testing.assert_allclose(largest / largest.max(), np.ones(8), rtol=1e-4)


def test_equalized_channels_lose_less() -> None:
    network = Light(with_relu=False).eval()
    graph = export_graph(network, 32, 16)
    exact, small = run(graph), run(quantize_graph(graph, IMAGES, "test"))
    assert np.abs(small - exact).max(0) / np.abs(exact).max(0) == pytest.approx(np.zeros(8), abs=0.1)


def test_gates_and_the_embedding_are_pooled_and_maps_are_not(osnet: bytes) -> None:
    model = onnx.load_from_string(osnet)
    pooled = pooled_nodes(model)
    convolutions = {node.name: node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    assert {name for node, name in convolutions.items() if node in pooled} == {
        name for name in convolutions.values() if ".gate." in name
    }
    assert all(node.name in pooled for node in model.graph.node if node.op_type in ("Gemm", "Sigmoid"))
    assert not any(node.name in pooled for node in model.graph.node if node.op_type in ("Add", "Mul", "MaxPool"))


def test_an_osnet_in_int8_keeps_its_vectors(osnet: bytes, quantized_osnet: bytes) -> None:
    model = onnx.load_from_string(quantized_osnet)
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    by_kind = {
        makers.get(node.input[1], "float32")
        for node in model.graph.node
        if node.op_type == "Conv" and ".gate." not in node.input[1]
    }
    assert by_kind == {"DequantizeLinear"}
    assert not any(".gate." in tensor.name and "quantized" in tensor.name for tensor in model.graph.initializer)
    assert cosine(run(osnet), run(quantized_osnet)) > 0.98
    assert "int8" in open_graph("onnx", quantized_osnet, "test").runtime


def test_openvino_reads_the_same_file(osnet: bytes, quantized_osnet: bytes) -> None:
    pytest.importorskip("openvino", reason='pip install "reid-multidomain[openvino]"')
    session = open_graph("openvino", quantized_osnet, "test")
    assert "int8" in session.runtime
    assert cosine(run(osnet), session.run(IMAGES)) > 0.98


def test_what_cannot_be_quantized_is_refused(osnet: bytes) -> None:
    with pytest.raises(DataError, match="got 7"):
        quantize_graph(osnet, IMAGES[:7], "test")

    class Products(nn.Module):
        """A patch convolution, then products of matrices, as transformers have them."""

        def __init__(self) -> None:
            super().__init__()
            self.patch, self.product = nn.Conv2d(3, 16, 16, 16), nn.Linear(16, 2048)

        def forward(self, images: Tensor) -> Tensor:
            """Images (B, 3, H, W) -> (B, 2048)."""
            return self.product(self.patch(images).flatten(2).transpose(1, 2)).mean(1)

    with pytest.raises(ConfigError, match="26%"):
        quantize_graph(export_graph(Products().eval(), 32, 16), IMAGES, "test")


def test_nothing_is_left_beside_the_file(osnet: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    quantize_graph(osnet, IMAGES, "test")
    assert list(tmp_path.iterdir()) == []


def test_sums_read_what_is_not_rounded(osnet: bytes, quantized_osnet: bytes) -> None:
    """The last convolution of each of the six blocks reaches its sum as it is, and no node is left unused."""
    graph = onnx.load_from_string(quantized_osnet).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    given = [makers[name] for node in graph.node if node.op_type == "Add" for name in node.input]
    assert given.count("Conv") == 9  # and three of shortcuts
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    assert all(not used.isdisjoint(node.output) for node in graph.node)
