"""Detectors that find people in a frame: OpenCV's HOG, networks of torchvision, and ONNX files.

Weights are read from files that exist; nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from reid.data.video.boxes import tidy
from reid.data.video.frames import Pixels, load_cv2
from reid.data.video.tracking import overlaps
from reid.errors import ConfigError, WeightsError, unknown_name
from reid.records import FloatArray
from reid.torch_files import unpickle

# Networks of torchvision that find people, the most accurate first; "auto" takes the first whose weights exist.
TORCHVISION = (
    "fasterrcnn_resnet50_fpn_v2",
    "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "fasterrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
)
# The published weights of these networks expect batch normalization without an epsilon, as torchvision sets it.
_NO_EPSILON = ("fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn")
_GROUP = 2  # a person is found where more windows than this agree
_PERSON = 1  # in the labels of COCO as torchvision counts them


class Detector(Protocol):
    """Finds people in an image.

    ``name`` identifies the detector and its weights.  ``min_score`` is the score from which a box counts by default.
    """

    name: str
    min_score: float

    def __call__(self, pixels: Pixels) -> FloatArray:
        """Find people.

        Args:
            pixels: (H, W, 3) uint8 RGB.

        Returns:
            (N, 5) float32, left, top, right, bottom in pixels and score, best first.
        """
        ...


def open_detector(wanted: str = "auto", weights: Path | None = None) -> Detector:
    """Open a detector.

    Args:
        wanted: "hog", a name in ``TORCHVISION``, or the path of an ONNX file.  "auto" takes the most accurate network
            of torchvision whose weights are in torch's cache, or hog where there are none.
        weights: The weights of a network of torchvision; by default they are read from torch's cache.

    Returns:
        The detector.

    Raises:
        ConfigError: The name is unknown, weights are given for another detector, or a package is not installed.
        WeightsError: The weights are missing, damaged, or of another network.
    """
    if weights is not None and wanted not in TORCHVISION:
        known = ", ".join(TORCHVISION)
        raise ConfigError(f"--detector-weights are those of a network of torchvision; name it by --detector: {known}")
    if wanted == "auto":
        available = [name for name in TORCHVISION if _cached(name).is_file()]
        wanted = available[0] if available else "hog"
    if wanted == "hog":
        return HogDetector()
    if wanted in TORCHVISION:
        return TorchvisionDetector(wanted, weights or _cached(wanted))
    path = Path(wanted)
    if path.suffix.lower() == ".onnx":
        from reid.data.video.onnx_detector import OnnxDetector

        return OnnxDetector(path)
    raise ConfigError(f"{unknown_name('detector', wanted, ('auto', 'hog', *TORCHVISION))}; or an .onnx file")


class HogDetector:
    """Histograms of oriented gradients and a linear SVM (Dalal and Triggs, CVPR 2005), which OpenCV contains.

    It finds upright people who are about 100 pixels tall or taller and completely visible.  Scores are distances from
    the plane of the SVM: 0 is undecided, above 1 is sure.
    """

    min_score = 0.6
    # In its window of 128 x 64 pixels the person is 96 pixels tall; the margins are taken off to get the person's box.
    inset = (3 / 16, 1 / 8)

    def __init__(self) -> None:
        cv2 = load_cv2()
        if not hasattr(cv2, "HOGDescriptor"):
            raise ConfigError(f'OpenCV {cv2.__version__} has no HOG detector any more: pip install ".[video]"')
        self.name = "hog"
        self._cv2 = cv2
        self._hog = cv2.HOGDescriptor()
        self._hog.setSVMDetector(cv2.HOGDescriptor_getDefaultPeopleDetector())

    def __call__(self, pixels: Pixels) -> FloatArray:
        height, width = pixels.shape[:2]
        if height < 128 or width < 64:  # smaller than its window
            return np.empty((0, 5), np.float32)
        found, margins = self._hog.detectMultiScale(
            pixels[:, :, ::-1].copy(), winStride=(8, 8), padding=(16, 16), scale=1.05, groupThreshold=0
        )
        # The order of the windows changes from run to run, and the means of groups depend on it; sorting makes them
        # equal.
        windows = np.concatenate([np.reshape(found, (-1, 4)), np.reshape(margins, (-1, 1))], axis=1)
        windows = windows[np.lexsort(windows.T)].astype(np.float32)  # (N, 5): left, top, width, height, score
        grouped, _ = self._cv2.groupRectangles(windows[:, :4].astype(int).tolist(), _GROUP, 0.2)
        groups = np.reshape(grouped, (-1, 4)).astype(np.float32)
        near = overlaps(_corners(groups), _corners(windows[:, :4])) > 0.5  # (groups, windows)
        scores = np.where(near, windows[:, 4], 0).max(axis=1, initial=0)
        inset = groups[:, 2:] * np.array(self.inset, np.float32)
        people = np.concatenate([groups[:, :2] + inset, groups[:, 2:] - 2 * inset], axis=1)
        return tidy(_corners(people), scores, (height, width))


class TorchvisionDetector:
    """A detection network of torchvision with its published weights, or with others for the 91 labels of COCO."""

    min_score = 0.5

    def __init__(self, name: str, weights: Path) -> None:
        from torchvision.models import get_model

        table = _read_weights(name, weights)
        network = get_model(name, weights=None, weights_backbone=None, num_classes=91)
        try:
            network.load_state_dict(table)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise WeightsError(f"{weights}: not weights of torchvision's {name} for the labels of COCO") from error
        if name in _NO_EPSILON:
            for layer in network.modules():
                if isinstance(layer, torch.nn.BatchNorm2d):
                    layer.eps = 0.0
        self.name = f"{name} {file_digest(weights)}"
        self._network = network.eval()

    @torch.inference_mode()
    def __call__(self, pixels: Pixels) -> FloatArray:
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255  # (3, H, W)
        found = self._network([image])[0]
        people = found["labels"] == _PERSON
        return tidy(found["boxes"][people].numpy(), found["scores"][people].numpy(), (pixels.shape[0], pixels.shape[1]))


def _corners(boxes: FloatArray) -> FloatArray:
    """Convert left, top, width, height (N, 4) to left, top, right, bottom."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def file_digest(path: Path) -> str:
    """Return the first 16 digits of the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _cached(name: str) -> Path:
    """Return the path at which torch keeps the published weights of a network; the file need not exist."""
    from torchvision.models import get_model_weights

    url: str = get_model_weights(name).DEFAULT.url
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def _read_weights(name: str, path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise WeightsError(
            f"{path}: no weights of torchvision's {name} there, and nothing is downloaded; put its published file"
            f" {_cached(name).name} there, or name it by --detector-weights"
        )
    try:
        table = unpickle(path)
    except WeightsError as error:
        raise WeightsError(f"{error}; expected plain tensors as torchvision publishes them") from error
    if not isinstance(table, Mapping):
        raise WeightsError(f"{path}: expected a table of tensors, got {type(table).__name__}")
    return table
