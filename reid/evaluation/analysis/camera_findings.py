"""What is found for a camera, and what follows from it: calibrate it, leave it, or get more crops.

This module scores embeddings from before and after a change; :mod:`reid.evaluation.analysis.camera_report` makes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from reid.evaluation.analysis.breakdown import camera_bias
from reid.evaluation.analysis.intervals import LEVEL, Interval, PairedDifference, paired_difference
from reid.evaluation.labels import LabelArray, Labels
from reid.evaluation.metrics import Metrics
from reid.evaluation.ranks import Float64Array
from reid.evaluation.results import Report
from reid.evaluation.run import evaluate
from reid.records import Embeddings, IntArray

BEFORE, CALIBRATED, CENTERED = "before", "calibrated", "centered"
CALIBRATE, CENTER, LEAVE, MORE = "calibrate", "center", "leave", "more crops"
UNCLEAR = "not clear"
FEW = 64.0  # with fewer independent crops, an unclear answer is blamed on their number
NAN = float("nan")
JSON_KEYS = {"decrease": "eased"}  # fields whose key in JSON is that of version 0.1.0
Methods = Mapping[str, Embeddings]


@dataclass(frozen=True)
class CameraFinding:
    """What was found for a camera.  NaN and None stand for what these data or this network do not give.

    Attributes:
        camera: The camera, or the names of the domain fields joined by "/".
        crops: How many crops were measured.
        effective: How many independent crops they are worth.
        shift: Distance from the statistics that the network uses for the camera now, in deviations of the
            activations.
        gap: Distance from the statistics of all other cameras together, in the same unit.
        error: The error to expect of the measured statistics, in the same unit.
        layers: The gap in each normalization layer.
        same_camera: The share of crops whose nearest crop of another identity is from the same camera, by method.
        chance: What this share would be by chance.
        decrease: How much the share falls from before to after the change.
        gain: mAP over all queries with all cameras changed, minus mAP with all cameras but this one changed.
        verdict: What to do: "calibrate", "center", "leave" or "more crops".
        reason: Why, in one line.
    """

    camera: str
    crops: int
    effective: float = NAN
    shift: float = NAN
    gap: float = NAN
    error: float = NAN
    layers: Mapping[str, float] = field(default_factory=dict)
    same_camera: Mapping[str, float] = field(default_factory=dict)
    chance: float = NAN
    decrease: Interval | None = None
    gain: Interval | None = None
    verdict: str = LEAVE
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON; null for what is not known."""
        return {JSON_KEYS.get(key, key): _plain(value) for key, value in asdict(self).items()}


@dataclass(frozen=True, eq=False)
class MethodScores:
    """The scores of one category and direction by each method.

    ``precision`` and ``rank1`` are the paired changes of average precision and of rank-1.  ``identities`` (Q,) are
    those of the queries.
    """

    category: str
    direction: str
    metrics: Mapping[str, Metrics]
    precision: PairedDifference
    rank1: PairedDifference
    identities: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON; scores are fractions in 0..1."""
        scores = {name: {"mAP": m.mAP, "rank1": m.rank(1)} for name, m in self.metrics.items()}
        changes = {
            name: {**asdict(change.difference), "p_value": change.p_value}
            for name, change in (("mAP", self.precision), ("rank1", self.rank1))
        }
        queries = next(iter(self.metrics.values())).queries
        return {"domain": self.category, "direction": self.direction, "queries": queries, **scores, "change": changes}


def add_neighbours(
    findings: Sequence[CameraFinding], methods: Methods, cameras: Sequence[str], identity_codes: IntArray
) -> tuple[list[CameraFinding], dict[str, float]]:
    """Fill in ``same_camera``, ``chance`` and ``decrease`` of each finding.

    Args:
        findings: The findings of all cameras.
        methods: The embeddings of the same crops by each method; the last method is compared with "before".
        cameras: The camera of each crop, (N,).
        identity_codes: Numbers (N,); crops with different numbers count as different identities.

    Returns:
        The findings, and the factor of the camera bias by method.
    """
    names = np.array(cameras)
    shares = {name: _same_camera_shares(embeddings, names, identity_codes) for name, embeddings in methods.items()}
    (first, by_chance), (last, _) = shares[BEFORE], list(shares.values())[-1]
    filled = []
    for finding in findings:
        rows = names == finding.camera
        if np.isnan(first[rows]).all():
            filled.append(finding)
            continue
        level = _corrected_level(len(findings))
        change = paired_difference(last[rows], first[rows], identity_codes[rows], level=level)
        same = {name: float(np.nanmean(values[rows])) for name, (values, _) in shares.items()}
        chance = float(np.nanmean(by_chance[rows]))
        filled.append(replace(finding, same_camera=same, chance=chance, decrease=change.difference))
    expected = float(np.nansum(by_chance))
    factors = {name: float(np.nansum(values)) / expected if expected else NAN for name, (values, _) in shares.items()}
    return filled, factors


def score_methods(methods: Methods) -> list[MethodScores]:
    """Score every category and direction by every method, and compare the last method with "before"."""
    reports = {name: evaluate(embeddings, protocol="cameras") for name, embeddings in methods.items()}
    scores = []
    for results in zip(*(report.results for report in reports.values()), strict=True):
        metrics = {name: result.metrics for name, result in zip(reports, results, strict=True)}
        before, after = metrics[BEFORE], results[-1].metrics
        identities = tuple(sample.identity for sample in results[0].query_samples)
        scores.append(
            MethodScores(
                results[0].category,
                results[0].direction,
                metrics,
                paired_difference(before.average_precision, after.average_precision, identities),
                paired_difference(before.rank1, after.rank1, identities),
                identities,
            )
        )
    return scores


def change_of_all_queries(scores: Sequence[MethodScores]) -> Interval | None:
    """Compute the change of mAP over the queries of all categories and directions together; None without any."""
    if not scores:
        return None
    before, after, identities = [], [], []
    for one in scores:
        before.append(one.metrics[BEFORE].average_precision)
        after.append(list(one.metrics.values())[-1].average_precision)
        identities += [f"{one.category}/{identity}" for identity in one.identities]
    return paired_difference(np.concatenate(before), np.concatenate(after), identities).difference


def add_gains(
    findings: Sequence[CameraFinding], before: Embeddings, after: Embeddings, cameras: Sequence[str]
) -> list[CameraFinding]:
    """Fill in ``gain``: the mAP that is lost where one camera keeps its embeddings from before the change.

    ``cameras`` (N,) are those of the rows of ``before`` and ``after``.
    """
    names = np.array(cameras)
    full, identities = _average_precisions(evaluate(after, protocol="cameras"))
    filled = []
    for finding in findings:
        rows = names == finding.camera
        if not rows.any():
            filled.append(finding)
            continue
        vectors = np.where(rows[:, None], before.vectors, after.vectors)
        mixed = Embeddings(after.samples, vectors, f"{after.fingerprint} without {finding.camera}")
        without, _ = _average_precisions(evaluate(mixed, protocol="cameras"))
        change = paired_difference(without, full, identities, level=_corrected_level(len(findings)))
        filled.append(replace(finding, gain=change.difference))
    return filled


def with_verdict(finding: CameraFinding, action: str, total: Interval | None) -> CameraFinding:
    """Decide what to do with a camera, and say why in one line.

    What labels show goes before what neighbours show.  A difference counts where its interval does not contain 0.

    Args:
        finding: The finding of the camera.
        action: What a change is called: "calibrate" or "center".
        total: The change of mAP over all queries where all cameras are changed; None without labels.

    Returns:
        The finding with the verdict ``action``, "leave" or "more crops".
    """
    if np.isnan(finding.effective):
        return replace(finding, verdict=MORE, reason=f"{finding.crops} crops to measure it on")
    verdict, reason = _judge_by_labels(finding, action, total)
    if not verdict:
        verdict, reason = _judge_by_neighbours(finding, action)
    if verdict == LEAVE and reason.startswith(UNCLEAR) and finding.effective < FEW:
        verdict, reason = MORE, f"{reason}; worth {finding.effective:.0f} independent crops only"
    return replace(finding, verdict=verdict, reason=reason)


def _judge_by_labels(finding: CameraFinding, action: str, total: Interval | None) -> tuple[str, str]:
    """Decide nothing ("") unless the change of all cameras is clear.

    A single unchanged camera among changed ones always scores worse, which alone proves nothing.
    """
    if finding.gain is None or total is None or total.low <= 0 <= total.high:
        return "", ""
    if total.high < 0:
        return LEAVE, f"with all cameras changed mAP of all queries falls by {-100 * total.value:.1f} points"
    if finding.gain.high < 0:
        return LEAVE, f"mAP is {-100 * finding.gain.value:.1f} points higher with this camera left as it is"
    if finding.gain.low > 0:
        return action, f"mAP is {100 * finding.gain.value:.1f} points higher than with this camera left as it is"
    return "", ""


def _judge_by_neighbours(finding: CameraFinding, action: str) -> tuple[str, str]:
    if finding.decrease is None:
        return LEAVE, f"{UNCLEAR}: no neighbours to compare"
    before, after = (100 * share for share in (finding.same_camera[BEFORE], list(finding.same_camera.values())[-1]))
    shares = (
        f"nearest crop of another identity from the same camera {before:.0f} -> {after:.0f} %,"
        f" by chance {100 * finding.chance:.0f} %"
    )
    if finding.decrease.low > 0 and before > 100 * finding.chance:
        return action, shares
    return LEAVE, shares if finding.decrease.high < 0 else f"{UNCLEAR}: {shares}"


def _same_camera_shares(
    embeddings: Embeddings, cameras: LabelArray, identity_codes: IntArray
) -> tuple[Float64Array, Float64Array]:
    """Find whether the nearest crop of another identity has the crop's camera (N,), and the same by chance (N,).

    Only crops of the same category are compared; NaN where there is no crop of another identity.
    """
    categories = np.array([sample.category for sample in embeddings.samples])
    shared, chance = np.full(len(cameras), np.nan), np.full(len(cameras), np.nan)
    for category in np.unique(categories):
        rows = categories == category
        if len(np.unique(identity_codes[rows])) < 2:
            continue
        labels = Labels(identity_codes[rows], identity_codes[rows], cameras[rows], cameras[rows])
        bias = camera_bias(embeddings.vectors[rows], embeddings.vectors[rows], labels)
        shared[rows], chance[rows] = bias.shared, bias.chance
    return shared, chance


def _average_precisions(report: Report) -> tuple[Float64Array, list[str]]:
    """Return the average precision of all queries of all results, and the identities of these queries."""
    values = np.concatenate([result.metrics.average_precision for result in report.results])
    samples = [sample for result in report.results for sample in result.query_samples]
    return values, [f"{sample.category}/{sample.identity}" for sample in samples]


def _corrected_level(comparisons: int) -> float:
    """Return the level of each interval at which all of them hold together at the usual level (Bonferroni)."""
    return 1 - (1 - LEVEL) / max(comparisons, 1)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value
