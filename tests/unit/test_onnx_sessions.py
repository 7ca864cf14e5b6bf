"""A graph that asks for endless memory or time is stopped; an ordinary one is run as before."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from reid import onnx_sessions
from reid.data.video.onnx_detector import OnnxDetector
from reid.errors import WeightsError
from reid.models.checkpoint import load_checkpoint

onnx = pytest.importorskip("onnx", reason="pip install onnx, to make the models of these tests")
pytest.importorskip("onnxruntime", reason='pip install ".[onnx]"')
from onnx import TensorProto, helper  # noqa: E402

HUGE = 2**40  # elements; no machine has so much
ENDLESS = 2**62  # rounds of a loop


def number(name: str, *values: int) -> onnx.TensorProto:
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


def scalar(name: str, kind: int, value: float) -> onnx.TensorProto:
    return helper.make_tensor(name, kind, [], [value])


Parts = tuple[list[onnx.NodeProto], list[onnx.TensorProto]]


def stated() -> Parts:
    return [helper.make_node("ConstantOfShape", ["many"], ["c"])], [number("many", HUGE)]


def computed() -> Parts:
    """The size is a product of small numbers."""
    product = helper.make_node("Mul", ["root", "root"], ["many"])
    return [product, helper.make_node("ConstantOfShape", ["many"], ["c"])], [number("root", 2**20)]


def expanded() -> Parts:
    return [helper.make_node("Expand", ["one", "many"], ["c"])], [number("many", HUGE), scalar("one", 1, 1.0)]


def of_the_image() -> Parts:
    """The size depends on what the image shows, so nothing in the file says it."""
    nodes = [
        helper.make_node("ReduceMax", ["images"], ["top"], keepdims=0),
        helper.make_node("Cast", ["top"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Mul", ["whole", "none"], ["nothing"]),
        helper.make_node("Add", ["many", "nothing"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["c"]),
    ]
    return nodes, [number("many", HUGE), number("none", 0)]


def counted() -> Parts:
    """Without memory: a list of numbers that is consumed at once."""
    ends = [scalar("from", 7, 0), scalar("to", 7, HUGE), scalar("step", 7, 1)]
    return [
        helper.make_node("Range", ["from", "to", "step"], ["numbers"]),
        helper.make_node("Cast", ["numbers"], ["c"], to=TensorProto.FLOAT),
    ], ends


def endless() -> Parts:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in ("given", "next")]
    go_on = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "going")]
    round_number = helper.make_tensor_value_info("round", TensorProto.INT64, [])
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["going"]), helper.make_node("Identity", ["given"], ["next"])],
        "body", [round_number, go_on[0], value[0]], [go_on[1], value[1]],
    )  # fmt: skip
    loop = helper.make_node("Loop", ["rounds", "yes", "zero"], ["c"], body=body)
    return [loop], [scalar("rounds", 7, ENDLESS), scalar("yes", 9, True), scalar("zero", 1, 0.0)]


def model(parts: Parts, side: int = 8) -> bytes:
    """A network (B, 3, 8, 8) -> (B, 4) that adds the sum of "c" to its vectors."""
    nodes, tensors = parts
    weights = helper.make_tensor("w", TensorProto.FLOAT, [3, 4], np.arange(12, dtype=np.float32))
    graph = helper.make_graph(
        [
            *nodes,
            helper.make_node("ReduceMean", ["images"], ["means"], axes=[2, 3], keepdims=0),
            helper.make_node("MatMul", ["means", "w"], ["plain"]),
            helper.make_node("ReduceSum", ["c"], ["sum"], keepdims=0),
            helper.make_node("Add", ["plain", "sum"], ["vectors"]),
        ],
        "graph",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, [1, 4])],
        [weights, *tensors],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = made.SerializeToString()
    return content


def harmless() -> Parts:
    return [helper.make_node("ConstantOfShape", ["many"], ["c"])], [number("many", 5)]


@pytest.fixture
def two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_sessions, "MAX_SECONDS", 2.0)


BOMBS = [stated, computed, expanded, of_the_image, counted]


@pytest.mark.parametrize("parts", [*BOMBS, endless])
def test_a_detector_that_asks_for_too_much_is_one_line(
    parts: Callable[[], Parts], tmp_path: Path, two_seconds: None
) -> None:
    (tmp_path / "bomb.onnx").write_bytes(model(parts()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError) as caught:
        OnnxDetector(tmp_path / "bomb.onnx")
    assert "\n" not in str(caught.value)
    assert "bomb.onnx" in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 2**20  # KiB


@pytest.mark.parametrize("parts", BOMBS)
def test_a_network_that_asks_for_too_much_is_one_line(parts: Callable[[], Parts], tmp_path: Path) -> None:
    import torch

    (tmp_path / "bomb.onnx").write_bytes(model(parts()))
    (tmp_path / "bomb.toml").write_text('colours = "RGB"\nscale = 255\nmean = [0, 0, 0]\nstd = [1, 1, 1]\n')
    with pytest.raises(WeightsError) as caught:
        load_checkpoint(tmp_path / "bomb.onnx").embed(torch.full((1, 3, 8, 8), 200.0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [100_000, 2**40])
def test_images_of_absurd_size_are_not_made(side: int, tmp_path: Path) -> None:
    (tmp_path / "wide.onnx").write_bytes(model(harmless(), side))
    (tmp_path / "wide.toml").write_text('colours = "RGB"\nscale = 255\nmean = [0, 0, 0]\nstd = [1, 1, 1]\n')
    for read in (OnnxDetector, load_checkpoint):
        with pytest.raises(WeightsError, match=r"wide\.onnx"):
            read(tmp_path / "wide.onnx")


def test_an_ordinary_graph_is_run() -> None:
    session = onnx_sessions.open_session(model(harmless()), ["CPUExecutionProvider"], 1)
    images = np.random.default_rng(0).random((1, 3, 8, 8), np.float32)
    (vectors,) = onnx_sessions.run_session(session, None, {"images": images})
    expected = images.mean((2, 3)) @ np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_allclose(vectors, expected, rtol=1e-5)


def test_a_loop_is_stopped(two_seconds: None) -> None:
    session = onnx_sessions.open_session(model(endless()), ["CPUExecutionProvider"], 1)
    with pytest.raises(TimeoutError, match="2 seconds"):
        onnx_sessions.run_session(session, None, {"images": np.zeros((1, 3, 8, 8), np.float32)})
