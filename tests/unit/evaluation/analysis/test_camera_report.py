"""Camera reports give verdicts, and equal networks that are evaluated by hand.

The tests refuse these wrong variants: profiles replaced by merging; a gain that is not that of the network with one
camera left as it is; verdicts that put neighbours before labels; centring with one mean for all cameras.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reid.data.manifest import read_manifest
from reid.errors import ConfigError, DataError
from reid.evaluation.analysis.camera_curve import curve_steps, score_curve
from reid.evaluation.analysis.camera_findings import CALIBRATE, LEAVE, MORE, CameraFinding, with_verdict
from reid.evaluation.analysis.camera_report import camera_report, count_images
from reid.evaluation.analysis.drift import pool_statistics
from reid.evaluation.analysis.intervals import Interval
from reid.models.calibration import (
    calibrate_checkpoint,
    can_be_calibrated,
    own_profiles,
    replace_domains,
)
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.models.image_statistics import measure_images
from reid.records import Embeddings, Sample, Split
from reid.retrieval.centering import camera_means, centered

# A network and crops.


@pytest.fixture(scope="module")
def plain(plain_weights: Path) -> Checkpoint:
    return load_checkpoint(plain_weights)


@pytest.fixture(scope="module")
def street(tiny_street: Path) -> list[Sample]:
    return list(read_manifest(tiny_street / "street-b" / "manifest.csv"))


def of(samples: Sequence[Sample], camera: str) -> list[Sample]:
    return [sample for sample in samples if sample.camera == camera]


def test_image_moments_pool_to_the_profile(plain: Checkpoint, street: list[Sample]) -> None:
    profiles = calibrate_checkpoint(plain, street)
    crops = of(street, "b1")
    images = measure_images(plain.with_profiles(profiles), crops, batch_size=7)
    stats = pool_statistics(images)
    parts = dict(zip(images.layers, torch.split(stats.mean, list(images.widths), 1), strict=True))
    row = profiles.domains.index("b1")
    for layer, mean in profiles.mean.items():
        torch.testing.assert_close(parts[layer][0], mean[row], rtol=1e-3, atol=1e-3)
    assert images.vectors.norm(dim=1).allclose(torch.ones(len(crops)), atol=1e-5)
    assert images.thumbnails.norm(dim=1).allclose(torch.ones(len(crops)), atol=1e-5)
    with pytest.raises(DataError, match="one camera"):
        measure_images(plain.with_profiles(profiles), street)
    with pytest.raises(ConfigError, match="statistics"):
        measure_images(plain, crops)


def test_own_statistics_change_nothing(plain: Checkpoint, camera_weights: Path, street: list[Sample]) -> None:
    own = own_profiles(plain, ["b1", "b2"], ("camera",))
    images = torch.randn(4, 3, 64, 32)
    together = plain.with_profiles(own)
    torch.testing.assert_close(together.embed(images, 1), plain.embed(images), rtol=1e-5, atol=1e-6)
    known = load_checkpoint(camera_weights)
    own = own_profiles(known, ["person/a1", "person/b1"], known.domain_fields)
    new = known.with_profiles(own)
    torch.testing.assert_close(new.embed(images, new.domains.index("person/a1")), known.embed(images, 0))


def test_replacing_is_not_merging(plain: Checkpoint, street: list[Sample]) -> None:
    old = calibrate_checkpoint(plain, [*of(street, "b1"), *of(street, "b2")])
    new = calibrate_checkpoint(plain, [*of(street, "b2")[:9], *of(street, "b3")])
    both = replace_domains(old, new)
    assert both.domains == ("b1", "b2", "b3")
    for name, source in (("b1", old), ("b2", new), ("b3", new)):
        one, other = both.select([name]), source.select([name])
        assert one.images == other.images
        assert all(torch.equal(one.mean[layer], other.mean[layer]) for layer in old.mean)
        assert all(torch.equal(one.var[layer], other.var[layer]) for layer in old.mean)
    assert old.merge(new).select(["b2"]).images == (len(of(street, "b2")) + 9,)


def test_a_report_without_labels_and_with(plain: Checkpoint, street: list[Sample]) -> None:
    pool = [replace(sample, identity="") for sample in street if sample.split is Split.TRAIN]
    tested = [sample for sample in street if sample.split is not Split.TRAIN]
    done: list[int] = []
    found = camera_report(plain, pool, tested, progress=done.append)
    assert sum(done) == count_images(pool, tested, ("camera",), True)
    assert [camera.camera for camera in found.cameras] == [f"b{n}" for n in range(1, 7)]
    assert set(found.bias) == {"before", "centered", "calibrated"}
    for camera in found.cameras:
        assert 1 <= camera.effective <= camera.crops == 8
        assert camera.shift > 0
        assert camera.gap == pytest.approx(np.mean(list(camera.layers.values())))
        assert 0 < camera.error < camera.shift
        assert camera.gain is not None
        assert camera.verdict in (CALIBRATE, LEAVE, MORE)
    assert {(line.category, line.direction) for line in found.scores} >= {("person", "visible->visible")}
    assert found.profiles is not None
    images = dict(zip(found.profiles.domains, found.profiles.images, strict=True))
    assert images == {c.camera: c.crops if c.verdict == CALIBRATE else 1 for c in found.cameras}
    assert {"eased", "gain", "same_camera"} <= found.to_json()["cameras"][0].keys(), "the keys of version 0.1.0"
    assert not camera_report(plain, pool).scores
    with pytest.raises(DataError, match="camera is empty"):
        camera_report(plain, [replace(pool[0], camera="")])
    with pytest.raises(DataError, match=r"b1 \(8\)"):
        camera_report(plain, of(pool, "b1"))


def test_the_report_scores_what_evaluate_scores(plain: Checkpoint, street: list[Sample]) -> None:
    """Oracle: the two networks evaluated by hand; and the gain of a camera by embedding it with the other network."""
    from reid.evaluation import evaluate
    from reid.retrieval.embed import embed

    pool = [sample for sample in street if sample.split is Split.TRAIN]
    tested = [s for s in street if s.split is not Split.TRAIN and s.category == "person" and s.camera in ("b1", "b2")]
    found = camera_report(plain, of(pool, "b1") + of(pool, "b2"), tested)
    profiles = calibrate_checkpoint(plain, of(pool, "b1") + of(pool, "b2"))
    after = plain.with_profiles(profiles)
    (line,) = found.scores
    for name, network in (("before", plain), ("calibrated", after)):
        (result,) = evaluate(embed(network, tested)).results
        assert line.metrics[name].mAP == pytest.approx(result.metrics.mAP, abs=1e-6)
    own = own_profiles(plain, ["b1", "b2"], ("camera",))
    without = plain.with_profiles(replace_domains(own, profiles.select(["b2"])))
    (left,) = evaluate(embed(without, tested)).results
    gain = found.cameras[0].gain
    assert gain is not None
    assert gain.value == pytest.approx(line.metrics["calibrated"].mAP - left.metrics.mAP, abs=1e-6)


def finding(**values: object) -> CameraFinding:
    return replace(CameraFinding("c", 100, 90.0), **values)  # type: ignore[arg-type]


UP, DOWN, EVEN = (Interval(value, value - 0.02, value + 0.02) for value in (0.1, -0.1, 0.0))
NEAR = {"same_camera": {"before": 0.8, "calibrated": 0.4}, "chance": 0.3, "decrease": Interval(0.4, 0.3, 0.5)}


@pytest.mark.parametrize(
    ("values", "total", "verdict"),
    [
        (NEAR, None, CALIBRATE),
        (NEAR | {"chance": 0.9}, None, LEAVE),  # it attracted less than by chance before
        (NEAR | {"decrease": EVEN}, None, LEAVE),
        (NEAR | {"decrease": EVEN, "effective": 20.0}, None, MORE),
        (NEAR | {"decrease": DOWN, "effective": 20.0}, None, LEAVE),  # clear enough
        (NEAR | {"gain": UP}, DOWN, LEAVE),  # labels before neighbours
        (NEAR | {"gain": DOWN}, UP, LEAVE),
        (NEAR | {"gain": UP, "decrease": DOWN}, UP, CALIBRATE),
        (NEAR | {"gain": DOWN}, EVEN, CALIBRATE),  # the labels show nothing clear
        (NEAR | {"effective": float("nan")}, UP, MORE),
    ],
)
def test_verdicts(values: dict[str, object], total: Interval | None, verdict: str) -> None:
    found = with_verdict(finding(**values), CALIBRATE, total)
    assert found.verdict == verdict
    assert found.reason


def test_curve(plain: Checkpoint, street: list[Sample]) -> None:
    pool = [sample for sample in street if sample.split is Split.TRAIN and sample.category == "person"]
    tested = [s for s in street if s.split is not Split.TRAIN and s.category == "person" and s.camera in ("b1", "b2")]
    rows = of(pool, "b1") + of(pool, "b2")
    points = score_curve(plain, rows, tested, crops=(2, 4), priors=(16.0,))
    assert [(point.crops, point.prior) for point in points] == curve_steps(6, (2, 4), (16.0,))
    assert curve_steps(6, (2, 4), (16.0,)) == [(0, 0), (2, 0), (4, 0), (6, 0), (2, 16)]
    (line,) = camera_report(plain, rows, tested).scores
    assert points[0].mAP == pytest.approx(line.metrics["before"].mAP, abs=1e-6)
    assert points[3].mAP == pytest.approx(line.metrics["calibrated"].mAP, abs=1e-4)
    with pytest.raises(DataError, match='"query"'):
        score_curve(plain, rows, rows)


class LayerNormNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(3), nn.Linear(3, 8)

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(self.head(self.norm(images.mean((2, 3)))))


def test_a_network_without_batchnorm_is_centered(plain: Checkpoint, street: list[Sample]) -> None:
    torch.manual_seed(0)
    other = replace(plain, network=LayerNormNet().eval())
    assert can_be_calibrated(plain)
    assert not can_be_calibrated(other)
    with pytest.raises(ConfigError, match="reid calibrate --normalize centering"):
        calibrate_checkpoint(other, street)
    pool, tested = ([sample for sample in street if (sample.split is Split.TRAIN) == train] for train in (True, False))
    found = camera_report(other, pool, tested)
    assert found.action == "center"
    assert found.profiles.mean == {}
    assert list(found.scores[0].metrics) == ["before", "centered"]
    assert {camera.verdict for camera in found.cameras} <= {"center", LEAVE, MORE}


def test_centering_undoes_an_offset_of_a_camera() -> None:
    random = np.random.default_rng(0)
    content = random.normal(size=(40, 8)).astype(np.float32)
    offsets = {"a": np.zeros(8), "b": np.full(8, 4.0)}
    samples = tuple(Sample(Path(f"{n}.jpg"), str(n % 20), "ab"[n // 20]) for n in range(40))
    content[20:] = content[:20]
    raw = content + np.stack([offsets[sample.camera] for sample in samples])
    vectors = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)
    before = Embeddings(samples, vectors, "f" * 16)
    means = camera_means(before)
    after = centered(before, means)
    for name in "ab":
        rows = np.array([sample.camera == name for sample in samples])
        expected = vectors[rows] - vectors[rows].mean(0)
        np.testing.assert_allclose(
            after.vectors[rows], expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5
        )

    def rank1(e: Embeddings) -> float:
        return float(np.mean((e.vectors[:20] @ e.vectors[20:].T).argmax(1) == np.arange(20)))

    one = centered(before, dict.fromkeys("ab", vectors.mean(0)))
    assert rank1(after) > max(rank1(before), rank1(one)) + 0.1
    assert after.fingerprint not in (before.fingerprint, one.fingerprint)
    with pytest.raises(DataError, match="camera b"):
        centered(before, {"a": means["a"]})
    with pytest.raises(DataError, match="2 crops"):
        camera_means(before.select(np.array([0])))
