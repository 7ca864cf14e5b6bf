"""market_metrics checks its input, and equal rows tie at the edges of a matrix product."""

from __future__ import annotations

import numpy as np
import pytest

from reid.errors import DataError
from reid.evaluation import market_metrics, ranks
from reid.evaluation import score_blocks as module
from reid.evaluation.metrics import NoMatchError

EYE = np.eye(3, dtype=np.float32)


def call(query=EYE[:2], gallery=EYE, **changes):
    labels = {
        "query_identities": ["a", "b"],
        "gallery_identities": ["a", "b", "c"],
        "query_cameras": ["1", "1"],
        "gallery_cameras": ["2", "2", "2"],
    }
    return market_metrics(query, gallery, **{**labels, **changes})


def test_a_perfect_answer():
    metrics = call()
    assert (metrics.mAP, metrics.mINP, metrics.rank(1), metrics.queries_without_match) == (1, 1, 1, 0)
    assert len(metrics.cmc) == 50  # also where the gallery is smaller
    assert (metrics.queries, metrics.gallery) == (2, 3)


def test_queries_without_a_match_are_counted_and_enter_no_mean():
    metrics = call(query_identities=["a", "nobody"])
    assert (metrics.mAP, metrics.cmc[0], metrics.queries_without_match, metrics.queries) == (1, 1, 1, 2)
    assert np.isnan(metrics.average_precision[1])
    assert np.isnan(metrics.inverse_negative_penalty[1])
    assert metrics.first_match.tolist() == [1, 0]


def test_the_same_camera_is_left_out():
    with pytest.raises(NoMatchError, match="2 queries"):
        call(gallery_cameras=["1", "1", "1"])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_float_will_do(dtype):
    assert call(EYE[:2].astype(dtype), EYE.astype(dtype)).mAP == 1


def test_rows_may_be_far_from_contiguous():
    wide = np.zeros((3, 6), np.float32)
    wide[:, ::2] = EYE
    assert call(gallery=wide[:, ::2]).mAP == 1
    assert call(gallery=np.asfortranarray(EYE)).mAP == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": EYE[:0], "query_identities": [], "query_cameras": []}, "query_vectors"),
        ({"gallery": EYE[:0], "gallery_identities": [], "gallery_cameras": []}, "gallery_vectors"),
        ({"query": EYE[0]}, r"query_vectors.*\(3,\)"),
        ({"gallery": EYE.astype(int)}, "gallery_vectors.*int64"),
        ({"gallery": np.eye(3, 4, dtype=np.float32)}, "gallery_vectors 4"),
        ({"gallery": np.where(EYE == 1, np.nan, EYE)}, "gallery_vectors: row 0"),
        ({"query": np.float32([[1, 0, 0], [0, np.inf, 0]])}, "query_vectors: row 1"),
        ({"query_identities": ["a"]}, r"query_identities.*\(2,\)"),
        ({"gallery_cameras": [["2"], ["2"], ["2"]]}, r"gallery_cameras.*\(3, 1\)"),
        ({"gallery_identities": [1, 2, 3]}, "identities.*int64"),
        ({"query_cameras": [0.5, 1.5]}, "query_cameras.*float64"),
        ({"query_identities": np.array(["a", None], object)}, "NoneType, string"),
        ({"max_rank": 0}, "1000000, got 0"),
        ({"block": 0}, "block.*got 0"),
        ({"block": -1}, "block.*got -1"),
    ],
)
def test_bad_input_is_one_clear_line(changes, message):
    with pytest.raises(DataError, match=message) as caught:
        call(**changes)
    assert "\n" not in str(caught.value)


def test_labels_may_be_objects_of_one_type():
    assert call(query_identities=np.array(["a", "b"], object)).mAP == 1
    numbers = np.array([7, np.int64(8)], object)
    assert call(query_identities=numbers, gallery_identities=np.array([7, 8, 9])).mAP == 1


def test_vectors_given_are_left_as_they_were():
    query, gallery = EYE[:2].copy(), EYE.copy()
    call(query, gallery)
    np.testing.assert_array_equal(query, EYE[:2])
    np.testing.assert_array_equal(gallery, EYE)


def test_identical_rows_are_found_and_only_those():
    vectors = np.float32([[1, 0], [0, 1], [1, -0.0], [0, 1], [1, 1e-30], [0.5, 0.5]])
    copies, originals = module._identical_rows(vectors)
    assert dict(zip(copies.tolist(), originals.tolist(), strict=True)) == {2: 0, 3: 1}


def test_a_hash_collision_makes_no_copies(monkeypatch):
    monkeypatch.setattr(module, "_hashes", lambda vectors: np.zeros(len(vectors), np.uint64))
    copies, originals = module._identical_rows(np.float32([[1, 0], [0, 1], [1, 0]]))
    assert (copies.tolist(), originals.tolist()) == ([2], [0])


def test_equal_rows_tie_even_if_the_product_rounds_them_apart(monkeypatch):
    """Some BLAS kernels do so at the edge of a tile; here the second column is made larger on purpose."""
    true_matmul = np.matmul

    def uneven(a, b, out):
        true_matmul(a, b, out=out)
        out[:, 1] = np.nextafter(out[:, 1], np.float32(2))
        return out

    monkeypatch.setattr(module.np, "matmul", uneven)
    metrics = call(EYE[:1], EYE[[0, 0]], query_identities=["a"], gallery_identities=["x", "a"],
                   query_cameras=["1"], gallery_cameras=["2", "2"])  # fmt: skip
    assert metrics.first_match.tolist() == [2]


def test_both_ways_of_counting_agree():
    random = np.random.default_rng(0)
    row = random.standard_normal(1000).astype(np.float32)
    for low in (-4.0, 0.0, 1.0, 2.5, 9.0):  # from nearly all of the row to nothing of it
        thresholds = np.sort(random.uniform(low, low + 1, 5).astype(np.float32))[::-1]
        expected = [int((row >= bar).sum()) for bar in thresholds]
        assert ranks._count_passing(np.greater_equal, row, thresholds, np.empty((3, 1000), np.bool_)) == expected


def test_memory_is_bounded_by_the_block(monkeypatch):
    """A block never holds more than 64 MiB of scores, unless 64 queries do."""
    assert module.block_size(15_913, 4) == 512
    assert module.block_size(82_161, 4) * 82_161 * 4 <= module.BLOCK_BYTES
    assert module.block_size(10_000_000, 4) == 64
