"""Write a comparison of result files as a table of text."""

from __future__ import annotations

from itertools import groupby

from reid.evaluation.analysis.intervals import PairedDifference
from reid.evaluation.reports.result_diff import CHANGES, SCORES, ResultPair
from reid.retrieval.score_normalization import NONE

LEAST_P = 0.001  # a table does not show smaller p-values
WIDTH = 10  # of a column
OTHER_COLUMNS = 5  # beside the first file, so that a line has at most 80 characters


def comparison_table(pairs: list[ResultPair]) -> str:
    """Write the scores in percent and their differences, in lines of at most 80 characters.

    Two files are two columns and a third one with the difference.  Three files and more are numbered in the order in
    which they were given, one column each; below a score stands its difference to the first file.  More than six
    files are divided into several tables, each of which begins with the first file.

    Args:
        pairs: The pairs of :func:`reid.evaluation.reports.result_diff.compare_files`.
    """
    files = {(pair.positions[0], pair.first) for pair in pairs} | {(pair.positions[1], pair.second) for pair in pairs}
    paths = dict(sorted(files))
    if len(paths) <= 2:
        return _table_of_two(pairs)
    lines = [f"{position + 1:>3}  {path}" for position, path in paths.items()]
    others = list(paths)[1:]
    for start in range(0, len(others), OTHER_COLUMNS):
        columns = [0, *others[start : start + OTHER_COLUMNS]]
        lines += ["", " " * 20 + "".join(f"{column + 1:>{WIDTH}}" for column in columns)]
        for _, result in groupby(pairs, key=lambda pair: id(pair.before)):
            lines += _rows_of_result(list(result), columns)
    return "\n".join(lines) + "\n"


def _table_of_two(pairs: list[ResultPair]) -> str:
    lines = [f"{'':32}{'before':>10}{'after':>10}{'change':>10}"]
    for pair in pairs:
        lines.append(_title(pair))
        for name in SCORES:
            values = [100 * float(entry[name]) for entry in (pair.before, pair.after)]
            lines.append(f"  {name:<30}{values[0]:>10.1f}{values[1]:>10.1f}{values[1] - values[0]:>+10.1f}")
        if pair.paired is not None:
            change = pair.paired.difference
            around = f"95 %: {100 * change.low:+.1f} to {100 * change.high:+.1f}"
            lines += [
                f"  mAP {100 * change.value:+.1f} ({around}), p {_p_value(pair.paired)}",
                f"  better on {pair.paired.wins:,}, worse on {pair.paired.losses:,} queries",
            ]
    return "\n".join(lines) + "\n"


def _rows_of_result(pairs: list[ResultPair], columns: list[int]) -> list[str]:
    """Write one result of all files, two lines a score, and the paired test of the mAP where it is known."""
    base = pairs[0].positions[0]
    after = {pair.positions[1]: pair for pair in pairs}
    if not any(column in after for column in columns):
        return []
    lines = [_title(pairs[0]) + (f", differences to {base + 1}" if base else "")]

    def add(name: str, cells: dict[int, str]) -> None:
        lines.append(f"  {name:<18}" + "".join(f"{cells.get(column, ''):>{WIDTH}}" for column in columns))

    for name in SCORES:
        first = 100 * float(pairs[0].before[name])
        values = {position: 100 * float(pair.after[name]) for position, pair in after.items()}
        shown = {position: f"{value:.1f}" for position, value in {base: first, **values}.items()}
        add(name, {**dict.fromkeys(columns, "-"), **shown})
        add("", {position: f"{value - first:+.1f}" for position, value in values.items()})
    paired = {position: pair.paired for position, pair in after.items() if pair.paired is not None}
    if any(column in paired for column in columns):
        add("mAP change, 95 %", {n: f"{100 * one.difference.low:+.1f}" for n, one in paired.items()})
        add("  to", {n: f"{100 * one.difference.high:+.1f}" for n, one in paired.items()})
        add("p", {n: _p_value(one) for n, one in paired.items()})
        add("better on", {n: f"{one.wins:,}" for n, one in paired.items()})
        add("worse on", {n: f"{one.losses:,}" for n, one in paired.items()})
    return lines


def _title(pair: ResultPair) -> str:
    words = (pair.category, pair.direction, *(pair.before[name] for name in CHANGES))
    return " ".join(word for word in words if word not in ("", NONE))


def _p_value(paired: PairedDifference) -> str:
    return f"{paired.p_value:.3f}" if paired.p_value >= LEAST_P else f"< {LEAST_P}"
