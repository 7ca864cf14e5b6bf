"""Who finds people in a frame: OpenCV's HOG, a detector of torchvision, or an ONNX file.

A detector knows pixels and boxes; it knows nothing of frames before or after.  Weights are a file that is there:
nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import pickle
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

# Networks of torchvision that find people, the more accurate first: the first whose weights are there is "auto".
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
# Their batch normalization was folded with no epsilon, as torchvision sets it too when it loads these weights.
_NO_EPSILON = ("fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn")
_GROUP = 2  # more windows than that must agree on a person
_PERSON = 1  # in the labels of COCO as torchvision counts them
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError)


class Detector(Protocol):
    """Finds people.

    ``name`` changes with whatever would change its boxes; ``min_score`` is the score from which a box counts
    where the user does not say.
    """

    name: str
    min_score: float

    def __call__(self, pixels: Pixels) -> FloatArray:
        """Boxes (N, 5) float32 in ``pixels`` (H, W, 3): left, top, right, bottom in pixels and score, best first."""
        ...


def open_detector(wanted: str = "auto", weights: Path | None = None) -> Detector:
    """The detector ``wanted``: hog, a name of ``TORCHVISION``, or the path of an ONNX file.

    "auto" is torchvision's most accurate network whose weights lie in torch's cache, else hog.  ``weights`` are
    those of a torchvision network, which are looked for in torch's cache otherwise.
    """
    if weights is not None and wanted not in TORCHVISION:
        known = ", ".join(TORCHVISION)
        raise ConfigError(f"--detector-weights are those of a network of torchvision; name it by --detector: {known}")
    if wanted == "auto":
        there = [name for name in TORCHVISION if _cached(name).is_file()]
        wanted = there[0] if there else "hog"
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
    """Histograms of oriented gradients and a linear SVM (Dalal and Triggs, CVPR 2005), which OpenCV carries.

    It finds upright people from about 100 pixels on who are seen whole.  Scores are distances from the SVM's plane,
    not probabilities: 0 is undecided, above 1 is sure.
    """

    min_score = 0.6
    # Its window of 128 x 64 pixels holds a person of 96 with 16 pixels above and below; a box is to hold the person.
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
        # Its threads add windows in any order, on which the means of groups depend: so they are grouped here, sorted.
        windows = np.concatenate([np.reshape(found, (-1, 4)), np.reshape(margins, (-1, 1))], axis=1)
        windows = windows[np.lexsort(windows.T)].astype(np.float32)  # (N, 5): left, top, width, height, score
        grouped, _ = self._cv2.groupRectangles(windows[:, :4].astype(int).tolist(), _GROUP, 0.2)
        groups = np.reshape(grouped, (-1, 4)).astype(np.float32)
        near = overlaps(_corners(groups), _corners(windows[:, :4])) > 0.5  # (groups, windows)
        scores = np.where(near, windows[:, 4], 0).max(axis=1, initial=0)
        inset = groups[:, 2:] * np.array(self.inset, np.float32)
        inner = np.concatenate([groups[:, :2] + inset, groups[:, 2:] - 2 * inset], axis=1)
        return tidy(_corners(inner), scores, (height, width))


class TorchvisionDetector:
    """A detection network of torchvision with its published weights, or others for the 91 labels of COCO."""

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


def _corners(places: FloatArray) -> FloatArray:
    """Left, top, width, height (N, 4) to left, top, right, bottom."""
    return np.concatenate([places[:, :2], places[:, :2] + places[:, 2:]], axis=1)


def file_digest(path: Path) -> str:
    """The first 16 digits of the SHA-256 of a file, which name it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _cached(name: str) -> Path:
    """Where torch keeps the published weights of a network, whether they are there or not."""
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
        table = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise WeightsError(f"{path}: damaged, or not plain tensors as torchvision publishes them") from error
    if not isinstance(table, Mapping):
        raise WeightsError(f"{path}: expected a table of tensors, got {type(table).__name__}")
    return table
