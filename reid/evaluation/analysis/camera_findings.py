"""What is found for a camera, and what follows from it: calibrate it, leave it, or get more crops.

The module scores embeddings made before and after a change; :mod:`reid.evaluation.analysis.camera_report` makes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from reid.evaluation.analysis.breakdown import camera_bias
from reid.evaluation.analysis.intervals import LEVEL, Interval, PairedDifference, paired_difference
from reid.evaluation.answers import Labels
from reid.evaluation.metrics import Metrics
from reid.evaluation.ranks import Float64Array
from reid.evaluation.run import Report, evaluate
from reid.records import Embeddings, IntArray

BEFORE, CALIBRATED, CENTERED = "before", "calibrated", "centered"
CALIBRATE, CENTER, LEAVE, MORE = "calibrate", "center", "leave", "more crops"
UNCLEAR = "not clear"
FEW = 64.0  # independent crops below which an unclear answer is blamed on their number
NAN = float("nan")
Methods = Mapping[str, Embeddings]


@dataclass(frozen=True)
class CameraFinding:
    """What was found for a camera.  NaN and None: not to be had from these data or this network.

    ``crops`` it was measured on, worth ``effective`` independent ones.  ``shift`` from the statistics the network
    uses for it now, ``gap`` to the other cameras together (``layers``: in each norm layer), ``error`` to be expected
    of the measurement: all in deviations of the activations.  ``same_camera``: share of crops whose nearest stranger
    is of the same camera, by method, ``chance`` what it would be by chance; ``eased`` is how much it falls.
    ``gain``: mAP with all cameras changed less mAP with all but this one, over all queries.
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
    eased: Interval | None = None
    gain: Interval | None = None
    verdict: str = LEAVE
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values; null for what is not to be had."""
        return {key: _plain(value) for key, value in asdict(self).items()}


@dataclass(frozen=True, eq=False)
class Scored:
    """A line of scores: metrics by method, and the paired change of average precision and rank-1.

    ``identities`` (Q,) are those of the queries.
    """

    category: str
    direction: str
    metrics: Mapping[str, Metrics]
    precision: PairedDifference
    rank1: PairedDifference
    identities: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Fractions in 0..1."""
        scores = {name: {"mAP": m.mAP, "rank1": m.rank(1)} for name, m in self.metrics.items()}
        changes = {
            name: {**asdict(change.difference), "p_value": change.p_value}
            for name, change in (("mAP", self.precision), ("rank1", self.rank1))
        }
        queries = next(iter(self.metrics.values())).queries
        return {"domain": self.category, "direction": self.direction, "queries": queries, **scores, "change": changes}


def neighbours(
    findings: Sequence[CameraFinding], methods: Methods, labels: Sequence[str], strangers: IntArray
) -> tuple[list[CameraFinding], dict[str, float]]:
    """Fill in ``same_camera``, ``chance`` and ``eased``; also the factor of camera bias by method.

    ``labels`` name the camera of each row, ``strangers`` (N,) numbers what must not be taken for one another.
    The last method is the one that is judged.
    """
    cameras = np.array(labels)
    shared = {name: _shared(embeddings, cameras, strangers) for name, embeddings in methods.items()}
    (first, by_chance), (last, _) = shared[BEFORE], list(shared.values())[-1]
    filled = []
    for finding in findings:
        rows = cameras == finding.camera
        if np.isnan(first[rows]).all():
            filled.append(finding)
            continue
        eased = paired_difference(last[rows], first[rows], strangers[rows], level=_level(len(findings))).difference
        same = {name: float(np.nanmean(values[rows])) for name, (values, _) in shared.items()}
        filled.append(replace(finding, same_camera=same, chance=float(np.nanmean(by_chance[rows])), eased=eased))
    expected = float(np.nansum(by_chance))
    factors = {name: float(np.nansum(values)) / expected if expected else NAN for name, (values, _) in shared.items()}
    return filled, factors


def scored(methods: Methods) -> list[Scored]:
    """Every domain and direction of query and gallery rows by every method; the last is compared with "before"."""
    reports = {name: evaluate(embeddings, protocol="cameras") for name, embeddings in methods.items()}
    lines = []
    for results in zip(*(report.results for report in reports.values()), strict=True):
        metrics = {name: result.metrics for name, result in zip(reports, results, strict=True)}
        before, after = metrics[BEFORE], results[-1].metrics
        who = tuple(sample.identity for sample in results[0].asked)
        lines.append(
            Scored(
                results[0].category,
                results[0].direction,
                metrics,
                paired_difference(before.average_precision, after.average_precision, who),
                paired_difference(before.rank1, after.rank1, who),
                who,
            )
        )
    return lines


def change_of_all(lines: Sequence[Scored]) -> Interval | None:
    """The change of mAP over the queries of all lines together; None without any."""
    if not lines:
        return None
    before, after, who = [], [], []
    for line in lines:
        before.append(line.metrics[BEFORE].average_precision)
        after.append(list(line.metrics.values())[-1].average_precision)
        who += [f"{line.category}/{identity}" for identity in line.identities]
    return paired_difference(np.concatenate(before), np.concatenate(after), who).difference


def gains(
    findings: Sequence[CameraFinding], before: Embeddings, after: Embeddings, labels: Sequence[str]
) -> list[CameraFinding]:
    """Fill in ``gain``: what is lost where a camera alone keeps its embeddings of before."""
    cameras = np.array(labels)
    full, who = _precisions(evaluate(after, protocol="cameras"))
    filled = []
    for finding in findings:
        rows = cameras == finding.camera
        if not rows.any():
            filled.append(finding)
            continue
        vectors = np.where(rows[:, None], before.vectors, after.vectors)
        mixed = Embeddings(after.samples, vectors, f"{after.fingerprint} without {finding.camera}")
        left, _ = _precisions(evaluate(mixed, protocol="cameras"))
        filled.append(replace(finding, gain=paired_difference(left, full, who, level=_level(len(findings))).difference))
    return filled


def judged(finding: CameraFinding, action: str, total: Interval | None) -> CameraFinding:
    """The finding with a verdict: ``action`` ("calibrate", "center"), "leave" or "more crops", and one line why.

    ``total`` is the change of mAP over all queries where all cameras are changed.  What labels say goes before what
    neighbours say; a difference counts where its interval leaves 0 out.
    """
    if np.isnan(finding.effective):
        return replace(finding, verdict=MORE, reason=f"{finding.crops} crops to measure it on")
    verdict, reason = _by_labels(finding, action, total)
    if not verdict:
        verdict, reason = _by_neighbours(finding, action)
    if verdict == LEAVE and reason.startswith(UNCLEAR) and finding.effective < FEW:
        verdict, reason = MORE, f"{reason}; worth {finding.effective:.0f} independent crops only"
    return replace(finding, verdict=verdict, reason=reason)


def _by_labels(finding: CameraFinding, action: str, total: Interval | None) -> tuple[str, str]:
    """Nothing, unless the change of all cameras is clear: a camera left alone among changed ones always suffers."""
    if finding.gain is None or total is None or total.low <= 0 <= total.high:
        return "", ""
    if total.high < 0:
        return LEAVE, f"with all cameras changed mAP of all queries falls by {-100 * total.value:.1f} points"
    if finding.gain.high < 0:
        return LEAVE, f"mAP is {-100 * finding.gain.value:.1f} points higher with this camera left as it is"
    if finding.gain.low > 0:
        return action, f"mAP is {100 * finding.gain.value:.1f} points higher than with this camera left as it is"
    return "", ""


def _by_neighbours(finding: CameraFinding, action: str) -> tuple[str, str]:
    if finding.eased is None:
        return LEAVE, f"{UNCLEAR}: no neighbours to compare"
    before, after = (100 * share for share in (finding.same_camera[BEFORE], list(finding.same_camera.values())[-1]))
    told = f"nearest strangers of the same camera {before:.0f} -> {after:.0f} %, by chance {100 * finding.chance:.0f} %"
    if finding.eased.low > 0 and before > 100 * finding.chance:
        return action, told
    return LEAVE, told if finding.eased.high < 0 else f"{UNCLEAR}: {told}"


def _shared(embeddings: Embeddings, cameras: Labels, strangers: IntArray) -> tuple[Float64Array, Float64Array]:
    """Does the nearest stranger share the camera, and by chance (N,), within each kind of object; NaN without one."""
    kinds = np.array([sample.category for sample in embeddings.samples])
    shared, chance = np.full(len(cameras), np.nan), np.full(len(cameras), np.nan)
    for kind in np.unique(kinds):
        rows = kinds == kind
        if len(np.unique(strangers[rows])) < 2:
            continue
        bias = camera_bias(
            embeddings.vectors[rows], embeddings.vectors[rows],
            query_identities=strangers[rows], gallery_identities=strangers[rows],
            query_cameras=cameras[rows], gallery_cameras=cameras[rows],
        )  # fmt: skip
        shared[rows], chance[rows] = bias.shared, bias.chance
    return shared, chance


def _precisions(report: Report) -> tuple[Float64Array, list[str]]:
    """Average precision of all queries of all results, and who they are of."""
    values = np.concatenate([result.metrics.average_precision for result in report.results])
    return values, [f"{sample.category}/{sample.identity}" for result in report.results for sample in result.asked]


def _level(comparisons: int) -> float:
    """Of every one, so that all intervals hold together at the usual level (Bonferroni)."""
    return 1 - (1 - LEVEL) / max(comparisons, 1)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value
