"""Compare two evaluations if they measured the same thing, and otherwise say why they cannot be compared.

The comparison reads the JSON of reports, so runs of different days and machines can be compared.  Where both hold the
same queries, the difference gets an interval and a p-value from the pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reid.data.protocols.protocol_table import Rule
from reid.errors import DataError
from reid.evaluation.analysis.intervals import PairedDifference, paired_difference
from reid.evaluation.reports.report_json import read_results
from reid.old_names import current_rule, current_rule_text
from reid.retrieval.score_normalization import NONE

# What must be equal for two scores to mean the same, and how an error names it.
SAME = {
    "protocol": "protocol",
    "variant": "variant of the protocol",
    "rule": "rule",
    "settings": "settings of the rule",
    "ties": "tie rule",
    "gallery_source": "gallery",
    "queries": "number of queries",
    "queries_without_match": "number of queries without a right answer",
    "gallery": "number of gallery rows",
}
NAMES = ("domain", "direction", "score_norm", "reranking")
CHANGES = NAMES[2:]  # by which a result differs from the plain one, and may stand in one of the files only
LEAST_P = 0.001  # a table does not show smaller p-values
SCORES = ("rank1", "rank5", "rank10", "mAP", "mINP")


@dataclass(frozen=True)
class ResultPair:
    """The same result in both files; ``paired`` compares the average precision query by query, where it is known."""

    category: str
    direction: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    paired: PairedDifference | None


def compare_files(first: Path, second: Path) -> list[ResultPair]:
    """Pair the results of two files that ``reid evaluate --json`` wrote, plain with plain and re-ranked with re-ranked.

    Normalized and re-ranked results that only one of the files has are left out, see :func:`unpaired_rerankings`.

    Raises:
        DataError: A file cannot be read, or the files measured different things.
    """
    before, after = _results(first), _results(second)
    for field in ("protocol", "variant"):
        names = [[entry[field] for entry in side.values()] for side in (before, after)]
        if not any(name in names[1] for name in names[0]):
            raise DataError(_refusal(first, second, (), SAME[field], names[0][0], names[1][0]))
    different = [key for key in before.keys() ^ after.keys() if not any(key[-len(CHANGES) :])]
    if different or not before.keys() & after.keys():
        only = [" ".join(filter(None, key)) for key in different or before.keys() ^ after.keys()]
        raise DataError(f"{first} and {second} cannot be compared: only one of them has {', '.join(sorted(only))}")
    pairs = []
    for key, entry in before.items():
        if key not in after:
            continue
        other = after[key]
        for field, name in SAME.items():
            if entry.get(field) != other.get(field):
                raise DataError(_refusal(first, second, key, name, entry.get(field), other.get(field)))
        pairs.append(
            ResultPair(entry["domain"], entry["direction"], entry, other, _paired(entry, other, first, second))
        )
    return pairs


def unpaired_rerankings(first: Path, second: Path) -> list[str]:
    """Name the normalized and re-ranked results that only one of the files has, one sentence each."""
    before, after = _results(first), _results(second)
    return [
        f"only {first if key in before else second} has {' '.join(filter(None, key[-len(NAMES) :]))};"
        " it is not compared"
        for key in [*before, *after]
        if any(key[-len(CHANGES) :]) and not (key in before and key in after)
    ]


def comparison_table(pairs: list[ResultPair]) -> str:
    """Write lines of at most 80 columns: percent of the first file, of the second, and the difference."""
    lines = [f"{'':32}{'before':>10}{'after':>10}{'change':>10}"]
    for pair in pairs:
        lines.append(" ".join(filter(None, [pair.category, pair.direction, *(pair.before[name] for name in CHANGES)])))
        for name in SCORES:
            values = [100 * float(entry[name]) for entry in (pair.before, pair.after)]
            lines.append(f"  {name:<30}{values[0]:>10.1f}{values[1]:>10.1f}{values[1] - values[0]:>+10.1f}")
        if pair.paired is not None:
            change = pair.paired.difference
            chance = f"p {pair.paired.p_value:.3f}" if pair.paired.p_value >= LEAST_P else f"p < {LEAST_P}"
            around = f"95 %: {100 * change.low:+.1f} to {100 * change.high:+.1f}"
            lines += [
                f"  mAP {100 * change.value:+.1f} ({around}), {chance}",
                f"  better on {pair.paired.wins:,}, worse on {pair.paired.losses:,} queries",
            ]
    return "\n".join(lines) + "\n"


def comparison_json(pairs: list[ResultPair]) -> dict[str, Any]:
    """Return ``{"pairs": [...]}`` with the scores of both files, their differences and the paired test."""
    entries = []
    for pair in pairs:
        entry: dict[str, Any] = {name: pair.before[name] for name in NAMES}
        entry["score_norm"] = entry["score_norm"] or NONE
        for name in SCORES:
            before, after = float(pair.before[name]), float(pair.after[name])
            entry[name] = {"before": before, "after": after, "change": after - before}
        if pair.paired is not None:
            change = pair.paired.difference
            entry["paired_mAP"] = {
                "change": change.value, "low": change.low, "high": change.high, "level": change.level,
                "p_value": pair.paired.p_value, "wins": pair.paired.wins, "losses": pair.paired.losses,
                "draws": pair.paired.draws,
            }  # fmt: skip
        entries.append(entry)
    return {"pairs": entries}


def _results(path: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    try:
        entries = read_results(path)
        if not entries:
            raise ValueError("no results")
        return {
            (entry["protocol"], *map(str, entry["variant"].values()), *(entry[name] for name in NAMES)): entry
            for entry in map(_checked, entries)
        }
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'{path}: damaged or changed, or not the results of "reid evaluate --json" of this version'
        ) from error


def _checked(entry: dict[str, Any]) -> dict[str, Any]:
    """Check an entry and add the settings of the rule that it is too old to have.

    A missing or unusable value raises the errors that parsing raises.
    """
    if not all(np.isfinite(float(entry[name])) for name in SCORES):
        raise ValueError("a score is no number")
    columns = entry["per_query"]
    values = np.array(columns.get("average_precision", []), dtype=np.float64)  # null becomes NaN
    if columns and not len(values) == len(columns["picture"]) == len(columns["identity"]):
        raise ValueError("columns of different lengths")
    settings = {**Rule().model_dump(), **current_rule(entry["settings"])}
    norm = entry.get("score_norm", NONE)  # version 0.1.0 had none, and null for no re-ranking
    changes = {"score_norm": "" if norm == NONE else norm, "reranking": entry["reranking"] or ""}
    return {**entry, **changes, "rule": current_rule_text(entry["rule"]), "settings": settings}


def _refusal(first: Path, second: Path, result: tuple[str, ...], name: str, one: object, other: object) -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        differing = [key for key in {**one, **other} if one.get(key) != other.get(key)]
        one, other = ({key: side.get(key) for key in differing} for side in (one, other))
    where = " ".join(filter(None, result)) + ": " if result else ""
    return (
        f"{first} and {second} cannot be compared: {where}the {name} differs, {one} and {other};"
        " evaluate both in the same way"
    )


def _paired(before: Mapping[str, Any], after: Mapping[str, Any], first: Path, second: Path) -> PairedDifference | None:
    one, other = (entry.get("per_query", {}) for entry in (before, after))
    if not one or not other:
        return None
    if one["picture"] != other["picture"]:
        raise DataError(f"{first} and {second} cannot be compared: they have different queries of {before['protocol']}")
    values = [np.array(side["average_precision"], dtype=np.float64) for side in (one, other)]  # null becomes NaN
    return paired_difference(values[0], values[1], np.array(one["identity"], dtype=str))
