"""The Market-1501 rule holds for known and unknown labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reid.evaluation.labels import Labels, market_labels
from reid.records import Sample, Split


def sample(path, identity, camera, split=Split.GALLERY):
    return Sample(Path(path), identity, camera, split=split)


def relation(queries, gallery, **how):
    """Write for each pair (Q, G) whether it is "right", "left out" or "wrong" by the labels of market_labels."""
    labels = market_labels(queries, gallery, **how)
    table = np.full((len(queries), len(gallery)), "wrong", dtype="U8")
    for start in range(len(queries)):
        offsets, rows, left_out = labels.same_identity(start, start + 1)
        assert set(offsets.tolist()) <= {0}
        table[start, rows] = np.where(left_out, "left out", "right")
    for query, row in labels.same_files_of(0, len(queries)):
        table[query, row] = "left out"
    if labels.query_locations is not None:
        table[labels.query_locations[:, None] == labels.gallery_locations] = "left out"
    assert labels.count_left_out() == np.count_nonzero(table == "left out")
    scores = np.zeros(table.shape)
    labels.leave_out(scores, 0)
    np.testing.assert_array_equal(scores == -np.inf, table == "left out")
    return table.tolist()


def test_known_labels():
    queries = [sample("q", "a", "1")]
    gallery = [sample("w", "a", "2"), sample("x", "a", "1"), sample("y", "b", "1"), sample("z", "b", "2")]
    assert relation(queries, gallery) == [["right", "left out", "wrong", "wrong"]]


def test_unknown_cameras_are_not_equal_but_the_same_image_is():
    queries = [sample("q", "a", "")]
    gallery = [sample("q", "a", ""), sample("x", "a", ""), sample("y", "a", "1"), sample("z", "b", "")]
    assert relation(queries, gallery) == [["left out", "right", "right", "wrong"]]


def test_the_same_image_is_left_out_even_if_one_row_has_no_camera():
    queries = [sample("q", "a", "1")]
    gallery = [sample("q", "a", ""), sample("x", "a", "2")]
    assert relation(queries, gallery) == [["left out", "right"]]


def test_a_camera_may_be_named_like_an_image():
    assert relation([sample("q", "a", "")], [sample("x", "a", "q")]) == [["right"]]


def test_unknown_identities_match_nobody():
    queries = [sample("q", "", "1"), sample("r", "a", "1")]
    gallery = [sample("w", "", "2"), sample("x", "a", "2")]
    assert relation(queries, gallery) == [["wrong", "wrong"], ["wrong", "right"]]


def test_pairs_of_several_queries_come_sorted_by_query():
    labels = Labels([5, 3, 5], [3, 5, 5, 4], [1, 1, 2], [1, 1, 2, 1])
    offsets, rows, left_out = labels.same_identity(0, 3)
    assert offsets.tolist() == [0, 0, 1, 2, 2]
    assert rows.tolist() == [1, 2, 0, 1, 2]
    assert left_out.tolist() == [True, False, True, False, True]
    offsets, rows, _ = labels.same_identity(2, 3)
    assert (offsets.tolist(), rows.tolist()) == ([0, 0], [1, 2])


def test_cameras_that_share_a_location():
    queries = [sample("q", "a", "3"), sample("r", "a", "6")]
    gallery = [sample("w", "a", "2"), sample("x", "b", "2"), sample("y", "a", "1"), sample("z", "b", "1")]
    one_location = {"3": "2"}
    assert relation(queries, gallery) == [["right", "wrong", "right", "wrong"]] * 2
    assert relation(queries, gallery, locations=one_location) == [
        ["left out", "wrong", "right", "wrong"],
        ["right", "wrong", "right", "wrong"],
    ]
    assert relation(queries, gallery, locations=one_location, ignore="location") == [
        ["left out", "left out", "right", "wrong"],
        ["right", "wrong", "right", "wrong"],
    ]


def test_only_itself_is_left_out():
    rows = [sample("w", "a", "1"), sample("x", "a", "1"), sample("y", "b", "1")]
    assert relation(rows, rows, ignore="itself") == [
        ["left out", "right", "wrong"],
        ["right", "left out", "wrong"],
        ["wrong", "wrong", "left out"],
    ]


@given(
    st.lists(st.tuples(*[st.sampled_from("ab ")] * 2), min_size=1, max_size=6), st.sampled_from(["camera", "location"])
)
def test_pairs_left_out_are_counted(labels, ignore):
    """``count_left_out`` counts what the table shows, with unknown labels among them; ``relation`` asserts it."""
    rows = [sample(f"{i}", identity.strip(), camera.strip()) for i, (identity, camera) in enumerate(labels)]
    relation(rows, rows[::-1], ignore=ignore)


def test_labels_of_some_rows():
    labels = Labels([5, 3], [3, 5, 5], [1, 1], [1, 1, 2], [7, 8], [8, 8, 7])
    some = labels.select(np.array([1]), np.array([0, 2]))
    assert (some.queries, some.gallery, some.count_left_out()) == (1, 2, 1)
    assert labels.select(slice(None), slice(None)).count_left_out() == labels.count_left_out() == 3


def test_the_gallery_by_identity():
    by_identity = Labels(["b", "x"], ["c", "b", "c"], [0, 0], [1, 1, 1]).gallery_by_identity
    assert by_identity.order.tolist() == [1, 0, 2]
    assert by_identity.starts.tolist() == [0, 1]
    assert by_identity.own.tolist() == [0, -1]


def test_the_same_file_under_other_names_is_left_out(tmp_path, monkeypatch):
    """Whatever the cameras are: the same picture answers nothing."""
    (tmp_path / "a/deep").mkdir(parents=True)
    file = tmp_path / "a/1.jpg"
    file.write_bytes(b"1")
    (tmp_path / "a/2.jpg").write_bytes(b"1")  # a copy is another file
    (tmp_path / "link.jpg").symlink_to(file)
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    (tmp_path / "hard.jpg").hardlink_to(file)
    monkeypatch.chdir(tmp_path)
    names = ["a/1.jpg", str(file), "a/deep/../1.jpg", "link.jpg", "linked/1.jpg", "hard.jpg"]
    for camera in ("", "2"):
        gallery = [
            *(sample(name, "a", camera) for name in names),
            sample("a/2.jpg", "a", "3"),
            sample(file, "b", camera),
        ]
        for name in names:
            expected = [["left out"] * len(names) + ["right", "left out"]]
            assert relation([sample(name, "a", "1" if camera else "")], gallery) == expected
            if camera:
                assert relation([sample(name, "a", "1")], gallery, ignore="location") == expected


@given(
    st.lists(st.tuples(st.sampled_from("123"), st.sampled_from("ab "), st.sampled_from("xy ")), min_size=1, max_size=6),
    st.integers(0, 6), st.sampled_from(["camera", "location", "itself"]),
)  # fmt: skip
def test_the_same_file_is_the_query_itself_whoever_it_is_said_to_show(rows, split, ignore):
    """Against a loop over pairs; the wrong variant counts the same file of another or no identity as a wrong answer."""
    samples = [sample(name, identity.strip(), camera.strip()) for name, identity, camera in rows]
    queries, gallery = samples[:split] or samples, samples[split:] or samples
    found = relation(queries, gallery, ignore=ignore)
    for query, relations in zip(queries, found, strict=True):
        for row, what in zip(gallery, relations, strict=True):
            if row.path == query.path:
                assert what == "left out"
    labels = market_labels(queries, gallery, ignore=ignore)
    some = labels.select(np.arange(len(queries))[::-1], np.arange(len(gallery)) % 2 == 0)
    pairs = {
        (len(queries) - 1 - q, g // 2) for q, query in enumerate(queries) for g, row in enumerate(gallery)
        if g % 2 == 0 and query.path == row.path
    }  # fmt: skip
    assert set(map(tuple, some.same_files_of(0, len(queries)).tolist())) == pairs
    for start in range(len(queries)):
        part = some.same_files_of(start, start + 1)
        assert {(start + q, g) for q, g in part.tolist()} == {pair for pair in pairs if pair[0] == start}


def test_files_that_do_not_exist_have_names(tmp_path):
    queries = [sample(tmp_path / "x/../q.jpg", "a", "1"), sample(tmp_path / "r.jpg", "a", "1")]
    gallery = [sample(tmp_path / "q.jpg", "a", "2"), sample(tmp_path / "x/q.jpg", "a", "2")]
    assert relation(queries, gallery) == [["left out", "right"], ["right", "right"]]
    labels = market_labels(queries, gallery)
    assert labels.select(np.array([1]), slice(None)).count_left_out() == 0
    assert labels.select(np.array([0]), slice(None)).count_left_out() == 1
