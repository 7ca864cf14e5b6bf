"""The corruption benchmark: which rows are corrupted, means and deviations over repeats, and the map by type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reid.data.corruptions.corruption_types import CORRUPTIONS, Corruption, CorruptionPlan
from reid.data.loading import ImageChange, load_batches, load_crops
from reid.data.transforms import EvaluationTransform
from reid.errors import ConfigError, DataError
from reid.evaluation import Report, evaluate
from reid.evaluation.corruption_benchmark import (
    CorruptionBenchmark,
    RecordedPlan,
    map_corruptions,
    mix_rows,
)
from reid.evaluation.reports.corruption_heat_map import corruption_heat_map
from reid.records import Embeddings, Modality, Sample, Split


def embeddings(seed: int, samples: tuple[Sample, ...] = ()) -> Embeddings:
    """Twelve people in two cameras with random vectors."""
    rows = samples or tuple(
        Sample(
            Path(f"{person}{camera}.jpg"), str(person), camera, split=Split.QUERY if camera == "a" else Split.GALLERY
        )
        for person in range(12)
        for camera in "ab"
    )
    vectors = np.random.default_rng(seed).normal(size=(len(rows), 6))
    return Embeddings(rows, (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), "f00d")


def embed_as(found: list[Embeddings]) -> Callable[[ImageChange | None, str], Embeddings]:
    """Return prepared embeddings one after the other, and let the change note a corruption for every image."""
    waiting = iter(found)

    def embed(change: ImageChange | None, title: str) -> Embeddings:
        given = next(waiting)
        for number, sample in enumerate(given.samples):
            if change is not None:
                change(sample, Image.fromarray(np.full((4, 4, 3), number, np.uint8)))
        return given

    return embed


@pytest.mark.parametrize(("role", "wanted"), [("both", [1, 1]), ("query", [1, 0]), ("gallery", [0, 1])])
def test_the_role_says_which_rows_are_corrupted(role: str, wanted: list[int]) -> None:
    clean, changed = embeddings(0), embeddings(1)
    is_query = np.array([sample.split is Split.QUERY for sample in clean.samples])
    found = mix_rows(clean, changed, is_query, role).vectors
    for rows, taken in zip((is_query, ~is_query), wanted, strict=True):
        assert np.array_equal(found[rows], (changed if taken else clean).vectors[rows])


def test_results_are_means_over_the_repeats() -> None:
    clean, drawn = embeddings(0), [embeddings(seed) for seed in (1, 2, 3)]
    report = evaluate(clean)
    found, maps = CorruptionBenchmark("all", repeats=3).add_to(report, clean, embed_as(drawn), evaluate)
    assert [result.corruption for result in found.results] == ["", "both", "query", "gallery"]
    assert found["person", "all"].metrics.mAP == report["person", "all"].metrics.mAP
    both = found.results[1]
    scores = [evaluate(one)["person", "all"].metrics for one in drawn]
    assert both.metrics.mAP == pytest.approx(np.mean([one.mAP for one in scores]))
    assert both.deviations()["mINP"] == pytest.approx(np.std([one.mINP for one in scores], ddof=1))
    assert both.metrics.queries == report.results[0].metrics.queries
    assert not both.is_plain
    assert [one.role for one in maps] == ["both", "query"]
    assert maps[0].queries.sum() == 3 * 12
    weighted = np.nansum(maps[0].mAP * maps[0].queries) / maps[0].queries.sum()
    assert weighted == pytest.approx(both.metrics.mAP)


def test_repeats_have_other_seeds() -> None:
    seeds = []

    def embed(change: ImageChange | None, title: str) -> Embeddings:
        assert isinstance(change, RecordedPlan)
        seeds.append(change.plan.seed)
        return embed_as([clean])(change, title)

    clean = embeddings(0)
    CorruptionBenchmark("both", CorruptionPlan(seed=7), 3).add_to(evaluate(clean), clean, embed, evaluate)
    assert seeds == [7, 8, 9]


def test_a_map_averages_the_queries_of_each_corruption() -> None:
    result = evaluate(embeddings(0))["person", "all"]
    kinds = [Corruption("fog", 1), Corruption("fog", 5), Corruption("rain", 2)]
    drawn = {sample.path: kinds[number % 3] for number, sample in enumerate(result.query_samples)}
    found = map_corruptions("query", [result], [drawn])
    assert found.names == tuple(name for name in CORRUPTIONS if name in ("fog", "rain"))
    wanted = np.mean(result.metrics.average_precision[::3])
    assert found.mAP[found.names.index("fog"), 0] == pytest.approx(wanted)
    assert np.isnan(found.mAP[0]).sum() + np.isnan(found.mAP[1]).sum() == 7
    page = corruption_heat_map(found)
    assert page.count("<tr>") == 3
    assert f">{100 * wanted:.1f}<" in page


def test_leave_one_out_has_one_column() -> None:
    assert CorruptionBenchmark("all").roles(True) == ("both",)
    with pytest.raises(ConfigError):
        CorruptionBenchmark("query").roles(True)


@pytest.mark.parametrize("wrong", [{"role": "some"}, {"repeats": 0}])
def test_wrong_benchmarks_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        CorruptionBenchmark(**wrong)  # type: ignore[arg-type]


def test_other_samples_are_refused() -> None:
    clean = embeddings(0)
    fewer = embeddings(1, clean.samples[:-1])
    with pytest.raises(DataError):
        CorruptionBenchmark("both").add_to(evaluate(clean), clean, embed_as([fewer]), evaluate)


def test_results_that_differ_between_repeats_are_refused() -> None:
    clean, reports = embeddings(0), []

    def score(given: Embeddings) -> Report:
        reports.append(evaluate(given))
        return reports[-1] if len(reports) < 2 else replace(reports[-1], results=reports[-1].results * 2)

    with pytest.raises(DataError):
        CorruptionBenchmark("both", repeats=2).add_to(evaluate(clean), clean, embed_as([clean, clean]), score)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_changed_before_they_are_resized(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "large.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 128, 3)).astype(np.uint8)).save(path)
    transform, sizes = EvaluationTransform(height=32, width=16), []

    def change(sample: Sample, image: Image.Image) -> Image.Image:
        sizes.append(image.size)
        return Image.new("RGB", image.size, (255, 0, 0))

    sample = Sample(path, modality=Modality.VISIBLE)
    for decoder in ("pillow", "draft"):
        (batch,) = load_batches([sample], transform, workers=workers, decoder=decoder, change=change)
        assert batch.images[0, 0].min() > 2  # red everywhere
        assert batch.images[0, 1].max() < -2
    assert sizes == [(128, 256)] * 2
    assert load_crops([sample], transform).float().std() > 1
