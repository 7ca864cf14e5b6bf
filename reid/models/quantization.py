"""Quantize an exported network to int8 after its training, with ranges that are measured on crops.

A weight becomes a whole number times the scale of its output channel, and a map becomes a whole number times the scale
of that map (Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", CVPR 2018, sections 2 and 3).  ONNX Runtime measures the ranges and writes them into the graph as pairs of
QuantizeLinear and DequantizeLinear.  ONNX Runtime and OpenVINO both read these and compute in int8 between them.
Before that, :func:`~reid.models.equalization.equalize_channels` gives channels the same range where this is exact.

Four parts of a re-identification network lose much in int8 and cost little, so they stay in float32:

- the sums of residual blocks, because the rounding of each block would stay in all that follow,
- the channel gates of OSNet, which scale a whole map by what a few pooled numbers say,
- everything after the last pooling, where one number stands for a whole map,
- the linear layers and the scaling to unit length, which are the embedding itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from reid.errors import ConfigError, DataError, WeightsError
from reid.models.equalization import equalize_channels
from reid.models.runtime import import_package

MIN_CROPS = 8  # fewer do not show how large the numbers of a map become
BATCH = 8  # crops whose extremes count as one; the ranges are means of these, so that one odd crop does not set them
QUANTIZED = ("Conv", "Relu", "MaxPool", "AveragePool")  # what is computed in int8
READERS_OF_INT8 = (*QUANTIZED, "QuantizeLinear", "DequantizeLinear")
POOLING = ("ReduceMean", "ReduceMax", "GlobalAveragePool", "GlobalMaxPool")
MIN_SHARE = 0.5  # of the weights that are to become int8, or the file would be float32 by another name

Array = npt.NDArray[Any]


def quantize_weights(weights: Array) -> tuple[Array, Array]:
    """Round the weights of a convolution to int8, each output channel with a scale of its own.

    The largest weight of a channel becomes 127 or -127, zero stays zero, and halves go to the even neighbour.

    Args:
        weights: (O, ...) float32.

    Returns:
        Whole numbers (O, ...) int8, and scales (O,) float32; their product is near ``weights``.

    Example:
        >>> whole, scales = quantize_weights(np.float32([[1.0, -0.5], [0.0, 0.0]]))
        >>> whole.tolist(), scales.astype(float).round(4).tolist()
        ([[127, -64], [0, 0]], [0.0079, 1.0])
    """
    largest = np.abs(weights.reshape(len(weights), -1)).max(1)
    scales = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
    shaped = scales.reshape(-1, *[1] * (weights.ndim - 1))
    return np.clip(np.rint(weights / shaped), -127, 127).astype(np.int8), scales


def pooled_nodes(model: Any) -> set[str]:
    """Find the nodes of a graph that compute on pooled numbers only: gates, necks and what follows the last pooling.

    Args:
        model: An ``onnx.ModelProto``.

    Returns:
        Names of nodes.  A node that joins pooled numbers with a map, as a gate does at its end, is not among them.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    pooled: set[str] = set()  # names of values
    found: set[str] = set()
    for node in model.graph.node:
        given = [name for name in node.input if name and name not in constants]
        if node.op_type in POOLING or (given and all(name in pooled for name in given)):
            pooled.update(node.output)
            found.add(node.name)
    return found


def quantize_graph(graph: bytes, images: Array, source: str) -> bytes:
    """Quantize a graph to int8.

    Args:
        graph: The bytes of an ONNX file of :func:`~reid.models.graph_export.export_graph`.
        images: Prepared crops (N, 3, H, W) float32 on which the ranges of the maps are measured; those of all cameras
            in turns, so that each batch shows all of them.
        source: The file of the network, for messages.

    Returns:
        The bytes of the new file, with the same input and output.

    Raises:
        ConfigError: A package is missing, or most weights of the network are not those of convolutions.
        DataError: There are fewer than ``MIN_CROPS`` crops.
        WeightsError: ONNX Runtime cannot quantize the graph.

    Example:
        >>> from reid.models.embedder import Embedder, NetworkSpec
        >>> from reid.models.graph_export import export_graph
        >>> network = Embedder(NetworkSpec("resnet18_x0_25")).eval()
        >>> graph = export_graph(network, 32, 32)
        >>> images = np.random.default_rng(0).normal(size=(8, 3, 32, 32)).astype(np.float32)
        >>> len(quantize_graph(graph, images, "example")) < 0.5 * len(graph)
        True
    """
    if len(images) < MIN_CROPS:
        raise DataError(
            f"{source}: int8 needs at least {MIN_CROPS} crops that can be read, to see how large its numbers become,"
            f" got {len(images)}"
        )
    onnx = import_package("onnx", "onnx", source)
    quantization = import_package("onnxruntime.quantization", "onnx", source)
    model = onnx.load_from_string(equalize_channels(graph, images, source))
    kept = pooled_nodes(model)
    _check_convolutions(model, kept, source)
    # The exporter of PyTorch has inferred all shapes; without this mark ONNX Runtime advises to do it.
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with TemporaryDirectory() as folder:
        written = Path(folder) / "int8.onnx"
        try:
            quantization.quantize_static(
                model,
                written,
                _reader(quantization, model.graph.input[0].name, images),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTIZED),
                nodes_to_exclude=sorted(kept),
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
                extra_options={"CalibMovingAverage": True, "WeightSymmetric": True},
            )
        except (RuntimeError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise WeightsError(f"{source}: ONNX Runtime cannot quantize it ({reason})") from error
        return keep_sums_exact(written.read_bytes(), _linear_maps(onnx.load_from_string(graph)), source)


def keep_sums_exact(graph: bytes, linear: set[str], source: str) -> bytes:
    """Let what computes in float32 read the numbers of a convolution before they are rounded to int8.

    ONNX Runtime rounds the result of every convolution that it quantizes, also where only a sum or a product reads it,
    which computes in float32 anyway.  There the rounding costs accuracy and saves nothing.

    Args:
        graph: The bytes of a file with pairs of QuantizeLinear and DequantizeLinear.
        linear: The results of convolutions that no ReLU follows.  Where one follows, the rounding takes its part,
            because no whole number is below 0.
        source: The file of the network, for messages.

    Returns:
        The bytes of a file without these pairs.
    """
    onnx = import_package("onnx", "onnx", source)
    model = onnx.load_from_string(graph)
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        for number, name in enumerate(node.input if node.op_type not in READERS_OF_INT8 else ()):
            exact = _before_rounding(name, makers)
            if exact in linear:
                node.input[number] = exact
    _remove_unused(model)
    written: bytes = model.SerializeToString()
    return written


def _linear_maps(model: Any) -> set[str]:
    """The results of the convolutions of a graph in float32 that no ReLU reads."""
    clipped = {node.input[0] for node in model.graph.node if node.op_type == "Relu"}
    return {node.output[0] for node in model.graph.node if node.op_type == "Conv"} - clipped


def _before_rounding(name: str, makers: dict[str, Any]) -> str:
    """What a value was before it was rounded; "" where it is not rounded."""
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        node = makers.get(name)
        if node is None or node.op_type != kind:
            return ""
        name = node.input[0]
    return name


def _remove_unused(model: Any) -> None:
    """Remove nodes that nothing reads any more, last ones first."""
    used = {value.name for value in model.graph.output}
    for node in reversed(list(model.graph.node)):  # every node stands behind those that it reads
        if used.isdisjoint(node.output):
            model.graph.node.remove(node)
        else:
            used.update(node.input)


def _reader(quantization: Any, name: str, images: Array) -> Any:
    """What gives ONNX Runtime the crops in batches; a rest that is smaller than a batch joins none and is left out."""
    batches: Iterable[Array] = (images[start : start + BATCH] for start in range(0, len(images) - BATCH + 1, BATCH))
    iterator = iter(batches)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # its base class is Any here
        """Batches of crops."""

        def get_next(self) -> dict[str, Array] | None:
            """Return the next batch by the name of the input; None after the last."""
            batch = next(iterator, None)
            return None if batch is None else {name: batch}

    return Reader()


def _check_convolutions(model: Any, kept: set[str], source: str) -> None:
    """Refuse a network whose weights would mostly stay in float32."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    quantized = {node.input[1] for node in model.graph.node if node.op_type == "Conv" and node.name not in kept}
    after = {name for node in model.graph.node if node.name in kept for name in node.input}
    body = sum(size for name, size in sizes.items() if name not in after)
    share = sum(sizes.get(name, 0) for name in quantized) / max(body, 1)
    if share < MIN_SHARE:
        raise ConfigError(
            f"{source}: int8 is for networks of convolutions, and only {share:.0%} of its weights are in such layers;"
            " export it without --int8"
        )
