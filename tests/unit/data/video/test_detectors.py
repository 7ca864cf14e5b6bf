"""HOG finds rendered people, and networks of torchvision give the boxes that torchvision's own loading gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import get_model, get_model_weights

from helpers.walking_people import SIZE, TWO, Walk, box, draw_frame
from reid.data.video.boxes import tidy
from reid.data.video.detectors import TORCHVISION, HogDetector, open_detector
from reid.errors import ConfigError, WeightsError


def test_boxes_are_clipped_and_dropped() -> None:
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
        found = hog(draw_frame(TWO, number))
        found = found[found[:, 4] >= hog.min_score]
        truths = [box(walk, number) for walk in TWO]
        assert len(found) == 2
        for truth in truths:
            assert truth is not None
            assert max(overlap(row, truth) for row in found) > 0.5
    assert not len(hog(draw_frame((), 0)))
    assert hog(draw_frame(TWO, 0)[:100]).shape == (0, 5)  # less tall than its window


def test_hog_gives_the_same_boxes_every_time() -> None:
    """OpenCV's own grouping does not, because its threads add windows in any order; a continued run needs this."""
    hog = open_detector("hog")
    for number in (9, 18, 30):
        first = hog(draw_frame(TWO, number))
        assert all(np.array_equal(hog(draw_frame(TWO, number)), first) for _ in range(5))


def test_hog_finds_most_of_many_people() -> None:
    """The figure in docs/your-cameras.md is 60 of 60; other builds of OpenCV may round otherwise."""
    hog, detected = HogDetector(), 0
    for index in range(60):
        walk = Walk(index, (130.0, 70.0), (0.0, 0.0), range(1))
        found = hog(draw_frame([walk], 0))
        truth = box(walk, 0)
        assert truth is not None
        detected += any(row[4] >= hog.min_score and overlap(row, truth) > 0.5 for row in found)
    assert detected >= 58


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch; a download makes the test fail."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_: pytest.fail("downloads"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def put_weights(cache: Path, name: str) -> Path:
    """Write untrained weights where torchvision keeps the published ones."""
    torch.manual_seed(0)
    path = cache / get_model_weights(name).DEFAULT.url.rpartition("/")[2]
    table = get_model(name, weights=None, weights_backbone=None).state_dict()
    for key, value in table.items():
        if key.endswith("cls_score.bias"):
            value[1] = 5.0  # the bias of person, so that there are boxes to compare
        elif "classification_head.module_list" in key and key.endswith("1.bias"):
            value[1::91] = 5.0  # the same at each anchor
    torch.save(table, path)
    return path


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_networks_agree_with_those_that_torchvision_loads(name: str, cache: Path) -> None:
    put_weights(cache, name)
    detector = open_detector(name)
    pixels = draw_frame(TWO, 18)
    with torch.inference_mode():
        image = torch.from_numpy(pixels).permute(2, 0, 1) / 255
        theirs = get_model(name, weights="DEFAULT").eval()([image])[0]
    people = theirs["labels"] == 1
    truth = tidy(theirs["boxes"][people], theirs["scores"][people], SIZE)
    assert np.allclose(detector(pixels), truth, atol=1e-4)
    assert len(truth)


def test_batch_normalization_has_no_epsilon_where_torchvision_has_none(cache: Path) -> None:
    """With the published ResNet-50 weights torchvision divides by the deviation without an epsilon."""
    put_weights(cache, "fasterrcnn_resnet50_fpn")
    ours: Any = open_detector("fasterrcnn_resnet50_fpn")
    theirs = get_model("fasterrcnn_resnet50_fpn", weights="DEFAULT").eval()
    layers = dict(theirs.named_modules())
    compared = [
        (layer.eps, layers[at].eps) for at, layer in ours._network.named_modules() if hasattr(layer, "running_var")
    ]
    assert len(compared) > 50
    assert all(mine == other == 0.0 for mine, other in compared)


def test_auto_takes_the_best_available_detector(cache: Path) -> None:
    assert open_detector().name == "hog"
    put_weights(cache, "ssdlite320_mobilenet_v3_large")
    assert open_detector().name.startswith("ssdlite320_mobilenet_v3_large ")
    assert set(TORCHVISION[-2:]) == {"ssd300_vgg16", "ssdlite320_mobilenet_v3_large"}


def test_missing_and_wrong_weights_are_refused_in_one_line(cache: Path, tmp_path: Path) -> None:
    name = "ssdlite320_mobilenet_v3_large"
    with pytest.raises(WeightsError, match=r"nothing is downloaded.* ssdlite.*\.pth"):
        open_detector(name)
    wrong = tmp_path / "wrong.pth"
    torch.save({"weight": torch.zeros(3)}, wrong)
    with pytest.raises(WeightsError, match="ssdlite"):
        open_detector(name, wrong)
    torch.save(Path("code"), wrong)  # an object, which would run code if it were loaded
    with pytest.raises(WeightsError, match="plain tensors"):
        open_detector(name, wrong)
    wrong.write_bytes(b"damage")
    with pytest.raises(WeightsError, match="damaged"):
        open_detector(name, wrong)
    with pytest.raises(ConfigError, match="--detector"):
        open_detector("hog", wrong)
