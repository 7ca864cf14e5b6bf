"""Detectors: HOG on rendered people, torchvision's networks against torchvision's own loading, ONNX files by hand.

Each ONNX file holds people at known places, written in the form of its kind, and gives them the score that it sees
in the picture: so places, scales, colours and padding are all checked.  Wrong readers that are told apart: one that
takes a file for another kind of the same shape, swaps colours, or leaves the letterbox in.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torchvision.models import get_model, get_model_weights

from helpers.walking_people import SIZE, TWO, Walk, box, picture
from reid.data.video.boxes import tidy
from reid.data.video.detectors import TORCHVISION, HogDetector, open_detector
from reid.data.video.onnx_detector import OnnxDetector, kind_of
from reid.errors import ConfigError, WeightsError

NET = (64, 128)  # height and width of the files' input
FRAME = (96, 96)  # of a frame: scaled by 2/3 it fills the height and half of the width
RATIO = 2 / 3
# Left, top, right, bottom in the frame, and the label by COCO counted from 0.
PEOPLE = [((6.0, 12.0, 30.0, 84.0), 0), ((48.0, 9.0, 75.0, 90.0), 0)]
OTHERS = [((30.0, 30.0, 45.0, 45.0), 2)]
CELLS = [
    (stride, row, column) for stride in (8, 16, 32) for row in range(64 // stride) for column in range(128 // stride)
]
LABELS = 4


def inner(place: tuple[float, ...]) -> tuple[float, float, float, float]:
    """Middle and size of a box of the frame, in pixels of the input."""
    left, top, right, bottom = (v * RATIO for v in place)
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def one_hot(label: int) -> list[float]:
    return [float(n == label) for n in range(LABELS)]


def yolov5() -> tuple[np.ndarray, np.ndarray]:
    rows = np.zeros((1, 3 * len(CELLS), 5 + LABELS), np.float32)
    for n, (place, label) in enumerate(PEOPLE + OTHERS):
        rows[0, 7 * n] = [*inner(place), 1.0, *one_hot(label)]
    return rows, rows_mask(rows, 4)


def yolox() -> tuple[np.ndarray, np.ndarray]:
    rows = np.zeros((1, len(CELLS), 5 + LABELS), np.float32)
    for n, (place, label) in enumerate(PEOPLE + OTHERS):
        at = (5, 150, 166)[n]  # a cell of each stride
        stride, row, column = CELLS[at]
        x, y, w, h = inner(place)
        raw = [x / stride - column, y / stride - row, math.log(w / stride), math.log(h / stride)]
        rows[0, at] = [*raw, 1.0, *one_hot(label)]
    return rows, rows_mask(rows, 4)


def yolov8() -> tuple[np.ndarray, np.ndarray]:
    rows = np.zeros((1, len(CELLS), 4 + LABELS), np.float32)
    for n, (place, label) in enumerate(PEOPLE + OTHERS):
        rows[0, 5 * n] = [*inner(place), *one_hot(label)]
    mask = (rows == 1.0) & (np.arange(4 + LABELS) >= 4)
    return rows.transpose(0, 2, 1), mask.astype(np.float32).transpose(0, 2, 1)


def end_to_end() -> tuple[np.ndarray, np.ndarray]:
    rows = np.zeros((1, 10, 6), np.float32)
    for n, (place, label) in enumerate(PEOPLE + OTHERS):
        rows[0, n] = [*(v * RATIO for v in place), 1.0, label]
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
    kind: int = TensorProto.FLOAT,
    axis: int = 1,
) -> Path:
    """A file whose outputs are constants; where a mask is 1 a value is multiplied by how red the picture is.

    ``red`` is the place of red among the colours of the input along ``axis``, ``white`` the greatest value.
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
    told = []
    for name, (values, mask) in outputs.items():
        weights[f"{name}.fixed"] = values if mask is None else values * (1 - mask).astype(values.dtype)
        if mask is None:
            nodes.append(helper.make_node("Identity", [f"{name}.fixed"], [name]))
        else:
            weights[f"{name}.mask"] = mask.astype(np.float32)
            nodes.append(helper.make_node("Mul", [f"{name}.mask", "redness"], [f"{name}.seen"]))
            nodes.append(helper.make_node("Add", [f"{name}.fixed", f"{name}.seen"], [name]))
        number = TensorProto.INT64 if values.dtype == np.int64 else TensorProto.FLOAT
        told.append(helper.make_tensor_value_info(name, number, values.shape))
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    taken = helper.make_tensor_value_info("images", kind, shape)
    graph = helper.make_graph(nodes, "detector", [taken], told, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def reddish(red: int = 204) -> np.ndarray:
    """A frame whose red is 0.8 of white and brighter than padding, the other colours darker than it."""
    return np.broadcast_to(np.array([red, 20, 40], np.uint8), (*FRAME, 3)).copy()


def assert_people(found: np.ndarray, score: float = 0.8) -> None:
    assert found.dtype == np.float32
    assert found.shape == (len(PEOPLE), 5)
    ordered = found[np.argsort(found[:, 0])]
    assert np.allclose(ordered[:, :4], [place for place, _ in PEOPLE], atol=0.05)
    assert np.allclose(ordered[:, 4], score, atol=0.005)


@pytest.mark.parametrize("name", YOLO)
def test_the_yolo_family(name: str, tmp_path: Path) -> None:
    make, red, white = YOLO[name]
    detector = OnnxDetector(write(tmp_path / "net.onnx", {"output": make()}, red=red, white=white))
    assert detector.kind.name == name
    assert_people(detector(reddish()))


@pytest.mark.parametrize(("name", "other"), [("yolov5", "yolox"), ("yolov8", "yolox"), ("yolox", "yolov5")])
def test_wrong_colours_or_scales_are_told_apart(name: str, other: str, tmp_path: Path) -> None:
    make, _, _ = YOLO[name]
    _, red, white = YOLO[other]
    detector = OnnxDetector(write(tmp_path / "net.onnx", {"output": make()}, red=red, white=white))
    with pytest.raises(AssertionError):
        assert_people(detector(reddish()))


def test_raw_places_read_as_decoded_are_told_apart(tmp_path: Path) -> None:
    detector = OnnxDetector(write(tmp_path / "net.onnx", {"output": yolox()}, red=2, white=255.0))
    five = OnnxDetector(write(tmp_path / "five.onnx", {"output": yolov5()}))
    detector.kind = type(five.kind)("yolox", five.kind.decode, 255.0, True)
    with pytest.raises(AssertionError):
        assert_people(detector(reddish()))


def labelled(ratio: float = RATIO) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    things = PEOPLE + OTHERS
    places = np.array([[v * ratio for v in place] for place, _ in things], np.float32)
    labels = np.array([label + 1 for _, label in things], np.int64)
    ones = np.ones(len(things), np.float32)
    return {"boxes": (places, None), "labels": (labels, None), "scores": (ones, ones)}


def test_torchvision_exports(tmp_path: Path) -> None:
    fixed = OnnxDetector(write(tmp_path / "fixed.onnx", labelled()))
    assert fixed.kind.name == "torchvision"
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
    path = write(tmp_path / "tf.onnx", outputs, white=255.0, shape=(1, "h", "w", 3), kind=TensorProto.UINT8, axis=3)
    detector = OnnxDetector(path)
    assert detector.kind.name == "tensorflow"
    assert_people(detector(reddish()))


def test_a_file_of_any_size_gets_the_usual_one(tmp_path: Path) -> None:
    rows = np.zeros((1, 5, 80 * 80 + 40 * 40 + 20 * 20), np.float32)
    rows[0, :, 9] = [320, 320, 64, 128, 1]
    detector = OnnxDetector(write(tmp_path / "net.onnx", {"output0": (rows, None)}, shape=("n", 3, "h", "w")))
    assert detector.kind.name == "yolov8"
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
    with pytest.raises(WeightsError, match=r"of no detector known here; known: .*YOLOX") as caught:
        OnnxDetector(path)
    assert "\n" not in str(caught.value)
    assert all(str(value.shape) in str(caught.value) for value in outputs.values())


def test_what_is_no_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"not a network")
    with pytest.raises(WeightsError, match="ONNX Runtime can load"):
        open_detector(str(tmp_path / "net.onnx"))
    with pytest.raises(WeightsError, match="no such file"):
        open_detector(str(tmp_path / "none.onnx"))
    grey = write(tmp_path / "grey.onnx", {"output": yolov8()}, shape=(1, 1, *NET))
    with pytest.raises(WeightsError, match="expected one picture"):
        open_detector(str(grey))
    with pytest.raises(ConfigError, match='unknown detector "hogg"; did you mean "hog"'):
        open_detector("hogg")


def test_kinds_are_told_by_shapes_alone() -> None:
    shapes = {"yolov5": (1, 25200, 85), "yolox": (1, 8400, 85), "yolov8": (1, 84, 8400), "end-to-end": (1, 300, 6)}
    for name, shape in shapes.items():
        assert kind_of({"out": shape}, (640, 640), Path("net.onnx")).name == name
    assert kind_of({"out": (1, 8400, 6)}, (640, 640), Path("net.onnx")).name == "yolox"  # of one class


def test_boxes_are_tidy() -> None:
    boxes = [
        (-5, -5, 20, 30),
        (-4, -5, 20, 30),
        (50, 10, 40, 30),
        (90, 10, 130, 90),
        (0, 0, np.nan, 9),
        (200, 0, 210, 9),
    ]
    found = tidy(boxes, [0.5, 0.9, 0.9, 0.7, 0.9, 0.9], (60, 100))
    assert np.allclose(found, [[0, 0, 20, 30, 0.9], [90, 10, 100, 60, 0.7]])
    assert tidy([], [], (60, 100)).shape == (0, 5)


def overlap(first: np.ndarray, second: tuple[float, ...]) -> float:
    across = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    down = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (first, second)]
    return across * down / (sum(areas) - across * down)


def test_hog_finds_rendered_people_and_nobody_on_an_empty_street() -> None:
    hog = open_detector("hog")
    for number in (10, 18):
        found = hog(picture(TWO, number))
        found = found[found[:, 4] >= hog.min_score]
        truths = [box(walk, number) for walk in TWO]
        assert len(found) == 2
        for truth in truths:
            assert truth is not None
            assert max(overlap(one, truth) for one in found) > 0.5
    assert not len(hog(picture((), 0)))
    assert hog(picture(TWO, 0)[:100]).shape == (0, 5)  # lower than its window


def test_hog_finds_the_same_again_and_again() -> None:
    """OpenCV's own grouping does not: its threads add windows in any order, which a resumed run must not show."""
    hog = open_detector("hog")
    for number in (9, 18, 30):
        first = hog(picture(TWO, number))
        assert all(np.array_equal(hog(picture(TWO, number)), first) for _ in range(5))


def test_hog_finds_most_of_many_people() -> None:
    """The figure in docs/your-cameras.md is 60 of 60; other builds of OpenCV may round otherwise."""
    hog, seen = HogDetector(), 0
    for index in range(60):
        walk = Walk(index, (130.0, 70.0), (0.0, 0.0), range(1))
        found = hog(picture([walk], 0))
        truth = box(walk, 0)
        assert truth is not None
        seen += any(one[4] >= hog.min_score and overlap(one, truth) > 0.5 for one in found)
    assert seen >= 58


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch, and a network that must not be used."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_: pytest.fail("downloads"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def put(cache: Path, name: str) -> Path:
    """Untrained weights where torchvision keeps the published ones."""
    torch.manual_seed(0)
    path = cache / get_model_weights(name).DEFAULT.url.rpartition("/")[2]
    table = get_model(name, weights=None, weights_backbone=None).state_dict()
    for key, value in table.items():
        if key.endswith("cls_score.bias"):
            value[1] = 5.0  # of person, so that there is something to compare
        elif "classification_head.module_list" in key and key.endswith("1.bias"):
            value[1::91] = 5.0  # the same at each anchor
    torch.save(table, path)
    return path


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_networks_as_torchvision_loads_them(name: str, cache: Path) -> None:
    put(cache, name)
    detector = open_detector(name)
    pixels = picture(TWO, 18)
    with torch.inference_mode():
        image = torch.from_numpy(pixels).permute(2, 0, 1) / 255
        theirs = get_model(name, weights="DEFAULT").eval()([image])[0]
    people = theirs["labels"] == 1
    truth = tidy(theirs["boxes"][people], theirs["scores"][people], SIZE)
    assert np.allclose(detector(pixels), truth, atol=1e-4)
    assert len(truth)


def test_batch_normalization_as_torchvision_sets_it(cache: Path) -> None:
    """With the published ResNet-50 weights torchvision divides by the deviation without an epsilon."""
    put(cache, "fasterrcnn_resnet50_fpn")
    ours: Any = open_detector("fasterrcnn_resnet50_fpn")
    theirs = get_model("fasterrcnn_resnet50_fpn", weights="DEFAULT").eval()
    layers = dict(theirs.named_modules())
    compared = [
        (layer.eps, layers[at].eps) for at, layer in ours._network.named_modules() if hasattr(layer, "running_var")
    ]
    assert len(compared) > 50
    assert all(mine == other == 0.0 for mine, other in compared)


def test_auto_takes_what_is_there(cache: Path) -> None:
    assert open_detector().name == "hog"
    put(cache, "ssdlite320_mobilenet_v3_large")
    assert open_detector().name.startswith("ssdlite320_mobilenet_v3_large ")
    assert set(TORCHVISION[-2:]) == {"ssd300_vgg16", "ssdlite320_mobilenet_v3_large"}


def test_missing_and_wrong_weights_are_refused_in_one_line(cache: Path, tmp_path: Path) -> None:
    name = "ssdlite320_mobilenet_v3_large"
    with pytest.raises(WeightsError, match=r"nothing is downloaded; put its published file ssdlite.*\.pth there"):
        open_detector(name)
    wrong = tmp_path / "wrong.pth"
    torch.save({"weight": torch.zeros(3)}, wrong)
    with pytest.raises(WeightsError, match="not weights of torchvision's ssdlite"):
        open_detector(name, wrong)
    torch.save(Path("code"), wrong)  # an object, not a table: would run code if it were loaded
    with pytest.raises(WeightsError, match="not plain tensors"):
        open_detector(name, wrong)
    wrong.write_bytes(b"damage")
    with pytest.raises(WeightsError, match="damaged"):
        open_detector(name, wrong)
    with pytest.raises(ConfigError, match="name it by --detector"):
        open_detector("hog", wrong)
