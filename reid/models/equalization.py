"""Give the channels of a map the same range before it is quantized, without changing what the network computes.

A map has one scale in int8, so a channel with small numbers keeps few of its 256 steps.  The light convolutions of
OSNet, and the blocks of MobileNet, are a pointwise and a depthwise convolution with at most a ReLU between.  There the
first one can write each channel larger and the second one read it smaller, which is exact; and as both have a scale for
each channel of their weights, it costs nothing (Nagel et al., "Data-Free Quantization Through Weight Equalization and
Bias Correction", ICCV 2019, section 4.1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from reid.models.runtime import import_package
from reid.onnx_sessions import open_session, run_session

SMALLEST = 1e-3  # of the largest range: a channel that is nearly always 0 is enlarged no further
STEP = 4  # crops that are run at a time

Array = npt.NDArray[Any]
Pair = tuple[Any, Any, str]  # the convolution that writes a map, the depthwise one that reads it, the name of the map


def equalize_channels(graph: bytes, images: Array, source: str) -> bytes:
    """Equalize the channels of every map between a convolution and a depthwise convolution.

    Args:
        graph: The bytes of an ONNX file.
        images: Prepared crops (N, 3, H, W) float32 on which the ranges of the channels are measured.
        source: The file of the network, for messages.

    Returns:
        The bytes of a file that computes the same.

    Raises:
        ConfigError: A package is missing.
    """
    onnx = import_package("onnx", "onnx", source)
    import_package("onnxruntime", "onnx", source)
    model = onnx.load_from_string(graph)
    numbers = {tensor.name: tensor for tensor in model.graph.initializer}
    pairs = _pairs(model, numbers)
    if not pairs:
        return graph
    for (writer, reader, _), largest in zip(
        pairs, _largest_numbers(onnx, graph, [name for *_, name in pairs], images), strict=True
    ):
        factors = (largest.max() or np.float32(1)) / np.maximum(largest, max(SMALLEST * largest.max(), 1e-12))
        for name in writer.input[1:]:
            _scale(onnx, numbers[name], factors)
        _scale(onnx, numbers[reader.input[1]], 1 / factors)
    equalized: bytes = model.SerializeToString()
    return equalized


def _pairs(model: Any, numbers: dict[str, Any]) -> list[Pair]:
    """The convolutions whose channels can be scaled: their weights, and the map between them, have no other user."""
    uses = Counter(name for node in model.graph.node for name in node.input)
    makers = {name: node for node in model.graph.node for name in node.output}
    found: list[Pair] = []
    for reader in model.graph.node:
        if reader.op_type != "Conv" or reader.input[1] not in numbers or not _is_depthwise(reader, numbers):
            continue
        between = reader.input[0]
        writer = makers.get(between)
        if writer is not None and writer.op_type == "Relu" and uses[between] == 1:
            between = writer.input[0]
            writer = makers.get(between)
        if writer is None or writer.op_type != "Conv" or uses[between] != 1:
            continue
        weights = [*writer.input[1:], reader.input[1]]
        if all(name in numbers and uses[name] == 1 for name in weights):
            found.append((writer, reader, reader.input[0]))
    return found


def _is_depthwise(conv: Any, numbers: dict[str, Any]) -> bool:
    groups = next((attribute.i for attribute in conv.attribute if attribute.name == "group"), 1)
    weights = numbers[conv.input[1]].dims
    return bool(groups > 1 and groups == weights[0] and weights[1] == 1)


def _largest_numbers(onnx: Any, graph: bytes, names: Sequence[str], images: Array) -> list[Array]:
    """The largest absolute number of each channel of some maps."""
    model = onnx.load_from_string(graph)
    model.graph.output.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names)
    session = open_session(model.SerializeToString(), ["CPUExecutionProvider"])
    largest: list[Array] = []
    for start in range(0, len(images), STEP):
        maps = run_session(session, list(names), {session.get_inputs()[0].name: images[start : start + STEP]})
        found = [np.abs(one).max((0, 2, 3)) for one in maps]
        largest = [np.maximum(*both) for both in zip(largest, found, strict=True)] if largest else found
    return largest


def _scale(onnx: Any, tensor: Any, factors: Array) -> None:
    """Multiply the weights (O, ...) or the bias (O,) of a convolution."""
    old = onnx.numpy_helper.to_array(tensor)
    new = (old * factors.reshape(-1, *[1] * (old.ndim - 1))).astype(np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(new, tensor.name))
