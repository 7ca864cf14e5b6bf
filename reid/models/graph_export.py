"""The graph of a network as the bytes of an ONNX file, and the same graph with the numbers of another camera."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reid.data.transforms import EvaluationTransform
from reid.errors import WeightsError
from reid.models.runtime import import_package

EXPORT_PACKAGES = ("onnx", "onnxscript")  # what PyTorch needs to write an ONNX file


def export_graph(network: nn.Module, height: int, width: int) -> bytes:
    """Write a network as an ONNX graph: images (B, 3, height, width) float32 -> vectors (B, D) float32, for any B."""
    with warnings.catch_warnings(), torch.no_grad():  # without gradients, tracing takes less time
        warnings.simplefilter("ignore")  # torch warns about details of its own exporter
        program: Any = torch.onnx.export(
            network,
            (torch.zeros(2, 3, height, width),),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["vectors"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )
    graph: bytes = program.model_proto.SerializeToString()
    return graph


def with_pixels(graph: bytes, transform: EvaluationTransform, source: str) -> bytes:
    """Let a graph take images as they are resized, and scale them itself.

    Args:
        graph: The bytes of an ONNX file with one input, prepared images (B, 3, H, W) float32.
        transform: Gives the mean and the standard deviation.
        source: The file of the network, for messages.

    Returns:
        The bytes of a file with the input ``pixels`` (B, 3, H, W) uint8.
    """
    onnx = import_package("onnx", "onnx", source)
    model, helper = onnx.load_from_string(graph), onnx.helper
    entry = model.graph.input[0]
    scale, shift = (values.numpy().reshape(1, 3, 1, 1) for values in transform.scale_and_shift())
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(values, name) for name, values in (("pixel_scale", scale), ("pixel_shift", shift))
    )
    before = [
        helper.make_node("Cast", ["pixels"], ["pixel_values"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["pixel_values", "pixel_scale"], ["scaled_pixels"]),
        helper.make_node("Sub", ["scaled_pixels", "pixel_shift"], [entry.name]),
    ]
    after = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*before, *after])
    entry.name, entry.type.tensor_type.elem_type = "pixels", onnx.TensorProto.UINT8
    changed: bytes = model.SerializeToString()
    return changed


def with_tensors(graph: bytes, before: Mapping[str, Tensor], after: Mapping[str, Tensor], source: str) -> bytes:
    """Replace numbers of a graph, which is faster than to export a network again that differs only in these.

    Args:
        graph: The bytes of an ONNX file that was exported from a network with the tensors ``before``.
        before: Parameters and buffers by name.
        after: Those that it is to have, with the same names and shapes.
        source: The file of the network, for messages.

    Returns:
        The bytes of the new file.

    Raises:
        WeightsError: The graph does not keep one of these tensors under its name.
    """
    onnx = import_package("onnx", "onnx", source)
    model = onnx.load_from_string(graph)
    kept = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, old in before.items():
        new = after[name]
        if torch.equal(old, new):
            continue
        tensor = kept.get(name)
        if tensor is None or tuple(tensor.dims) != tuple(new.shape):
            raise WeightsError(
                f"{source}: its exported graph has no tensor {name}, so its cameras cannot share the graph"
            )
        tensor.CopyFrom(onnx.numpy_helper.from_array(new.detach().contiguous().numpy(), name))
    replaced: bytes = model.SerializeToString()
    return replaced
