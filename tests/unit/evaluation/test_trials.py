"""Trials of published protocols, and their means, have the numbers worked out by hand.

The numbers refuse these wrong variants: the location rule applied only to the query's identity, or not at all; CMC over
images where identities are meant; mAP over identities; one of the ten galleries for all; unmatched queries in the mean;
the single-shot CMC over all images.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from helpers import published_layouts
from helpers.angles import at, embeddings, rows
from reid.data.protocols.data_sets import Scoring, open_data
from reid.data.protocols.protocol_table import Rule
from reid.errors import DataError
from reid.evaluation import Reranking, evaluate
from reid.evaluation.labels import market_labels
from reid.evaluation.ranks import single_shot_ranks
from reid.evaluation.results import mean_of_galleries, mean_report
from reid.evaluation.trial_scores import score_trial
from reid.records import Embeddings, Modality, Sample, Split

Q, G = Split.QUERY, Split.GALLERY

# Degrees of the first image of each test person in each gallery camera of the SYSU-MM01 tree.  Second images
# are perfect: person 6 at 0, person 10 at 90, where the queries are.  Odd trials take first images.
FIRST = {
    ("0006", "cam1"): 40, ("0006", "cam2"): 10, ("0006", "cam4"): 50, ("0006", "cam5"): 60,
    ("0010", "cam1"): 20, ("0010", "cam2"): 5, ("0010", "cam4"): 30, ("0010", "cam5"): 90,
}  # fmt: skip
OWN = {"0006": 0, "0010": 90}


def sysu(root: Path, spec: str = "sysu_mm01") -> tuple[Embeddings, Scoring]:
    if not root.joinpath("exp").is_dir():
        published_layouts.sysu_permutations(published_layouts.sysu_mm01(root))
    data = open_data(spec, root)
    kept = [sample for sample in data.samples if sample.split is not Split.TRAIN]
    degrees = [FIRST[s.identity, s.camera] if s.split is G and s.path.stem == "0001" else OWN[s.identity] for s in kept]
    return Embeddings(tuple(kept), at(degrees), "f00d"), data.scoring


def test_sysu_mm01_all_search_single_shot(tmp_path: Path) -> None:
    """Odd trials, gallery rows by distance to the query, [ ] left out, P the query's person, x another:

    person 6, camera 3 (0 degrees), camera 2 left out: [x5] [P10] x20 x30 P40 P50 P60 x90
        AP = (1/3 + 2/4 + 3/5) / 3 = 43/90; the second identity
    person 6, camera 6: x5 P10 x20 x30 P40 P50 P60 x90
        AP = (1/2 + 2/5 + 3/6 + 4/7) / 4 = 69/140; the second identity
    person 10, camera 3 (90 degrees): P0 x30 x40 x50 P60 P70 [x80] [P85]
        AP = (1/1 + 2/5 + 3/6) / 3 = 19/30; the first identity
    person 10, camera 6: P0 x30 x40 x50 P60 P70 x80 P85
        AP = (1/1 + 2/5 + 3/6 + 4/8) / 4 = 3/5; the first identity
    Even trials are perfect.  Each query stands for two equal ones.
    """
    given, scoring = sysu(tmp_path)
    report = evaluate(given, scoring=scoring, protocol="sysu_mm01")
    (result,) = report.results
    odd = (Fraction(43, 90) + Fraction(69, 140) + Fraction(19, 30) + Fraction(3, 5)) / 4
    assert result.direction == "infrared->visible"
    assert result.metrics.mAP == pytest.approx(float((odd + 1) / 2))
    assert result.metrics.rank(1) == pytest.approx(0.75)  # half the queries in odd trials
    assert result.metrics.rank(2) == pytest.approx(1)
    assert [trial.mAP for trial in result.trials] == pytest.approx([float(odd), 1.0] * 5)
    assert (result.metrics.queries, result.metrics.gallery, result.metrics.queries_without_match) == (8, 8, 0)
    assert result.left_out == 10 * 4 * 2  # trials, queries of camera 3, gallery rows of camera 2
    assert result.gallery_source.startswith("rand_perm_cam.mat (sha256 ")
    assert report.rule == "market ignore=location cmc=identity gallery=permutation trials=10"
    assert result.metrics.average_precision[0] == pytest.approx(float((Fraction(43, 90) + 1) / 2))


def test_sysu_mm01_wrong_variants_score_otherwise(tmp_path: Path) -> None:
    """The same vectors under the rules that popular code mixes up; by hand, odd trials only.

    CMC over images: the right image of person 6 is third for camera 3 and second for camera 6, so rank-2
    is 3/4.  Without the location rule (Market): the first query has x5 P10 x20 x30 P40 P50 P60 too, as camera 6
    has, and the third P0 x x x P P x P: mAP = (69/140 + 3/5) / 2.  Only the person's own rows of the location
    left out: x5 x20 x30 P40 P50 P60: AP = (1/4 + 2/5 + 3/6) / 3 instead of 43/90.
    """
    given, scoring = sysu(tmp_path)
    official = evaluate(given, scoring=scoring).results[0]
    image = evaluate(given, scoring=replace(scoring, rule=scoring.rule.changed({"cmc": "image"}))).results[0]
    assert image.trials[0].rank(2) == pytest.approx(0.75) != official.trials[0].rank(2)
    assert image.metrics.mAP == official.metrics.mAP
    market = evaluate(given, scoring=replace(scoring, locations={})).results[0]
    assert market.trials[0].mAP == pytest.approx(float((Fraction(69, 140) + Fraction(3, 5)) / 2))
    assert market.trials[0].mAP != pytest.approx(official.trials[0].mAP)
    own = evaluate(given, scoring=replace(scoring, rule=scoring.rule.changed({"ignore": "camera"}))).results[0]
    assert own.trials[0].average_precision[0] == pytest.approx(
        float((Fraction(1, 4) + Fraction(2, 5) + Fraction(3, 6)) / 3)
    )


def test_sysu_mm01_indoor_and_multi_shot(tmp_path: Path) -> None:
    """Indoor, both images of cameras 1 and 2: the gallery is the same in all trials, in another order.

    Person 6, camera 3 (camera 2 left out): P0 x20 P40 x90: AP = (1/1 + 2/3) / 2 = 5/6.
    Person 6, camera 6: P0 P0 x5 P10 x20 P40 x90 x90: AP = (1 + 1 + 3/4 + 4/6) / 4 = 41/48.
    Person 10, camera 3: P0 x50 P70 x90: 5/6.  Camera 6: P0 P0 x50 P70 x80 P85 x90 x90: 41/48.
    """
    given, scoring = sysu(tmp_path, "sysu_mm01:search=indoor,shots=10")
    metrics = evaluate(given, scoring=scoring).results[0].metrics
    assert metrics.mAP == pytest.approx(float((Fraction(5, 6) + Fraction(41, 48)) / 2))
    assert (metrics.rank(1), metrics.gallery) == (1, 8)


def test_llcm_leaves_out_the_same_person_in_the_same_camera(tmp_path: Path) -> None:
    """Whichever light: cam1-nir and cam1-vis are one location.  [ ] left out, P the query's person, x the other.

    Rows: camera 1: person 3 at 0, person 7 at 10; camera 2: person 3 at 20, person 7 at 30; all images alike.
    Person 3 asks at 0.   Camera 1: [P0] x10 P20 x30: AP = 1/2.   Camera 2: P0 x10 [P20] x30: AP = 1.
    Person 7 asks at 30.  Camera 1: P30 x20 [P10] x0: AP = 1.     Camera 2: [P30] x20 P10 x0: AP = 1/2.
    """
    data = open_data("llcm", published_layouts.llcm(tmp_path))
    kept = [sample for sample in data.samples if sample.split is not Split.TRAIN]
    where = {("0003", "cam1-vis"): 0, ("0007", "cam1-vis"): 10, ("0003", "cam2-vis"): 20, ("0007", "cam2-vis"): 30}
    degrees = [where[s.identity, s.camera] if s.split is G else {"0003": 0, "0007": 30}[s.identity] for s in kept]
    given = Embeddings(tuple(kept), at(degrees), "f")
    metrics = evaluate(given, scoring=data.scoring).results[0].metrics
    assert metrics.mAP == pytest.approx(0.75)
    assert (metrics.rank(1), metrics.queries, metrics.gallery) == (0.5, 8, 4)
    nobody = evaluate(given, scoring=replace(data.scoring, locations={})).results[0].metrics
    assert nobody.mAP != pytest.approx(0.75)  # two locations: nothing is left out


def test_single_shot_draws_one_image_of_each_identity() -> None:
    """a asks at 0: b has images at 5 and 60, c at 30, a at 20 (and at 1 in the query's camera, left out).

    If b's image at 5 is drawn a is second, else first: rank-1 is 1/2 on average.  Over all images a would
    always be second, and third among images if b had both before it.
    """
    query = embeddings(rows(Q, ("a", "1", 0)))
    gallery = embeddings(rows(G, ("b", "1", 5), ("b", "2", 60), ("c", "2", 30), ("a", "2", 20), ("a", "1", 1)))
    metrics, labels, _ = score_trial(query, gallery, Rule(cmc="single-shot", repeats=4000))
    assert metrics.rank(1) == pytest.approx(0.5, abs=0.04)
    assert metrics.rank(2) == 1
    assert metrics.mAP == 0.5  # over all images: b5 a20
    assert metrics.cmc_over == "single-shot"
    ranks = single_shot_ranks(query.vectors, gallery.vectors, labels, 50)
    assert set(ranks.reshape(-1).tolist()) == {1, 2}
    assert score_trial(query, gallery, Rule())[0].rank(1) == 0  # the image-level CMC is another number


def test_single_shot_agrees_with_a_loop_over_draws() -> None:
    """The mean rank of the right image equals the textbook: draw an image of each identity, sort, look."""
    random = np.random.default_rng(3)
    samples = [Sample(Path(f"{i}.jpg"), "abcd"[i % 4], "12"[i // 12], split=G) for i in range(24)]
    vectors = random.standard_normal((24, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    given = Embeddings(tuple(samples), vectors, "f")
    fast = single_shot_ranks(vectors, vectors, market_labels(samples, samples), 3000).mean(axis=0)
    metrics, *_ = score_trial(given, given, Rule(cmc="single-shot", repeats=20))
    assert metrics.queries_without_match == 0
    for i in range(0, 24, 5):
        ranks = []
        for _ in range(3000):
            best = {}
            for name in "abcd":
                valid = [j for j in range(24) if samples[j].identity == name and not (
                    name == samples[i].identity and samples[j].camera == samples[i].camera)]  # fmt: skip
                best[name] = vectors[i] @ vectors[random.choice(valid)]
            ranks.append(sorted(best, key=best.get, reverse=True).index(samples[i].identity) + 1)
        assert fast[i] == pytest.approx(np.mean(ranks), abs=0.1)


def test_single_shot_leaves_out_locations() -> None:
    """a asks at location 1, where b's only image and one of c's are: b is not in its gallery, and c's far image is.

    The wrong variant, which looks at cameras only, finds b and both images of c before a.
    """
    query = embeddings(rows(Q, ("a", "1", 0)))
    gallery = embeddings(rows(G, ("b", "1", 1), ("c", "1", 2), ("c", "2", 50), ("a", "2", 20), ("a", "1", 0)))
    metrics, labels, _ = score_trial(query, gallery, Rule(cmc="single-shot", ignore="location", repeats=200))
    assert metrics.rank(1) == 1
    assert set(single_shot_ranks(query.vectors, gallery.vectors, labels, 50).reshape(-1).tolist()) == {1}
    assert score_trial(query, gallery, Rule(cmc="single-shot", repeats=200))[0].rank(1) == 0


def test_single_shot_with_locations_agrees_with_a_loop_over_draws() -> None:
    random = np.random.default_rng(4)
    samples = [Sample(Path(f"{i}.jpg"), "abcd"[i % 4], "123"[i // 8], split=G) for i in range(24)]
    vectors = random.standard_normal((24, 5)).astype(np.float32)
    labels = market_labels(samples, samples, ignore="location")
    fast = single_shot_ranks(vectors, vectors, labels, 3000).mean(axis=0)
    for i in range(0, 24, 7):
        ranks = []
        for _ in range(3000):
            best = {}
            for name in "abcd":
                others = [
                    j for j in range(24) if samples[j].camera != samples[i].camera and samples[j].identity == name
                ]
                best[name] = vectors[i] @ vectors[random.choice(others)]
            ranks.append(sorted(best, key=best.get, reverse=True).index(samples[i].identity) + 1)
        assert fast[i] == pytest.approx(np.mean(ranks), abs=0.1)


def test_single_shot_of_unmatched_queries() -> None:
    query = embeddings(rows(Q, ("a", "1", 0), ("z", "1", 0), ("b", "1", 3)))
    gallery = embeddings(rows(G, ("a", "2", 1), ("b", "1", 2), ("c", "2", 9)))
    metrics, labels, _ = score_trial(query, gallery, Rule(cmc="single-shot", repeats=3))
    assert single_shot_ranks(query.vectors, gallery.vectors, labels, 2).tolist() == [[1, 0, 0]] * 2
    assert (metrics.queries_without_match, metrics.rank(1)) == (2, 1)
    counted, *_ = score_trial(query, gallery, Rule(cmc="single-shot", repeats=3, unmatched="zero"))
    assert counted.rank(50) == pytest.approx(1 / 3)


def test_equal_scores_count_as_worse_in_single_shot() -> None:
    """An embedding that maps everything to one point is last, not lucky."""
    query = embeddings(rows(Q, ("a", "1", 0)))
    gallery = embeddings(rows(G, ("a", "2", 0), ("b", "2", 0), ("c", "2", 0)))
    _, labels, _ = score_trial(query, gallery, Rule())
    assert single_shot_ranks(query.vectors, gallery.vectors, labels, 3).tolist() == [[3]] * 3


def test_leave_one_out() -> None:
    """Each of four images is a query for the three others: a0 b10 a15 b40, by hand

    a0: b10 a15 b40 -> AP 1/2; b10: a15 a0 b40 -> 1/3; a15: b10 a0 b40 -> 1/2; b40: a15 b10 a0 -> 1/2.
    With the camera rule nothing would be right, as all cameras are the same.
    """
    given = embeddings(rows(G, ("a", "1", 0), ("b", "1", 10), ("a", "1", 15), ("b", "1", 40)))
    doubled = Embeddings((*given.samples, *given.samples[:2]), given.vectors[[0, 1, 2, 3, 0, 1]], "f")
    for one in (given, doubled):  # an image listed in both splits is one query
        result = evaluate(one, scoring=Scoring(Rule(ignore="itself"))).results[0]
        assert result.metrics.mAP == pytest.approx((1 / 2 + 1 / 3 + 1 / 2 + 1 / 2) / 4)
        assert (result.metrics.queries, result.metrics.gallery, result.left_out) == (4, 4, 4)
        assert result.metrics.rank(1) == 0
    with pytest.raises(DataError, match='"query"'):
        evaluate(given)


def test_a_mixed_gallery() -> None:
    """v asks at 0; right: visible 30, infrared 60; wrong: visible 10, infrared 40: order x10 P30 x40 P60.

    Mixed: AP = (1/2 + 2/4) / 2 = 1/2.  Separate: visible x10 P30 = 1/2, infrared x40 P60 = 1/2, rank-1 0.
    """
    pairs = (
        rows(Q, ("a", "1", 0))
        + rows(G, ("b", "2", 10), ("a", "2", 30))
        + rows(G, ("b", "3", 40), ("a", "3", 60), modality=Modality.INFRARED)
    )
    separate = evaluate(embeddings(pairs))
    assert [r.direction for r in separate.results] == ["visible->visible", "visible->infrared"]
    mixed = evaluate(embeddings(pairs), scoring=Scoring(Rule(modalities="mixed")))
    (result,) = mixed.results
    assert (result.direction, result.metrics.gallery, result.metrics.mAP) == ("visible->mixed", 4, pytest.approx(0.5))
    assert mixed.rule == "market modalities=mixed"


def test_old_evaluators_by_name() -> None:
    """a asks at 0: x10 P20 x30 P40.  Rectangles: (1/2 + 2/4) / 2 = 1/2.  Trapezoids add the precision just
    before: ((0 + 1/2) / 2 + (1/3 + 2/4) / 2) / 2 = 1/3.  z is unmatched: counted as 0 it halves both.
    """
    pairs = rows(Q, ("a", "1", 0), ("z", "1", 0)) + rows(
        G, ("b", "2", 10), ("a", "2", 20), ("b", "2", 30), ("a", "2", 40)
    )
    for changes, expected in (
        ({}, Fraction(1, 2)),
        ({"precision": "trapezoid"}, Fraction(1, 3)),
        ({"unmatched": "zero"}, Fraction(1, 4)),
        ({"precision": "trapezoid", "unmatched": "zero"}, Fraction(1, 6)),
    ):
        report = evaluate(embeddings(pairs), scoring=Scoring(Rule().changed(changes)))
        assert report.results[0].metrics.mAP == pytest.approx(float(expected))
        assert report.rule == " ".join(["market", *(f"{key}={value}" for key, value in changes.items())])


def test_means() -> None:
    """Over galleries queries stay, over splits they add up; scores are means of the trials, not of the queries."""
    one = score_trial(embeddings(rows(Q, ("a", "1", 0), ("b", "1", 0))), embeddings(
        rows(G, ("a", "2", 5), ("b", "2", 9))), Rule())[0]  # fmt: skip
    two = score_trial(embeddings(rows(Q, ("a", "1", 0), ("b", "1", 0))), embeddings(
        rows(G, ("a", "2", 9), ("c", "2", 5))), Rule())[0]  # fmt: skip
    assert (one.mAP, two.mAP) == (0.75, 0.5)
    both = mean_of_galleries([one, two])
    assert (both.mAP, both.rank(1), both.queries, both.queries_without_match) == (0.625, 0.25, 2, 0)
    assert both.average_precision.tolist() == [0.75, 0.5]
    assert both.first_match.tolist() == [1, 2]
    assert mean_of_galleries([two]) is two
    nowhere = mean_of_galleries([two, two])
    assert np.isnan(nowhere.average_precision[1])
    assert nowhere.queries_without_match == 1


def test_mean_of_splits() -> None:
    """Splits of one and of three queries weigh the same: the mean is that of the splits."""
    good = evaluate(embeddings(rows(Q, ("a", "1", 0)) + rows(G, ("a", "2", 5), ("b", "2", 9))), protocol="p")
    bad = evaluate(
        embeddings(rows(Q, *(("a", "1", d) for d in (0, 1, 2))) + rows(G, ("a", "2", 9), ("b", "2", 5))), protocol="p"
    )
    mean = mean_report([good, bad], {"split": "mean of all"})
    (result,) = mean.results
    assert (result.metrics.mAP, result.metrics.rank(1)) == (0.75, 0.5)
    assert (result.metrics.queries, result.metrics.gallery, len(result.trials)) == (4, 4, 2)
    assert mean.variant == {"split": "mean of all"}
    other = evaluate(embeddings(rows(Q, ("a", "1", 0)) + rows(G, ("a", "2", 5), modality=Modality.INFRARED)))
    with pytest.raises(DataError, match=r"^p:"):
        mean_report([good, other], {})


def test_reranking_adds_a_result() -> None:
    """Both stand in the report; protocols without a gallery outside of the queries refuse."""
    pairs = rows(Q, ("a", "1", 0), ("b", "1", 40)) + rows(
        G, ("b", "2", 8), ("a", "2", 10), ("a", "3", 12), ("b", "3", 45)
    )
    plain, changed = evaluate(embeddings(pairs), reranking=Reranking((2, 1, 0.0))).results
    assert (plain.reranking, changed.reranking) == ("", "k-reciprocal, k1 2, k2 1, lambda 0")
    assert plain.metrics.mAP == evaluate(embeddings(pairs)).results[0].metrics.mAP
    same = evaluate(embeddings(pairs), reranking=Reranking((2, 1, 1.0))).results[1]
    assert same.metrics.mAP == pytest.approx(plain.metrics.mAP)  # lambda 1 is the plain distance
    expanded = evaluate(embeddings(pairs), reranking=Reranking(neighbours=1)).results[1]
    assert expanded.reranking == "average query expansion over 1"
    for rule in (Rule(ignore="itself"), Rule(cmc="single-shot")):
        with pytest.raises(DataError, match="re-ranking"):
            evaluate(embeddings(pairs), scoring=Scoring(rule), reranking=Reranking((2, 1, 0.3)))


def test_memory_changes_no_number() -> None:
    random = np.random.default_rng(0)
    pairs = [
        (Sample(Path(f"{i}.jpg"), "abcdefg"[i % 7], "123"[i % 3], split=Q if i % 4 == 0 else G), random.uniform(0, 180))
        for i in range(400)
    ]
    wide, narrow = (evaluate(embeddings(pairs), memory=memory).results[0].metrics for memory in (None, 2000))
    assert wide.average_precision.tolist() == narrow.average_precision.tolist()
    assert wide.cmc.tolist() == narrow.cmc.tolist()
