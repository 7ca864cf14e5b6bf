"""Write docs/results/normalize-auto.md from what benchmarks/normalize_auto.py measured."""

from __future__ import annotations

import statistics
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from reid.training.score_tables import markdown

WIDTH = 120
NONE, AUTO = "none", "auto"
LEVELS = (NONE, "centering", "statistics", "statistics+centering")
COMMAND = (
    "python benchmarks/normalize_auto.py --street STREET --vehicles VEHICLES --characters CHARACTERS --weights FOLDER"
)
ABOUT = """\
`--normalize auto` tries statistics and centering on unlabelled crops and chooses by the share of mutual nearest
neighbours across cameras, measured on crops that the statistics and centers do not come from. This page scores the
choice. A place is a network on a data set. mAP in percent, the mean over all directions (visible and infrared queries
and galleries); labels are used for scoring only. Regret is what a choice lacks against the best of the four
combinations, which nobody knows without labels."""
PLACES = """\
"Vehicles" are two real road cameras with 507 vehicles to measure: scored are 60 other vehicles from one camera to the
other (one query is 1.7 points), and all 567, where every crop is a query and in the gallery. "Street" are synthetic
sites with four visible and two infrared cameras, 160 crops of a camera to measure (vehicles: 60), other people or
vehicles are scored. "Characters" are handwritten; the 20 people who drew them take the part of cameras, with 40 crops
each. The weights `street` and `small-plain` were trained on street-a; the others are public OSNet x0.25, trained on
real people."""


SCORES = """\
mAP with the chosen levels: scores as they are, CSLS, and the symmetric s-norm. Mutual neighbours do not choose between
them, because normalizing scores makes neighbours mutual whether it helps or not; the number of crops does. A camera of
which the gallery has fewer than 32 crops is compared with the crops that the profiles keep of it. This matters for the
60 vehicles, whose gallery has no crop of the camera of the queries: with the gallery alone, CSLS loses there."""


@dataclass(frozen=True)
class Case:
    """One scored list of crops of a place; ``scores`` are mAP in percent by levels and normalization of scores."""

    name: str
    scores: Mapping[str, Mapping[str, float]]
    promised: Mapping[str, list[float]]
    chosen: str
    score_norm: str

    def best(self, norms: tuple[str, ...] = (NONE,)) -> float:
        return max(self.scores[levels][norm] for levels in LEVELS for norm in norms)

    def best_levels(self) -> str:
        return max(LEVELS, key=lambda levels: self.scores[levels][NONE])


def page(results: Mapping[str, Any]) -> str:
    """Write the document."""
    cases = list(all_cases(results))
    parts = [
        "# What choosing the normalization without labels costs",
        ABOUT,
        "## In short",
        "\n".join(summary(cases)),
        "Regret of policies in points of mAP, scores as they are:",
        policies(cases),
        "The same with normalized scores (CSLS per pair of cameras), against the best of all twelve combinations of"
        " levels and\nnormalizations of scores:",
        policies(cases, normalized=True),
        "## Every place",
        PLACES,
        choices(cases),
        "## What was promised, and what came",
        "The share of mutual neighbours that each combination promised, in percent, and the mAP that it reached.",
        promises(cases),
        "## Normalized scores on top",
        SCORES,
        scores_table(cases),
        f"- command: `{COMMAND}`\n- fingerprints of the weights: "
        + ", ".join(dict.fromkeys(result["weights"] for result in results.values())),
    ]
    return "\n\n".join(parts) + "\n"


def all_cases(results: Mapping[str, Any]) -> Iterator[Case]:
    for place, result in results.items():
        counts = Counter(result["levels"].values())
        chosen = " / ".join(f"{levels}" for levels, _ in counts.most_common()) or NONE
        for name, table in result["scores"].items():
            scores = {
                levels: {norm: 100 * values[0] for norm, values in by_norm.items()} for levels, by_norm in table.items()
            }
            title = place.replace("osnet_x0_25_", "")
            title = f"{title}, {name}" if name else title
            yield Case(title, scores, result["promised"], chosen, result["score_norm"] or NONE)


def summary(cases: list[Case]) -> list[str]:
    regret = {case.name: case.best() - case.scores[AUTO][NONE] for case in cases}
    change = {case.name: case.scores[AUTO][NONE] - case.scores[NONE][NONE] for case in cases}
    worst, loss = max(regret, key=lambda n: regret[n]), min(change, key=lambda n: change[n])
    normalized = {case.name: case.scores[AUTO][case.score_norm] - case.scores[NONE][NONE] for case in cases}
    lines = [
        f"Auto is within one point of the best combination in {sum(r <= 1 for r in regret.values())} of {len(cases)}"
        f" cases; its mean regret is {statistics.mean(regret.values()):.1f} points, the largest {regret[worst]:.1f}"
        f" ({worst}).",
        f"Against doing nothing it changes mAP by {statistics.mean(change.values()):+.1f} points on average, from"
        f" {change[loss]:+.1f} ({loss}) to {max(change.values()):+.1f}.",
        f"With the normalization of scores that it recommends, the change is"
        f" {statistics.mean(normalized.values()):+.1f} points on average, at the worst"
        f" {min(normalized.values()):+.1f}.",
    ]
    return [textwrap.fill(f"- {line}", WIDTH, subsequent_indent="  ", break_on_hyphens=False) for line in lines]


def policies(cases: list[Case], *, normalized: bool = False) -> str:
    rows = []
    for levels in (AUTO, *LEVELS):
        lacks = []
        for case in cases:
            norms = tuple(case.scores[NONE]) if normalized else (NONE,)
            own = ("csls" if levels != AUTO else case.score_norm) if normalized else NONE
            lacks.append(case.best(norms) - case.scores[levels][own])
        rows.append(
            [
                levels if levels == AUTO else f"always {levels}",
                f"{statistics.mean(lacks):.1f}",
                f"{max(lacks):.1f}",
                f"{sum(lack <= 1 for lack in lacks)} of {len(lacks)}",
            ]
        )
    return markdown(["policy", "mean regret", "largest regret", "within one point of the best"], rows)


def choices(cases: list[Case]) -> str:
    rows = [
        [
            case.name,
            case.chosen,
            f"{case.scores[NONE][NONE]:.1f}",
            f"{case.scores[AUTO][NONE]:.1f}",
            f"{case.best():.1f} ({case.best_levels()})",
            f"{case.best() - case.scores[AUTO][NONE]:.1f}",
        ]
        for case in cases
    ]
    return markdown(["place", "chosen", "as it is", "auto", "best", "regret"], rows)


def promises(cases: list[Case]) -> str:
    rows = [
        [
            case.name,
            *(
                f"{100 * case.promised[levels][0]:.1f}: {case.scores[levels][NONE]:.1f}"
                if levels in case.promised
                else f"-: {case.scores[levels][NONE]:.1f}"
                for levels in LEVELS
            ),
        ]
        for case in cases
    ]
    return markdown(["place", *LEVELS], rows)


def scores_table(cases: list[Case]) -> str:
    norms = list(cases[0].scores[NONE])
    rows = [[case.name, case.score_norm, *(f"{case.scores[AUTO][norm]:.1f}" for norm in norms)] for case in cases]
    return markdown(["place", "recommended", *norms], rows)
