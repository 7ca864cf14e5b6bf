"""Visible-infrared sets, animals, classes and data of one's own, from the files to scores worked out by hand.

As in ``test_published_protocols``: P is a right answer, x a wrong one, [ ] is left out; a number behind it is the
image's angle.

The numbers refuse these wrong variants: the other direction or trial, first shots for all, one shot of several, a
location that is left out for its own identity only, unmatched queries in the mean, an image that finds itself.
"""

from __future__ import annotations

import runpy
from fractions import Fraction
from pathlib import Path

import pytest

from helpers import published_layouts
from helpers.placed import DATASETS, G, Q, assert_stamped, only, scored
from helpers.published_archives import animal_metadata as metadata
from reid.data.protocols.data_sets import open_data
from reid.records import Sample, Split

THERMAL = {("2", 0): 10, ("2", 1): 20, ("2", 2): 55, ("3", 0): 15, ("3", 1): 60, ("3", 2): 70}


def test_regdb_in_both_directions(tmp_path: Path) -> None:
    """Trial 1 tests the people in folders 2 and 3: all visible images at 0 and 60; thermal ones as in THERMAL.

    Visible asks, thrice each.  2: P10 x15 P20 P55 x60 x70: AP = (1 + 2/3 + 3/4) / 3 = 29/36, INP 3/4.
    3: P60 x55 P70 x20 P15 x10: AP = (1 + 2/3 + 3/5) / 3 = 34/45, INP 3/5.
    Thermal asks: 10, 20, 60 and 70 are nearer to their own: AP = 1.  55 of person 2 and 15 of person 3 have all three
    of the other in front: AP = (1/4 + 2/5 + 3/6) / 3 = 23/60, fourth.
    """

    def degrees(sample: Sample) -> float:
        person = sample.path.parent.name
        frame = int(sample.path.stem.split("_")[3])
        return {"2": 0, "3": 60}[person] if sample.camera == "visible" else THERMAL[person, frame]

    root = published_layouts.regdb(tmp_path)
    report = scored("regdb:trial=1", root, degrees)
    metrics = only(report)
    assert metrics.mAP == pytest.approx(float((Fraction(29, 36) + Fraction(34, 45)) / 2))
    assert metrics.mINP == pytest.approx(float((Fraction(3, 4) + Fraction(3, 5)) / 2))
    assert (metrics.rank(1), metrics.queries, metrics.gallery, report.results[0].left_out) == (1, 6, 6, 0)
    assert_stamped(report, "protocol regdb, trial 1, direction visible-to-thermal, rule market,")
    back = scored("regdb:trial=1,direction=thermal-to-visible", root, degrees)
    assert back.results[0].direction == "infrared->visible"
    assert only(back).mAP == pytest.approx(float((4 + 2 * Fraction(23, 60)) / 6))
    assert only(back).cmc[:4] == pytest.approx([4 / 6, 4 / 6, 4 / 6, 1])


def test_llcm_visible_asks(tmp_path: Path) -> None:
    """Infrared gallery: camera 1: person 3 at 0, 7 at 5; camera 2: 3 at 20, 7 at 30, all images of one alike.

    3 at 0, camera 1: [P0] x5 P20 x30: AP = 1/2.   Camera 2: P0 x5 [P20] x30: AP = 1.
    7 at 12, camera 1: [P5] x20 x0 P30: AP = 1/3; second of the two people.  Camera 2: P5 x20 x0 [P30]: AP = 1.
    Over images, the right one of 7 from camera 1 is third.
    """
    where = {("0003", "cam1-nir"): 0, ("0007", "cam1-nir"): 5, ("0003", "cam2-nir"): 20, ("0007", "cam2-nir"): 30}
    at_query = {"0003": 0, "0007": 12}

    def degrees(sample: Sample) -> float:
        return at_query[sample.identity] if sample.split is Q else where[sample.identity, sample.camera]

    root = published_layouts.llcm(tmp_path)
    report = scored("llcm:direction=visible-to-infrared", root, degrees)
    assert report.results[0].direction == "visible->infrared"
    assert only(report).mAP == pytest.approx(float((Fraction(1, 2) + 1 + Fraction(1, 3) + 1) / 4))
    assert only(report).cmc[:3].tolist() == [0.5, 1, 1]
    assert (only(report).queries, only(report).gallery, len(report.results[0].trials)) == (8, 4, 10)
    assert_stamped(
        report, "rule market cmc=identity gallery=random trials=10,", "random, 1 per identity and camera, seeds 0 to 9"
    )
    images = scored("llcm:direction=visible-to-infrared,cmc=image", root, degrees)
    assert only(images).cmc[:3].tolist() == [0.5, 0.75, 1]
    assert_stamped(images, "rule market gallery=random trials=10,")


# Of the SYSU-MM01 tree: first images here, second ones where the person asks, 0006 at 0 and 0010 at 90.
SYSU = {
    ("0006", "cam1"): 40, ("0006", "cam2"): 10, ("0006", "cam4"): 50, ("0006", "cam5"): 60,
    ("0010", "cam1"): 20, ("0010", "cam2"): 5, ("0010", "cam4"): 30, ("0010", "cam5"): 90,
}  # fmt: skip


def sysu(sample: Sample) -> float:
    first = sample.split is G and sample.path.stem == "0001"
    return SYSU[sample.identity, sample.camera] if first else {"0006": 0, "0010": 90}[sample.identity]


def test_sysu_mm01_indoor_single_shot(tmp_path: Path) -> None:
    """Cameras 1 and 2; odd trials take first images, even ones second images, which are perfect.

    6, camera 3: [x5] [P10] x20 P40: AP = 1/2.    6, camera 6: x5 P10 x20 P40: AP = (1/2 + 2/4) / 2 = 1/2.
    10, camera 3: x40 P20 [x10] [P5]: AP = 1/2.   10, camera 6: x40 P20 x10 P5: AP = 1/2.
    """
    published_layouts.sysu_permutations(published_layouts.sysu_mm01(tmp_path))
    report = scored("sysu_mm01:search=indoor", tmp_path, sysu)
    assert only(report).mAP == pytest.approx((1 / 2 + 1) / 2)
    assert only(report).cmc[:2].tolist() == [0.5, 1]
    assert (only(report).queries, only(report).gallery) == (8, 4)
    assert_stamped(
        report, "protocol sysu_mm01, search indoor,", "rand_perm_cam.mat (sha256", "first 1 per identity and camera"
    )


def test_sysu_mm01_all_search_multi_shot(tmp_path: Path) -> None:
    """Both images of cameras 1, 2, 4 and 5: the same gallery in every trial.

    6, camera 3: P0 P0 P0 x20 x30 P40 P50 P60 x90 (4): AP = (3 + 4/6 + 5/7 + 6/8) / 6.
    6, camera 6: P0 (4) x5 P10 x20 x30 P40 P50 P60 x90 (5): AP = (4 + 5/6 + 6/9 + 7/10 + 8/11) / 8.
    10, camera 3: P90 (4) x60 x50 x40 P30 P20 x0 (3): AP = (4 + 5/8 + 6/9) / 6.
    10, camera 6: P90 (5) x60 x50 x40 P30 P20 x10 P5 x0 (4): AP = (5 + 6/9 + 7/10 + 8/12) / 8.
    """
    published_layouts.sysu_permutations(published_layouts.sysu_mm01(tmp_path))
    report = scored("sysu_mm01:shots=10", tmp_path, sysu)
    expected = (
        (3 + Fraction(4, 6) + Fraction(5, 7) + Fraction(6, 8)) / 6
        + (4 + Fraction(5, 6) + Fraction(6, 9) + Fraction(7, 10) + Fraction(8, 11)) / 8
        + (4 + Fraction(5, 8) + Fraction(6, 9)) / 6
        + (5 + Fraction(6, 9) + Fraction(7, 10) + Fraction(8, 12)) / 8
    ) / 4
    assert only(report).mAP == pytest.approx(float(expected))
    assert (only(report).rank(1), only(report).gallery) == (1, 16)
    assert_stamped(report, "gallery=permutation shots=10 trials=10", "first 10 per identity and camera")


def test_sysu_mm01_as_agw_draws(tmp_path: Path) -> None:
    """By name, with the galleries of ``galleries.draw_galleries`` and a stamp of its own; all is perfect here."""
    published_layouts.sysu_mm01(tmp_path)  # without the authors' permutations, which that code does not read
    report = scored("sysu_mm01:gallery=random,cmc=image", tmp_path, lambda sample: 90 * (sample.identity == "0010"))
    assert (only(report).mAP, only(report).gallery) == (1, 8)
    assert_stamped(
        report, "ignore=location gallery=random trials=10", "random, 1 per identity and camera, seeds 0 to 9"
    )


def test_wildlife_by_time_and_open(tmp_path: Path) -> None:
    """t1 asks at 0 (image 3), t2 at 90 (5); no camera is known, so only an image itself would be left out.

    Known by then: t1 at 10, 40, 60 (images 0, 1, 2), t2 at 20 (4), t3 at 30 (6).
    t1: P10 x20 x30 P40 P60: AP = (1 + 2/4 + 3/5) / 3 = 7/10.   t2: x60 x40 x30 P20 x10: AP = 1/4.
    Open: one of the two is not in the gallery.  Without t2, t1: P10 x30 P40 P60:
    (1 + 2/3 + 3/4) / 3 = 29/36.  Without t1, t2: x30 P20: 1/2.
    """
    runpy.run_path(str(DATASETS / "wildlife/prepare.py"))["main"](metadata(tmp_path), tmp_path / "out")
    where = {"0": 10, "1": 40, "2": 60, "3": 0, "4": 20, "5": 90, "6": 30}

    def degrees(sample: Sample) -> float:
        return where[sample.path.stem]

    time = only(scored("wildlife", tmp_path / "out", degrees))
    assert time.mAP == pytest.approx(float((Fraction(7, 10) + Fraction(1, 4)) / 2))
    assert (time.rank(1), time.queries, time.gallery) == (0.5, 2, 5)
    report = scored("wildlife:split=open", tmp_path / "out", degrees)
    (unmatched,) = report.results[0].unmatched
    assert only(report).mAP == pytest.approx({"t1": 1 / 2, "t2": 29 / 36}[unmatched.identity])
    assert (only(report).queries, only(report).queries_without_match) == (2, 1)
    assert_stamped(report, "protocol wildlife, split open,", "1 queries without a right answer (in no mean)")


@pytest.mark.parametrize("name", ["cub200", "cars196", "sop"])
def test_classes_are_queries_of_each_other(name: str, tmp_path: Path) -> None:
    """Two test classes of two images: a at 0 and 4, b at 10 and 50; each is a query for the three others.

    a0: P4 x10 x50.  a4: P0 x10 x50.  b10: x4 x0 P50.  b50: P10 x4 x0.  So recall@1, R-precision and MAP@R (one right
    image each) are 3/4, recall@2 too, recall@3 is 1, mAP = (3 + 1/3) / 4.
    """
    root = getattr(published_layouts, name)(tmp_path)
    if name == "cars196":
        runpy.run_path(str(DATASETS / "cars196/prepare.py"))["main"](root)
    tested = [sample for sample in open_data(name, root).samples if sample.split is not Split.TRAIN]
    where = dict(zip(sorted(tested, key=lambda s: (s.identity, str(s.path))), (0, 4, 10, 50), strict=True))
    report = scored(name, root, lambda sample: where[sample])
    metrics = only(report)
    assert metrics.cmc[:3].tolist() == [0.75, 0.75, 1]
    assert (metrics.r_precision, metrics.map_at_r) == (0.75, 0.75)
    assert metrics.mAP == pytest.approx(float((3 + Fraction(1, 3)) / 4))
    assert (metrics.queries, metrics.gallery, report.results[0].left_out) == (4, 4, 4)
    assert_stamped(report, "rule market ignore=itself,", "R-precision 75.0, MAP@R 75.0")


def test_cub200_with_several_right_answers(tmp_path: Path) -> None:
    """a at 0, 20 and 50, b at 10 and 60: R is 2 for a, 1 for b; R-precision, MAP@R and recall@1 differ.

    a0:  x10 P20 P50 x60: 1 of 2; (0 + 1/2) / 2 = 1/4; AP = (1/2 + 2/3) / 2 = 7/12.
    a20: x10 P0 P50 x60: 1 of 2; 1/4; 7/12.    a50: x60 P20 x10 P0: 1 of 2; 1/4; AP = (1/2 + 2/4) / 2 = 1/2.
    b10: x0 x20 x50 P60 (10 away both first): 0; 0; 1/4.        b60: x50 x20 P10 x0: 0; 0; 1/3.
    """
    root = published_layouts.cub200(tmp_path)
    published_layouts.touch(root / "images/101.Some_Bird/Some_Bird_0003_101.jpg")
    where = {("101", "0001"): 0, ("101", "0002"): 20, ("101", "0003"): 50, ("200", "0001"): 10, ("200", "0002"): 60}
    report = scored("cub200", root, lambda sample: where[sample.identity, sample.path.stem.split("_")[2]])
    metrics = only(report)
    assert metrics.r_precision == pytest.approx(3 / 10)
    assert metrics.map_at_r == pytest.approx(3 / 20)
    assert metrics.mAP == pytest.approx(
        float((2 * Fraction(7, 12) + Fraction(1, 2) + Fraction(1, 4) + Fraction(1, 3)) / 5)
    )
    assert metrics.cmc[:4].tolist() == pytest.approx([0, 3 / 5, 4 / 5, 1])


OWN = """path,identity,camera,modality,split
q.jpg,a,yard,visible,query
b1.jpg,b,hall,visible,gallery
a1.jpg,a,hall,visible,gallery
a2.jpg,a,door,visible,gallery
b2.jpg,b,hall,infrared,gallery
a3.jpg,a,hall,infrared,gallery
"""
OWN_DEGREES = {"q": 0, "b1": 10, "a1": 30, "a2": 5, "b2": 40, "a3": 60}


def own(sample: Sample) -> float:
    return OWN_DEGREES[sample.path.stem]


def test_any_manifest(tmp_path: Path) -> None:
    """a asks at 0 in the yard.  Visible gallery: P5 x10 P30: AP = (1 + 2/3) / 2; infrared: x40 P60: AP = 1/2.

    Mixed: P5 x10 P30 x40 P60: AP = (1 + 2/3 + 3/5) / 3.
    Door and yard are one location, of which all is left out: x10 P30 in the visible gallery: AP = 1/2.
    """
    (tmp_path / "manifest.csv").write_text(OWN)
    (tmp_path / "protocol.toml").write_text(
        'name = "mine"\ntitle = "Mine"\nsource = "s"\nlicence = "l"\nobtain = "o"\nmanifest = "manifest.csv"\n'
        'rule = { ignore = "place" }\n[places]\nyard = "door"\n'
    )
    separate = scored(str(tmp_path / "manifest.csv"), tmp_path, own)
    assert [(r.direction, r.metrics.mAP) for r in separate.results] == [
        ("visible->visible", pytest.approx(float((1 + Fraction(2, 3)) / 2))),
        ("visible->infrared", pytest.approx(1 / 2)),
    ]
    mixed = scored("mixed", tmp_path, own)
    assert mixed.results[0].direction == "visible->mixed"
    assert only(mixed).mAP == pytest.approx(float((1 + Fraction(2, 3) + Fraction(3, 5)) / 3))
    assert_stamped(mixed, "protocol mixed, rule market modalities=mixed,")
    declared = scored(str(tmp_path / "protocol.toml"), tmp_path, own)
    assert declared.results[0].metrics.mAP == 1 / 2
    assert_stamped(declared, "protocol mine, rule market ignore=location,")


def test_leave_one_out(tmp_path: Path) -> None:
    """One camera, whose own rows Market would leave out.  a at 0 and 15, b at 10 and 40; each is a query.

    a0: x10 P15 x40: AP = 1/2.  b10: x15 x0 P40: 1/3.  a15: x10 P0 x40: 1/2.  b40: x15 P10 x0: 1/2.
    """
    (tmp_path / "manifest.csv").write_text(
        "path,identity,camera,split\n"
        + "".join(f"{name}.jpg,{name[0]},1,gallery\n" for name in ("a0", "b10", "a15", "b40"))
    )
    report = scored("leave_one_out", tmp_path, lambda sample: int(sample.path.stem[1:]))
    assert only(report).mAP == pytest.approx(float((Fraction(1, 2) * 3 + Fraction(1, 3)) / 4))
    assert (only(report).rank(1), only(report).rank(2), report.results[0].left_out) == (0, 0.75, 4)
    assert_stamped(report, "protocol leave_one_out, rule market ignore=itself,")
