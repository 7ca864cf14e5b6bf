"""Every published protocol gives the scores worked out by hand, from the authors' files on.

A tree in the authors' layout is read by the protocol's table, each image gets an angle, and the report must have
the numbers derived in the test.  P is a right answer, x a wrong one, [ ] is left out; a number behind it is the
image's angle.  SYSU-MM01 at one shot, LLCM in one direction and VeRi-776 are in ``test_trials`` and ``test_tracks``.

The numbers refuse these wrong variants: junk that is read, distractors that are not, the query's own camera kept, an
image that finds itself, the other folder or list, images of which none is drawn, training people as queries.
"""

from __future__ import annotations

import runpy
from fractions import Fraction
from pathlib import Path

import pytest

from helpers import published_layouts
from helpers.placed import DATASETS, G, Q, assert_stamped, only, scored
from helpers.published_archives import cuhk03_release
from reid.data.protocols.data_sets import open_data
from reid.records import Sample

MARKET = {
    ("0001", "c1"): 1, ("0001", "c2"): 20, ("0001", "c5"): 50, ("0000", "c4"): 5,
    ("0003", "c1"): 89, ("0003", "c2"): 10, ("0003", "c5"): 70, ("0000", "c2"): 60,
}  # fmt: skip


def market(sample: Sample) -> float:
    if sample.split is Q:
        return {"0001": 0, "0003": 90, "0009": 0}[sample.identity]
    return MARKET[sample.identity, sample.camera]


def test_market1501(tmp_path: Path) -> None:
    """Both query people from camera 1; 0000 are distractors, the junk -1 is not read.

    0001 at 0:  [P1] x5 x10 P20 P50 x60 x70 x89: AP = (1/3 + 2/4) / 2 = 5/12, third, INP 2/4.
    0003 at 90: [P89] P70 x60 x50 x20 P10 x5 x1: AP = (1/1 + 2/5) / 2 = 7/10, first, INP 2/5.
    """
    report = scored("market1501", published_layouts.market1501(tmp_path), market)
    metrics = only(report)
    assert metrics.mAP == pytest.approx(float((Fraction(5, 12) + Fraction(7, 10)) / 2))
    assert metrics.mINP == pytest.approx(float((Fraction(2, 4) + Fraction(2, 5)) / 2))
    assert metrics.cmc[:3].tolist() == [0.5, 0.5, 1]
    assert (metrics.queries, metrics.gallery, report.results[0].left_out) == (2, 8, 2)
    assert_stamped(report, "protocol market1501, rule market, ties worst case", "gallery: all gallery rows")


def test_old_evaluators_of_market1501_by_name(tmp_path: Path) -> None:
    """Trapezoids take the mean with the precision just before a right row:

    0001: ((0 + 1/3) / 2 + (1/3 + 2/4) / 2) / 2 = 7/24.  0003: ((1 + 1) / 2 + (1/4 + 2/5) / 2) / 2 = 53/80.
    A third query, 0009, has no right answer: of all queries it is one that scores 0.
    """
    root = published_layouts.market1501(tmp_path)
    published_layouts.write_image(root / "query/0009_c3s1_001051_00.jpg")
    rectangles, trapezoids = (Fraction(5, 12) + Fraction(7, 10)) / 2, (Fraction(7, 24) + Fraction(53, 80)) / 2
    for spec, expected, rank1 in (
        ("market1501", rectangles, Fraction(1, 2)),
        ("market1501:precision=trapezoid", trapezoids, Fraction(1, 2)),
        ("market1501:unmatched=zero", rectangles * 2 / 3, Fraction(1, 3)),
        ("market1501:precision=trapezoid,unmatched=zero", trapezoids * 2 / 3, Fraction(1, 3)),
    ):
        report = scored(spec, root, market)
        assert only(report).mAP == pytest.approx(float(expected))
        assert only(report).rank(1) == pytest.approx(float(rank1))
        assert only(report).queries_without_match == 1
        assert_stamped(report, f"rule {' '.join(['market', *spec.partition(':')[2].replace(',', ' ').split()])}, ties")


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_msmt17(version: str, tmp_path: Path) -> None:
    """0 at 0: x30 P40 x80: AP = 1/2.  2 at 90: P80 x40 P30: AP = (1/1 + 2/3) / 2 = 5/6."""
    if version == "v1":
        published_layouts.msmt17(tmp_path)
    else:
        published_layouts.msmt17(tmp_path, "mask_train_v2", "mask_test_v2", ending="")
    where = {"c15": 0, "c03": 90, "c02": 40, "c04": 30, "c05": 80}
    report = scored(f"msmt17:version={version}", tmp_path, lambda sample: where[sample.camera])
    assert only(report).mAP == pytest.approx(float((Fraction(1, 2) + Fraction(5, 6)) / 2))
    assert only(report).cmc[:2].tolist() == [0.5, 1]
    assert_stamped(report, f"protocol msmt17, version {version}, rule market,")


def test_cuhk03_new_protocol(tmp_path: Path) -> None:
    """Detected: person 4 asks at 0, person 9 at 60; gallery: 4 at 5 (camera 1) and 20, 9 at 10 and 60.

    4, camera 1: [P5] x10 P20 x60: AP = 1/2.    4, camera 2: P5 x10 [P20] x60: AP = 1.
    9, camera 1: P60 x20 [P10] x5: AP = 1.      9, camera 2: [P60] x20 P10 x5: AP = 1/2.
    Labelled, other images: everybody is where the query is, so AP = 1.
    """
    where = {("0004", "c1"): 5, ("0004", "c2"): 20, ("0009", "c1"): 10, ("0009", "c2"): 60}
    at_query = {"0004": 0, "0009": 60}

    def degrees(sample: Sample) -> float:
        perfect = sample.split is Q or "labeled" in sample.path.parts
        return at_query[sample.identity] if perfect else where[sample.identity, sample.camera]

    root = published_layouts.cuhk03_np(tmp_path)
    detected, labelled = (scored(f"cuhk03_np:boxes={boxes}", root, degrees) for boxes in ("detected", "labelled"))
    assert (only(detected).mAP, only(detected).rank(1), detected.results[0].left_out) == (0.75, 0.5, 4)
    assert (only(labelled).mAP, only(labelled).rank(1)) == (1, 1)
    assert_stamped(labelled, "protocol cuhk03_np, boxes labelled, rule market,")


def test_cuhk03_classic(tmp_path: Path) -> None:
    """Test set 3 holds person a (pair 3: two images of the first camera, one of the second) and b (pair 2, likewise).

    First cameras: a at 0 and 0, b at 10 and 30; second cameras: a at 20, b at 45.  Every image is a query for all
    others, its person's own camera is left out; over all images, and the chance that the right image is first if one
    image of each person is drawn:
    a0, twice: x10 P20 x30 x45: AP = 1/2; first unless b10 is drawn: 2/3.
    a20: x10 or x30 (10 away both) before P0 P0 (20 away), x45: AP = (1/3 + 2/4) / 2 = 5/12; first if b45: 1/3.
    b10: x0 x0 x20 P45: AP = 1/4; never first.
    b30: x20 P45 x0 x0: AP = 1/2; first unless a20 is drawn: 2/3.
    b45: P30 x20 P10 x0 x0: AP = (1/1 + 2/3) / 2 = 5/6; first if b30, and if b10 unless a20: 1/2 + 1/2 * 2/3 = 5/6.
    So mAP is 1/2 and rank-1 (2/3 + 2/3 + 1/3 + 0 + 2/3 + 5/6) / 6 = 19/36, drawn 4000 times a query: +- 0.01.
    """
    runpy.run_path(str(DATASETS / "cuhk03/prepare.py"))["main"](
        cuhk03_release(tmp_path / "cuhk-03.mat"), tmp_path / "x"
    )
    where = {"3_001_1_01": 0, "3_001_1_02": 0, "3_001_2_06": 20, "2_002_1_01": 10, "2_002_1_02": 30, "2_002_2_06": 45}
    report = scored("cuhk03:split=3,repeats=4000", tmp_path / "x", lambda sample: where[sample.path.stem])
    metrics = only(report)
    assert metrics.mAP == pytest.approx(0.5)
    assert metrics.rank(1) == pytest.approx(19 / 36, abs=0.01)
    assert metrics.rank(2) == 1  # there are two people
    assert (metrics.queries, metrics.gallery) == (6, 6)
    assert_stamped(report, "protocol cuhk03, boxes detected, split 3, rule market cmc=single-shot repeats=4000,")
    first_paper = scored("cuhk03:split=3,repeats=100", tmp_path / "x", lambda sample: where[sample.path.stem])
    assert_stamped(first_paper, "rule market cmc=single-shot repeats=100,")
    images = scored("cuhk03:split=3,cmc=image", tmp_path / "x", lambda sample: where[sample.path.stem])
    assert only(images).rank(1) == pytest.approx(1 / 6)  # only b45: another number, and stamped as such
    assert_stamped(images, "rule market repeats=10,")


def swapped(position: int, last: int) -> int:
    """Return the position of the gallery image of a query: in every other pair the two neighbours are exchanged."""
    partner = position ^ 1
    return partner if position // 2 % 2 == 0 and partner <= last else position


@pytest.mark.parametrize(
    ("name", "people", "distractors", "second"),
    [("viper", 316, 0, 158), ("prid2011", 100, 549, 50), ("grid", 125, 775, 62), ("ilids", 60, 0, 30)],
)
def test_small_sets_of_pairs(name: str, people: int, distractors: int, second: int, tmp_path: Path) -> None:
    """Test people, in the order of their names, ask in pairs at 0 and 0.4, 1 and 1.4, 2 and 2.4 degrees, and so on.

    Of every other pair (the 1st, 3rd, ...) the gallery images are exchanged: the right one is 0.4 away, the
    partner's at 0, all others at least 0.6: AP = 1/2, second.  Everybody else is right at once: AP = 1.  VIPeR has 158
    pairs, 79 of them changed: 158 queries are second.  PRID 50, of which 25: 50.  GRID 62 and one single person, who is
    right, of which 31: 62.  i-LIDS 30, of which 15: 30.  Distractors stand at 0.2, before the right images of the
    first pair (0.4 away, the partner at 0): AP = 1 / (2 + distractors) for these two.
    """
    root = getattr(published_layouts, name)(tmp_path)
    names = sorted({sample.identity for sample in open_data(name, root).samples if sample.split is Q})
    assert len(names) == people

    def degrees(sample: Sample) -> float:
        if sample.identity not in names:
            return 0.2
        position = names.index(sample.identity)
        if sample.split is G:
            position = swapped(position, people - 1)
        return position // 2 + 0.4 * (position % 2)

    report = scored(name, root, degrees)
    metrics = only(report)
    assert metrics.mAP == pytest.approx(
        float((Fraction(2, 2 + distractors) + Fraction(second - 2, 2) + people - second) / people)
    )
    assert metrics.rank(1) == pytest.approx((people - second) / people)
    assert metrics.rank(2) == pytest.approx((people - 2 * (distractors > 0)) / people)
    assert (metrics.queries, metrics.gallery, metrics.queries_without_match) == (people, people + distractors, 0)
    assert_stamped(report, f"protocol {name}, split 1, rule market,")


def test_occluded_reid(tmp_path: Path) -> None:
    """Whole bodies: 1 at 10 and 40, 2 at 20 and 90, 200 at 30 and 50; each asks with two equal occluded images.

    1 at 0:    P10 x20 x30 P40 x50 x90: AP = (1/1 + 2/4) / 2 = 3/4.
    2 at 66:   x50 P90 x40 x30 P20 x10: AP = (1/2 + 2/5) / 2 = 9/20.
    200 at 46: P50 x40 P30 x20 x10 x90: AP = (1/1 + 2/3) / 2 = 5/6.
    """
    where = {"001_01": 10, "001_02": 40, "002_01": 20, "002_02": 90, "200_01": 30, "200_02": 50}
    at_query = {"001": 0, "002": 66, "200": 46}
    report = scored(
        "occluded_reid",
        published_layouts.occluded_reid(tmp_path),
        lambda sample: at_query[sample.identity] if sample.split is Q else where[sample.path.stem],
    )
    metrics = only(report)
    assert metrics.mAP == pytest.approx(float((Fraction(3, 4) + Fraction(9, 20) + Fraction(5, 6)) / 3))
    assert metrics.rank(1) == pytest.approx(2 / 3)
    assert (metrics.queries, metrics.gallery) == (6, 6)
