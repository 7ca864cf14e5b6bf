"""Find people with a detector in an ONNX file, whose format follows from the names and shapes of its outputs.

The formats of torchvision, TensorFlow and the YOLO family are known; other files are refused.  All of them were trained
on COCO, in which person is label 0, or label 1 as torchvision and TensorFlow count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from reid.data.video.boxes import tidy
from reid.data.video.detectors import file_digest
from reid.data.video.frames import Pixels
from reid.errors import ConfigError, WeightsError
from reid.onnx_sessions import MAX_SIDE, open_session, run_session
from reid.records import FloatArray

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

SIDE = 640  # pixels a side, for files that take images of any size
FLOOR = 0.01  # files give lower scores to thousands of positions that show nothing
_STRIDES = (8, 16, 32)  # pixels between the cells of the three maps on which the YOLO family predicts boxes
_GREY = 114  # the padding with which the YOLO family is trained
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
_KNOWN = (
    "boxes, labels, scores (torchvision); detection_boxes, detection_classes, detection_scores (TensorFlow);"
    " (1, N, 5+C) of YOLOv5, YOLOv7 or YOLOX; (1, 4+C, N) of YOLOv8 or later; (1, N, 6) with the NMS inside"
)


@dataclass(frozen=True)
class OutputFormat:
    """How the input of a file is prepared and its outputs are read.

    Args:
        name: The name of the format.
        decode: Converts the outputs by name, and height and width of the input, to boxes (N, 4) in pixels of the input
            and scores (N,).
        scale: The value of white in the input.
        bgr: The colours of the input are in the order blue, green, red.
    """

    name: str
    decode: Callable[[dict[str, Array], Shape], tuple[Array, Array]]
    scale: float = 1.0
    bgr: bool = False


class OnnxDetector:
    """An ONNX file as a :class:`~reid.data.video.detectors.Detector`; ``format`` is the format that was recognized."""

    min_score = 0.5

    def __init__(self, path: Path) -> None:
        self._path = path
        self._session = _session(path)
        self._input, self._type, self._axes, fixed = _input_of(self._session, path)
        self._size = fixed or (SIDE, SIDE)
        self._outputs = [output.name for output in self._session.get_outputs()]
        blank = np.full((*self._size, 3), _GREY, np.float32)
        outputs = self._run(blank, OutputFormat("blank", _decode_labelled))
        self.format = recognize_format({name: value.shape for name, value in outputs.items()}, self._size, path)
        if fixed is None and self.format.name in ("torchvision", "tensorflow"):
            self._size = ()  # these files resize the frame themselves
        self.name = f"onnx {self.format.name} {file_digest(path)}"

    def __call__(self, pixels: Pixels) -> FloatArray:
        size = (pixels.shape[0], pixels.shape[1])
        image, ratio = _letterbox(pixels, self._size) if self._size else (pixels, 1.0)
        outputs = self._run(image.astype(np.float32), self.format)
        boxes, scores = self.format.decode(outputs, (image.shape[0], image.shape[1]))
        likely = scores > FLOOR
        return tidy(boxes[likely].astype(np.float32) / ratio, scores[likely], size)

    def _run(self, image: FloatArray, output_format: OutputFormat) -> dict[str, Array]:
        """Run the network on an image (H, W, 3), RGB in 0..255; return its outputs by name."""
        ordered = image[:, :, ::-1] if output_format.bgr else image
        scaled = ordered if self._type is np.uint8 else ordered * np.float32(output_format.scale / 255)
        given = np.ascontiguousarray(scaled.transpose(self._axes[-3:]), dtype=self._type)
        given = given[None] if len(self._axes) == 4 else given
        try:
            answers = run_session(self._session, self._outputs, {self._input: given})
        except Exception as error:  # ONNX Runtime's errors share no other base
            raise WeightsError(
                f"{self._path}: the network cannot be run on {given.shape} ({_one_line(error)})"
            ) from error
        return dict(zip(self._outputs, answers, strict=True))


def recognize_format(shapes: dict[str, Shape], size: Shape, path: Path) -> OutputFormat:
    """Recognize the format of a detector by its outputs.

    Args:
        shapes: Shapes of the outputs by name.
        size: Height and width of the input.
        path: The file, for errors.

    Returns:
        The format.

    Raises:
        WeightsError: The outputs are those of no known format.
    """
    if {"boxes", "labels", "scores"} <= set(shapes):
        return OutputFormat("torchvision", _decode_labelled)
    if {"detection_boxes", "detection_classes", "detection_scores"} <= set(shapes):
        return OutputFormat("tensorflow", _decode_tensorflow, scale=255.0)
    shape = next(iter(shapes.values())) if len(shapes) == 1 else ()
    cells = sum((size[0] // stride) * (size[1] // stride) for stride in _STRIDES)
    if len(shape) == 3 and shape[0] == 1:
        if shape[1] == 3 * cells and shape[2] >= 6:  # three boxes a cell, decoded
            return OutputFormat("yolov5", _decode_objectness)
        if shape[1] == cells and shape[2] >= 6:  # one box a cell, not decoded
            return OutputFormat("yolox", _decode_yolox, scale=255.0, bgr=True)
        if shape[2] == cells and shape[1] >= 5:
            return OutputFormat("yolov8", _decode_classes)
        if shape[2] == 6:
            return OutputFormat("end-to-end", _decode_end_to_end)
    found = ", ".join(f"{name} {value}" for name, value in shapes.items())
    raise WeightsError(f"{path}: outputs {found} are of no detector known here; known: {_KNOWN}")


def _decode_labelled(outputs: dict[str, Array], _size: Shape) -> tuple[Array, Array]:
    person = outputs["labels"].reshape(-1) == 1
    return outputs["boxes"].reshape(-1, 4)[person], outputs["scores"].reshape(-1)[person]


def _decode_tensorflow(outputs: dict[str, Array], size: Shape) -> tuple[Array, Array]:
    """Decode boxes of top, left, bottom, right, as shares of the image."""
    person = outputs["detection_classes"].reshape(-1).astype(int) == 1
    shares = outputs["detection_boxes"].reshape(-1, 4)[person][:, [1, 0, 3, 2]]
    pixels = shares * np.array([size[1], size[0], size[1], size[0]], np.float32)
    return pixels, outputs["detection_scores"].reshape(-1)[person]


def _decode_objectness(outputs: dict[str, Array], _size: Shape) -> tuple[Array, Array]:
    """Decode rows of centre, size, probability of an object, and probabilities of the classes."""
    rows = _only_output(outputs)
    return _corners(rows[:, :2], rows[:, 2:4]), rows[:, 4] * _person_scores(rows[:, 5:])


def _decode_yolox(outputs: dict[str, Array], size: Shape) -> tuple[Array, Array]:
    """Decode rows whose centres count from their cell, in strides, and whose sizes are logarithms.

    Source: Ge et al., YOLOX, arXiv 2107.08430.
    """
    rows = _only_output(outputs).astype(np.float32)
    cells, strides = _cells(size)
    sizes = np.exp(np.minimum(rows[:, 2:4], 20.0)) * strides  # an extreme value stays finite
    return _corners((rows[:, :2] + cells) * strides, sizes), rows[:, 4] * _person_scores(rows[:, 5:])


def _decode_classes(outputs: dict[str, Array], _size: Shape) -> tuple[Array, Array]:
    """Decode columns of centre, size, and probabilities of the classes."""
    rows = _only_output(outputs).T
    return _corners(rows[:, :2], rows[:, 2:4]), _person_scores(rows[:, 4:])


def _decode_end_to_end(outputs: dict[str, Array], _size: Shape) -> tuple[Array, Array]:
    """Decode rows of corners, score and label."""
    rows = _only_output(outputs)
    person = rows[:, 5].round() == 0
    return rows[person, :4], rows[person, 4]


def _only_output(outputs: dict[str, Array]) -> Array:
    found: Array = next(iter(outputs.values()))[0]
    return found


def _person_scores(scores: Array) -> Array:
    """Return (N,) the score of person, the first class of (N, C), where it is the best class, else 0."""
    first: Array = np.where(scores[:, 0] >= scores.max(axis=1), scores[:, 0], 0)
    return first


def _corners(centres: Array, sizes: Array) -> Array:
    return np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)


def _cells(size: Shape) -> tuple[FloatArray, FloatArray]:
    """Return column and row of every cell of the three maps (N, 2), row by row, and its stride in pixels (N, 1)."""
    cells, strides = [], []
    for stride in _STRIDES:
        rows, columns = np.mgrid[: size[0] // stride, : size[1] // stride]
        cells.append(np.stack([columns.ravel(), rows.ravel()], axis=1))
        strides.append(np.full((rows.size, 1), stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(strides).astype(np.float32)


def _letterbox(pixels: Pixels, size: Shape) -> tuple[Pixels, float]:
    """Scale an image into the left upper corner of a grey image of ``size``; return it and the scale factor."""
    ratio = min(size[0] / pixels.shape[0], size[1] / pixels.shape[1])
    inner = (max(1, round(pixels.shape[1] * ratio)), max(1, round(pixels.shape[0] * ratio)))  # (width, height)
    whole = np.full((*size, 3), _GREY, np.uint8)
    whole[: inner[1], : inner[0]] = np.asarray(Image.fromarray(pixels).resize(inner, Image.Resampling.BILINEAR))
    return whole, ratio


def _session(path: Path) -> Any:
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; expected a detector in ONNX format")
    try:
        from onnxruntime import get_available_providers
    except ImportError:
        raise ConfigError('this needs ONNX Runtime, which is not installed: pip install ".[video]"') from None
    known = get_available_providers()
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in known]
    try:
        return open_session(str(path), providers)
    except Exception as error:  # ONNX Runtime's errors share no other base
        raise WeightsError(f"{path}: not a network that ONNX Runtime can load ({_one_line(error)})") from error


def _input_of(session: Any, path: Path) -> tuple[str, Any, Sequence[int], Shape | None]:
    """Return name, number type, order of axes and fixed height and width of the input.

    The order of axes is that for pixels (H, W, 3); it has four entries where the input has a batch axis.
    """
    inputs = session.get_inputs()
    found = ", ".join(f"{tensor.name} {tensor.shape} {tensor.type}" for tensor in inputs)
    if len(inputs) == 1 and len(inputs[0].shape) in (3, 4) and inputs[0].type in _TYPES:
        tensor, batched = inputs[0], len(inputs[0].shape) == 4
        shape = [side if isinstance(side, int) and side > 0 else None for side in tensor.shape[-3:]]
        batch = tensor.shape[0] if batched else 1
        if shape[2] == 3 and shape[0] != 3:
            axes, sides = (0, 1, 2), shape[:2]
        else:
            axes, sides = (2, 0, 1), shape[1:]
        if not (isinstance(batch, int) and batch > 1) and 3 in (shape[0], shape[2]):
            fixed = None if None in sides else (int(sides[0] or 0), int(sides[1] or 0))
            if any(side > MAX_SIDE for side in fixed or ()):
                raise WeightsError(f"{path}: takes images {tensor.shape}, expected sides of at most {MAX_SIDE} pixels")
            return tensor.name, _TYPES[tensor.type], ((0, *axes) if batched else axes), fixed
    raise WeightsError(f"{path}: inputs {found}; expected one image (1, 3, H, W) or (1, H, W, 3), batch 1")


def _one_line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]
