"""Find the operators of a model's graph before any program runs it, to refuse those whose end nobody can foresee.

An ONNX file is a message of protocol buffers (onnx.proto3). It is read field by field, because the package ``onnx``
is not needed to run a model, and because a small reader has bounds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from reid.errors import WeightsError

LOOPS = frozenset({"Loop", "Scan", "SequenceMap", "TensorIterator"})  # of ONNX and OpenVINO
MAX_DEPTH = 64  # graphs inside operators inside graphs

# For each message: field number -> the message in it.  Only fields that lead to operators are listed.
_INNER = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {6: "graph", 11: "graph"},
}
_OPERATOR = 4  # field of a node
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_LAYER_TYPE = re.compile(rb"""\btype\s*=\s*["'](\w+)["']""")  # of a layer of an OpenVINO IR


def refuse_loops(program: str, graph: bytes, source: str) -> None:
    """Refuse a model with a loop, which may never end.

    Args:
        program: What runs the model: "onnx" or "openvino".
        graph: The bytes of its graph.
        source: The file, for the message.

    Raises:
        WeightsError: If the graph holds an operator of :data:`LOOPS`, or is damaged.

    Example:
        >>> refuse_loops("openvino", b'<layer id="0" type="Convolution"/>', "model.xml")
    """
    if program == "openvino":
        found = {name.decode() for name in _LAYER_TYPE.findall(graph)}
    else:
        try:
            found = {name.decode("utf-8", "replace") for name in _operators(memoryview(graph), "model", 0)}
        except (IndexError, ValueError) as error:
            raise WeightsError(
                f"{source}: no ONNX model, or damaged, so ONNX Runtime is not asked ({error})"
            ) from error
    loops = sorted(found & LOOPS)
    if loops:
        raise WeightsError(
            f"{source}: refused, because its graph holds {', '.join(loops)}, which may never end; export the network"
            " again without loops, by tracing it"
        )


def _operators(message: memoryview, name: str, depth: int) -> Iterator[bytes]:
    """Yield the operators of all nodes in a message and in the messages inside it."""
    if depth > 4 * MAX_DEPTH:
        raise ValueError("graphs are nested too deep")
    for field, content in _fields(message):
        if name == "node" and field == _OPERATOR:
            yield bytes(content[:100])
        elif (inner := _INNER[name].get(field)) is not None:
            yield from _operators(content, inner, depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the number and the content of every field of a message that holds bytes."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _BYTES:
            length, position = _varint(message, position)
            if length > len(message) - position:
                raise ValueError("cut off")
            yield number, message[position : position + length]
            position += length
        elif wire_type == _VARINT:
            _, position = _varint(message, position)
        elif wire_type in (_FIXED64, _FIXED32):
            position += 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError(f"unknown wire type {wire_type}")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Read a whole number of variable length; return it and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value & (2**64 - 1), position
    raise ValueError("a number is too long")
