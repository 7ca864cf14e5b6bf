"""``--score-norm`` of evaluate and search, and the verdicts of a search."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.integration.conftest import Run


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """Forty people of flat colours with noise, in three cameras with tints of their own, and their manifest."""
    random = np.random.default_rng(0)
    lines = ["path,identity,camera,split"]
    for person in range(40):
        colours = random.integers(40, 216, (4, 3))
        for camera, tint in enumerate(([0, 0, 0], [30, 0, -30], [-30, 30, 0])):
            image = np.repeat(colours, 16, axis=0)[:, None].repeat(32, axis=1) + np.array(tint)
            image = image + random.normal(0, 12, image.shape)
            name = f"p{person}_c{camera}.png"
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(tmp_path / name)
            lines.append(f"{name},p{person},c{camera},gallery")
            if camera == 0:
                lines.append(f"{name},p{person},c{camera},query")
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


def test_evaluate_adds_a_normalized_result(reid: Run, crops: Path, plain_weights: Path, tmp_path: Path) -> None:
    common = ("evaluate", "--data", crops, "--weights", plain_weights, "--json", tmp_path / "scores.json")
    code, plain_out, _ = reid(*common)
    plain = json.loads((tmp_path / "scores.json").read_text())["results"]
    code, out, _ = reid(*common, "--score-norm", "snorm", "--rerank", 6, 2, 0.3, "--details")
    both = json.loads((tmp_path / "scores.json").read_text())["results"]
    assert code == 0
    assert [(entry["score_norm"], entry["reranking"]) for entry in plain] == [("none", "")]
    stamp = "k-reciprocal, k1 6, k2 2, lambda 0.3"
    assert [(entry["score_norm"], entry["reranking"]) for entry in both] == [
        ("none", ""), ("snorm", ""), ("none", stamp), ("snorm", stamp),
    ]  # fmt: skip
    assert [both[0][score] for score in ("mAP", "rank1")] == [plain[0][score] for score in ("mAP", "rank1")]
    assert both[1]["score_norm_stamp"].startswith("snorm per camera pair, k 40")
    assert "snorm re-ranked" in out
    assert "snorm" not in plain_out
    assert all(len(line) <= 80 for line in out.splitlines()[1:])


def test_search_ranks_and_judges(reid: Run, crops: Path, plain_weights: Path, tmp_path: Path) -> None:
    gallery = tmp_path / "gallery"
    assert reid("index", "build", "--data", crops, "--weights", plain_weights, "--out", gallery)[0] == 0
    ask = ("search", crops.parent / "p7_c0.png", "--gallery", gallery, "--camera", "c0", "--cross-camera")
    code, out, _ = reid(*ask, "--json")
    answers = json.loads(out)
    assert code == 0
    assert len(answers) == 10
    normalized = [answer["normalized_score"] for answer in answers]
    assert normalized == sorted(normalized, reverse=True)
    for answer in answers:
        assert answer["verdict"] in ("same", "undecided", "other")
        assert 0 <= answer["false_match_rate"] <= answer["false_alarm_rate"] <= 1
    _, out, _ = reid(*ask)
    lines = [line.split("\t") for line in out.splitlines() if "\t" in line]
    assert [line[3] for line in lines] == [answer["verdict"] for answer in answers]
    assert {len(line) for line in lines} == {9}
    _, out, _ = reid(*ask, "--json", "--score-norm", "none")
    plain = json.loads(out)
    assert set(plain[0]) == {"rank", "score", "identity", "camera", "modality", "domain", "path"}
    scores = [answer["score"] for answer in plain]
    assert scores == sorted(scores, reverse=True)
    _, out, _ = reid(*ask, "--json", "--false-match-rate", "0.9")
    assert json.loads(out)[0]["verdict"] == "same"


def test_a_small_gallery_says_so(reid: Run, crops: Path, plain_weights: Path, tmp_path: Path) -> None:
    lines = crops.read_text(encoding="utf-8").splitlines()
    crops.write_text("\n".join(lines[:13]) + "\n", encoding="utf-8")
    gallery = tmp_path / "gallery"
    assert reid("index", "build", "--data", crops, "--weights", plain_weights, "--out", gallery)[0] == 0
    ask = ("search", crops.parent / "p0_c0.png", "--gallery", gallery, "--camera", "c0", "--json")
    code, out, err = reid(*ask, "--score-norm", "csls")
    assert code == 0
    assert "verdict" not in json.loads(out)[0]
    assert "too few crops" in err
    assert "too few crops" not in reid(*ask)[2]


def test_wrong_values_are_usage_errors(reid: Run, crops: Path) -> None:
    assert reid("evaluate", "--data", crops, "--score-norm", "zscore")[0] == 2
    for rate in ("0", "1", "nan", "often"):
        assert reid("search", crops.parent / "p0_c0.png", "--false-match-rate", rate)[0] == 2
