"""A graph gives an image the same vector, whatever the number of images that are run with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from reid.data.transforms import EvaluationTransform
from reid.errors import WeightsError
from reid.models.graph_batches import AT_ONCE, GraphBatches
from reid.models.graph_export import export_graph, with_pixels

TRANSFORM = EvaluationTransform(height=8, width=4)
PIXELS = np.random.default_rng(0).integers(0, 256, (2 * AT_ONCE + 9, 3, 8, 4), dtype=np.uint8)
COUNTS = (1, AT_ONCE // 2 - 1, AT_ONCE // 2, AT_ONCE, AT_ONCE + 3, len(PIXELS))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


@pytest.fixture(scope="module")
def graph(network: nn.Module) -> bytes:
    return with_pixels(export_graph(network, 8, 4), TRANSFORM, "example")


@pytest.mark.parametrize("program", ["onnx", "openvino"])
@pytest.mark.parametrize("count", COUNTS)
def test_any_number_of_images(program: str, count: int, network: nn.Module, graph: bytes) -> None:
    pytest.importorskip("openvino" if program == "openvino" else "onnxruntime")
    batches = GraphBatches(program, graph, "example", "float32")
    found = batches.run(PIXELS[:count])
    with torch.inference_mode():
        expected = network(TRANSFORM.normalise(torch.from_numpy(PIXELS[:count])))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    np.testing.assert_array_equal(batches.run(PIXELS[count - 1 : count])[0], found[-1])


def test_unscaled_images_are_other_vectors(network: nn.Module, graph: bytes) -> None:
    """The graph without its first steps, which is what a forgotten scaling would be."""
    pytest.importorskip("onnxruntime")
    unscaled = GraphBatches("onnx", export_graph(network, 8, 4), "example", "float32").run(PIXELS.astype(np.float32))
    scaled = GraphBatches("onnx", graph, "example", "float32").run(PIXELS)
    assert np.abs(unscaled - scaled).max() > 1


@pytest.mark.parametrize("program", ["onnx", "openvino"])
def test_what_a_program_refuses_is_among_its_errors(program: str, graph: bytes) -> None:
    pytest.importorskip("openvino" if program == "openvino" else "onnxruntime")
    batches = GraphBatches(program, graph, "example", "float32")
    batches.run(PIXELS[:AT_ONCE])
    with pytest.raises(batches.errors):
        batches.run(PIXELS[:AT_ONCE, :, :, :3])


def test_a_graph_that_cannot_be_read(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(WeightsError):
        GraphBatches("onnx", b"no graph", str(tmp_path / "w.onnx"), "float32").run(PIXELS[:1])
