"""Detectors in ONNX files are recognized and read correctly.

Each file holds people at known positions, written in the format of its family, and multiplies their scores by how red
the image is.  So positions, scales, colours and padding are all checked.  The tests find a reader that takes a file for
another format of the same shape, exchanges colours, or forgets the padding.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from reid.data.video.detectors import open_detector
from reid.data.video.onnx_detector import OnnxDetector, OutputFormat, recognize_format
from reid.errors import ConfigError, WeightsError

NET = (64, 128)  # height and width of the files' input
FRAME = (96, 96)  # height and width of a frame, which scaled by 2/3 fills the height and half of the width
RATIO = 2 / 3
# Left, top, right, bottom in the frame, and the label of COCO counted from 0.
PEOPLE = [((6.0, 12.0, 30.0, 84.0), 0), ((48.0, 9.0, 75.0, 90.0), 0)]
OTHERS = [((30.0, 30.0, 45.0, 45.0), 2)]
CELLS = [
    (stride, row, column) for stride in (8, 16, 32) for row in range(64 // stride) for column in range(128 // stride)
]
LABELS = 4


def centre_and_size(corners: tuple[float, ...]) -> tuple[float, float, float, float]:
    """Convert a box of the frame to centre and size in pixels of the input."""
    left, top, right, bottom = (v * RATIO for v in corners)
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def one_hot(label: int) -> list[float]:
    return [float(n == label) for n in range(LABELS)]


def yolov5() -> tuple[np.ndarray, np.ndarray]:
    rows = np.zeros((1, 3 * len(CELLS), 5 + LABELS), np.float32)
    for n, (corners, label) in enumerate(PEOPLE + OTHERS):
        rows[0, 7 * n] = [*centre_and_size(corners), 1.0, *one_hot(label)]
    return rows, rows_mask(rows, 4)


def yolox() -> tuple[np.ndarray, np.ndarray]:
    rows = np.zeros((1, len(CELLS), 5 + LABELS), np.float32)
    for n, (corners, label) in enumerate(PEOPLE + OTHERS):
        cell = (5, 150, 166)[n]  # a cell of each stride
        stride, row, column = CELLS[cell]
        x, y, w, h = centre_and_size(corners)
        raw = [x / stride - column, y / stride - row, math.log(w / stride), math.log(h / stride)]
        rows[0, cell] = [*raw, 1.0, *one_hot(label)]
    return rows, rows_mask(rows, 4)


def yolov8() -> tuple[np.ndarray, np.ndarray]:
    rows = np.zeros((1, len(CELLS), 4 + LABELS), np.float32)
    for n, (corners, label) in enumerate(PEOPLE + OTHERS):
        rows[0, 5 * n] = [*centre_and_size(corners), *one_hot(label)]
    mask = (rows == 1.0) & (np.arange(4 + LABELS) >= 4)
    return rows.transpose(0, 2, 1), mask.astype(np.float32).transpose(0, 2, 1)


def end_to_end() -> tuple[np.ndarray, np.ndarray]:
    rows = np.zeros((1, 10, 6), np.float32)
    for n, (corners, label) in enumerate(PEOPLE + OTHERS):
        rows[0, n] = [*(v * RATIO for v in corners), 1.0, label]
    return rows, rows_mask(rows, 4)


def rows_mask(rows: np.ndarray, column: int) -> np.ndarray:
    mask = np.zeros_like(rows)
    mask[:, :, column] = rows[:, :, column]
    return mask


YOLO = {
    "yolov5": (yolov5, 0, 1.0),
    "yolox": (yolox, 2, 255.0),
    "yolov8": (yolov8, 0, 1.0),
    "end-to-end": (end_to_end, 0, 1.0),
}


def write(
    path: Path,
    outputs: dict[str, tuple[np.ndarray, np.ndarray | None]],
    *,
    red: int = 0,
    white: float = 1.0,
    shape: tuple[Any, ...] = (1, 3, *NET),
    number_type: int = TensorProto.FLOAT,
    axis: int = 1,
) -> Path:
    """Write a file whose outputs are constants; where a mask is 1 a value is multiplied by how red the image is.

    ``red`` is the position of red among the colours of the input along ``axis``, ``white`` is the greatest value.
    """
    weights = {
        "first": np.array([red]),
        "last": np.array([red + 1]),
        "axis": np.array([axis]),
        "white": np.float32(white),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Slice", ["floats", "first", "last", "axis"], ["reds"]),
        helper.make_node("ReduceMax", ["reds"], ["reddest"], keepdims=0),
        helper.make_node("Div", ["reddest", "white"], ["redness"]),
    ]
    output_infos = []
    for name, (values, mask) in outputs.items():
        weights[f"{name}.fixed"] = values if mask is None else values * (1 - mask).astype(values.dtype)
        if mask is None:
            nodes.append(helper.make_node("Identity", [f"{name}.fixed"], [name]))
        else:
            weights[f"{name}.mask"] = mask.astype(np.float32)
            nodes.append(helper.make_node("Mul", [f"{name}.mask", "redness"], [f"{name}.scaled"]))
            nodes.append(helper.make_node("Add", [f"{name}.fixed", f"{name}.scaled"], [name]))
        number = TensorProto.INT64 if values.dtype == np.int64 else TensorProto.FLOAT
        output_infos.append(helper.make_tensor_value_info(name, number, values.shape))
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    image_info = helper.make_tensor_value_info("images", number_type, shape)
    graph = helper.make_graph(nodes, "detector", [image_info], output_infos, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def reddish(red: int = 204) -> np.ndarray:
    """Make a frame whose red is 0.8 of white and brighter than the padding, and whose other colours are darker."""
    return np.broadcast_to(np.array([red, 20, 40], np.uint8), (*FRAME, 3)).copy()


def assert_people(found: np.ndarray, score: float = 0.8) -> None:
    assert found.dtype == np.float32
    assert found.shape == (len(PEOPLE), 5)
    ordered = found[np.argsort(found[:, 0])]
    assert np.allclose(ordered[:, :4], [corners for corners, _ in PEOPLE], atol=0.05)
    assert np.allclose(ordered[:, 4], score, atol=0.005)


@pytest.mark.parametrize("name", YOLO)
def test_the_yolo_family(name: str, tmp_path: Path) -> None:
    make, red, white = YOLO[name]
    detector = OnnxDetector(write(tmp_path / "net.onnx", {"output": make()}, red=red, white=white))
    assert detector.format.name == name
    assert_people(detector(reddish()))


@pytest.mark.parametrize(("name", "other"), [("yolov5", "yolox"), ("yolov8", "yolox"), ("yolox", "yolov5")])
def test_wrong_colours_or_scales_give_other_boxes(name: str, other: str, tmp_path: Path) -> None:
    make, _, _ = YOLO[name]
    _, red, white = YOLO[other]
    detector = OnnxDetector(write(tmp_path / "net.onnx", {"output": make()}, red=red, white=white))
    with pytest.raises(AssertionError):
        assert_people(detector(reddish()))


def test_undecoded_boxes_that_are_read_as_decoded_give_other_boxes(tmp_path: Path) -> None:
    detector = OnnxDetector(write(tmp_path / "net.onnx", {"output": yolox()}, red=2, white=255.0))
    five = OnnxDetector(write(tmp_path / "five.onnx", {"output": yolov5()}))
    detector.format = OutputFormat("yolox", five.format.decode, 255.0, True)
    with pytest.raises(AssertionError):
        assert_people(detector(reddish()))


def labelled(ratio: float = RATIO) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    things = PEOPLE + OTHERS
    boxes = np.array([[v * ratio for v in corners] for corners, _ in things], np.float32)
    labels = np.array([label + 1 for _, label in things], np.int64)
    ones = np.ones(len(things), np.float32)
    return {"boxes": (boxes, None), "labels": (labels, None), "scores": (ones, ones)}


def test_torchvision_exports(tmp_path: Path) -> None:
    fixed = OnnxDetector(write(tmp_path / "fixed.onnx", labelled()))
    assert fixed.format.name == "torchvision"
    assert_people(fixed(reddish()))
    free = write(tmp_path / "free.onnx", labelled(1.0), shape=(3, "height", "width"), axis=0)
    assert_people(OnnxDetector(free)(reddish()))


def test_tensorflow_exports(tmp_path: Path) -> None:
    things = PEOPLE + OTHERS
    shares = np.array([[(p[1] / 96, p[0] / 96, p[3] / 96, p[2] / 96) for p, _ in things]], np.float32)
    ones = np.ones((1, len(things)), np.float32)
    outputs = {
        "detection_boxes": (shares, None),
        "detection_classes": (np.array([[label + 1.0 for _, label in things]], np.float32), None),
        "detection_scores": (ones, ones),
    }
    path = write(
        tmp_path / "tf.onnx", outputs, white=255.0, shape=(1, "h", "w", 3), number_type=TensorProto.UINT8, axis=3
    )
    detector = OnnxDetector(path)
    assert detector.format.name == "tensorflow"
    assert_people(detector(reddish()))


def test_a_file_for_any_size_gets_640_pixels(tmp_path: Path) -> None:
    rows = np.zeros((1, 5, 80 * 80 + 40 * 40 + 20 * 20), np.float32)
    rows[0, :, 9] = [320, 320, 64, 128, 1]
    detector = OnnxDetector(write(tmp_path / "net.onnx", {"output0": (rows, None)}, shape=("n", 3, "h", "w")))
    assert detector.format.name == "yolov8"
    frame = np.zeros((1280, 640, 3), np.uint8)  # scaled by a half
    assert np.allclose(detector(frame), [[576, 512, 640, 768, 1]])  # and cut at the border


@pytest.mark.parametrize(
    "outputs",
    [
        {"logits": np.zeros((1, 100, 92), np.float32), "pred_boxes": np.zeros((1, 100, 4), np.float32)},
        {"output": np.zeros((1, 1000), np.float32)},
        {"output": np.zeros((1, 8, 33), np.float32)},
    ],
    ids=["detr", "classifier", "other"],
)
def test_other_files_are_refused_in_one_line(outputs: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx", {name: (value, None) for name, value in outputs.items()})
    with pytest.raises(WeightsError, match="YOLOX") as caught:
        OnnxDetector(path)
    assert "\n" not in str(caught.value)
    assert all(str(value.shape) in str(caught.value) for value in outputs.values())


def test_other_files_and_unknown_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"not a network")
    with pytest.raises(WeightsError, match="ONNX Runtime"):
        open_detector(str(tmp_path / "net.onnx"))
    with pytest.raises(WeightsError, match=r"none\.onnx"):
        open_detector(str(tmp_path / "none.onnx"))
    grey = write(tmp_path / "grey.onnx", {"output": yolov8()}, shape=(1, 1, *NET))
    with pytest.raises(WeightsError, match=r"grey\.onnx: inputs"):
        open_detector(str(grey))
    with pytest.raises(ConfigError, match=r'"hogg".*"hog"'):
        open_detector("hogg")


def test_formats_are_recognized_by_shapes() -> None:
    shapes = {"yolov5": (1, 25200, 85), "yolox": (1, 8400, 85), "yolov8": (1, 84, 8400), "end-to-end": (1, 300, 6)}
    for name, shape in shapes.items():
        assert recognize_format({"out": shape}, (640, 640), Path("net.onnx")).name == name
    assert recognize_format({"out": (1, 8400, 6)}, (640, 640), Path("net.onnx")).name == "yolox"  # with one class
