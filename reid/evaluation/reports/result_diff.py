"""Compare evaluations if they measured the same thing, and otherwise say why they cannot be compared.

The comparison reads the JSON of reports, so runs of different days and machines can be compared.  Where two hold the
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
from reid.evaluation.results import reranking_method
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
NAMES = ("domain", "direction", "corruption", "score_norm", "reranking")
CHANGES = NAMES[2:]  # by which a result differs from the plain one, and may stand in one of the files only
SCORES = ("rank1", "rank5", "rank10", "mAP", "mINP")

Key = tuple[str, ...]  # protocol, choices of its variant, NAMES
Results = dict[Key, dict[str, Any]]


@dataclass(frozen=True)
class ResultPair:
    """The same result in two files.

    Attributes:
        first: The file of ``before``.
        second: The file of ``after``.
        positions: Where the two stand among the compared files, from 0.
        category: The category of the result.
        direction: The direction of the result, "" where the protocol has none.
        before: The result as the first file has it.
        after: The result as the second file has it.
        paired: The comparison of the average precision query by query, where both files have it.
    """

    first: Path
    second: Path
    positions: tuple[int, int]
    category: str
    direction: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    paired: PairedDifference | None


def compare_files(first: Path, *others: Path) -> list[ResultPair]:
    """Compare the results of files that ``reid evaluate --json`` wrote, plain with plain and re-ranked with re-ranked.

    Every file must have the same plain results.  A normalized or re-ranked result is compared among the files that
    have it; what only one file has is left out, see :func:`unpaired_rerankings`.

    Args:
        first: The file that the others are compared with.
        others: One or more files of the same data and protocol.

    Returns:
        One pair for each result and each file that has it, except the first such file, which is ``before``.

    Raises:
        DataError: A file cannot be read, or the files measured different things.
    """
    files = [(path, _results(path)) for path in (first, *others)]
    for path, results in files[1:]:
        _check_plain(first, files[0][1], path, results)
    pairs = []
    for key in _keys(files):
        base, *rest = [position for position, (_, results) in enumerate(files) if key in results]
        before_path, before = files[base][0], files[base][1][key]
        for position in rest:
            path, after = files[position][0], files[position][1][key]
            for field, name in SAME.items():
                if before.get(field) != after.get(field):
                    raise DataError(_refusal(before_path, path, key, name, before.get(field), after.get(field)))
            paired = _paired(before, after, before_path, path)
            places = (before_path, path, (base, position), before["domain"], before["direction"])
            pairs.append(ResultPair(*places, before, after, paired))
    return pairs


def unpaired_rerankings(first: Path, *others: Path) -> list[str]:
    """Name the normalized and re-ranked results that some of the files lack, one sentence each."""
    files = [(path, _results(path)) for path in (first, *others)]
    lines = []
    for key in _keys(files):
        having = [str(path) for path, results in files if key in results]
        if not _is_plain(key) and len(having) < len(files):
            verb, end = ("has", "not compared") if len(having) == 1 else ("have", f"compared with that of {having[0]}")
            lines.append(f"only {', '.join(having)} {verb} {_label(key[-len(NAMES) :])}; it is {end}")
    return lines


def comparison_json(pairs: list[ResultPair]) -> dict[str, Any]:
    """Return ``{"pairs": [...]}`` with the two files, the scores of both, their differences and the paired test."""
    entries = []
    for pair in pairs:
        entry: dict[str, Any] = {name: pair.before[name] for name in NAMES}
        entry["files"] = [str(pair.first), str(pair.second)]
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


def _keys(files: list[tuple[Path, Results]]) -> list[Key]:
    """Return the keys of the results of all files, in the order of the first file that has each."""
    return list(dict.fromkeys(key for _, results in files for key in results))


def _is_plain(key: Key) -> bool:
    """Return whether the images are not corrupted, and the scores neither normalized nor re-ranked."""
    return key[-len(CHANGES) :] == ("", NONE, "")


def _label(words: tuple[str, ...]) -> str:
    """Join the words of a key, without those that say that nothing was done."""
    return " ".join(word for word in words if word not in ("", NONE))


def _check_plain(first: Path, before: Results, second: Path, after: Results) -> None:
    """Refuse files of different protocols, variants or plain results."""
    for field in ("protocol", "variant"):
        names = [[entry[field] for entry in side.values()] for side in (before, after)]
        if not any(name in names[1] for name in names[0]):
            raise DataError(_refusal(first, second, (), SAME[field], names[0][0], names[1][0]))
    different = [key for key in before.keys() ^ after.keys() if _is_plain(key)]
    if different or not before.keys() & after.keys():
        only = sorted(_label(key) for key in different or before.keys() ^ after.keys())
        raise DataError(f"{first} and {second} cannot be compared: only one of them has {', '.join(only)}")


def _results(path: Path) -> Results:
    try:
        entries = read_results(path)
        if not entries:
            raise ValueError("no results")
        return {_key(entry): entry for entry in map(_checked, entries)}
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
    # version 0.1.0 had no score_norm and no corruption, and null for no re-ranking
    changes = {
        "corruption": entry.get("corruption", ""),
        "score_norm": entry.get("score_norm", NONE) or NONE,
        "reranking": entry["reranking"] or "",
    }
    return {**entry, **changes, "rule": current_rule_text(entry["rule"]), "settings": settings}


def _key(entry: dict[str, Any]) -> Key:
    """Return what pairs a result with that of the other file: its names, and what the user chose of a re-ranking."""
    names = {name: entry[name] for name in NAMES} | {"reranking": reranking_method(entry["reranking"])}
    return (entry["protocol"], *map(str, entry["variant"].values()), *names.values())


def _refusal(first: Path, second: Path, result: Key, name: str, one: object, other: object) -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        differing = [key for key in {**one, **other} if one.get(key) != other.get(key)]
        one, other = ({key: side.get(key) for key in differing} for side in (one, other))
    where = _label(result) + ": " if result else ""
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
