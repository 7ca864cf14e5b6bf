"""Filters in the expressions of Milvus, as far as these mean the same.

Milvus has no unknown values, so a comparison of times also asks whether there is a time, and NOT is moved to the
comparisons. What Milvus cannot say, or says differently in some version, is not translated.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from reid.retrieval.filters import ColumnCondition, Filter, time_of
from reid.retrieval.row_table import LABELS

TIME, HAS_TIME, MORE = "time_us", "has_time", "more"  # fields of a collection: microseconds, whether, further columns
TEXT_FIELDS = ("path", *LABELS)

_OPPOSITE = {"=": "<>", "<>": "=", "<": ">=", "<=": ">", ">": "<=", ">=": "<"}
_SIGNS = {"=": "==", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_EPOCH = datetime(1970, 1, 1)


def milvus_expression(where: Filter, columns: frozenset[str]) -> str | None:
    """Translate a filter.

    Args:
        where: The filter.
        columns: The names of the further columns of the manifest.

    Returns:
        The expression; None where Milvus cannot say the same.

    Raises:
        DataError: A time is none.

    Example:
        >>> from reid.retrieval.filters import parse_where
        >>> milvus_expression(parse_where("NOT (camera = 'door' OR split = 'query')"), frozenset())
        '((camera != "door") and (split != "query"))'
    """
    return _translate(where, columns, negated=False)


def microseconds(time: datetime) -> int:
    """Return the microseconds of a time without a zone since 1970.

    Example:
        >>> microseconds(datetime(1970, 1, 1, 0, 0, 1))
        1000000
    """
    return (time - _EPOCH) // timedelta(microseconds=1)


def quoted(text: str) -> str | None:
    """Return a text as a literal of Milvus; None where versions of Milvus read it differently.

    Example:
        >>> quoted("it's"), quoted("back" + chr(92) + "slash")
        ('"it\\'s"', None)
    """
    if '"' in text or "\\" in text or not text.isprintable():
        return None
    return f'"{text}"'


def _translate(where: Filter, columns: frozenset[str], negated: bool) -> str | None:
    if isinstance(where, ColumnCondition):
        return _comparison(where, columns, negated)
    if where.operator == "not":
        return _translate(where.parts[0], columns, not negated)
    parts = [_translate(part, columns, negated) for part in where.parts]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or not parts:
        return None
    word = {"and": "or", "or": "and"}[where.operator] if negated else where.operator
    return "(" + f" {word} ".join(f"({part})" if not part.startswith("(") else part for part in known) + ")"


def _comparison(condition: ColumnCondition, columns: frozenset[str], negated: bool) -> str | None:
    if condition.column == "time":
        return _time_comparison(condition, negated)
    field = _field(condition.column, columns)
    literals = [quoted(value) if isinstance(value, str) else None for value in condition.values]
    if field is None or None in literals:
        return None
    words = [word for word in literals if word is not None]
    if condition.operator == "null":
        return f'{field} {"!=" if negated else "=="} ""'
    if condition.operator == "in":
        return f"{'not ' if negated else ''}({' or '.join(f'({field} == {word})' for word in words)})"
    if condition.operator == "like":
        return None if field.startswith(MORE) else _prefix(field, str(condition.values[0]), negated)
    operator = _OPPOSITE[condition.operator] if negated else condition.operator
    return f"{field} {_SIGNS[operator]} {words[0]}"


def _field(column: str, columns: frozenset[str]) -> str | None:
    if column == "domain" and column not in columns:
        column = "category"  # the name of version 0.1.0
    if column in TEXT_FIELDS:
        return column
    name = quoted(column)
    return f"{MORE}[{name}]" if column in columns and name is not None else None


def _prefix(field: str, pattern: str, negated: bool) -> str | None:
    """Translate LIKE for patterns such as 'a%', the only ones that all versions of Milvus know."""
    prefix = pattern[:-1]
    if not pattern.endswith("%") or not prefix or "%" in prefix or "_" in prefix:
        return None
    word = quoted(pattern)
    return None if word is None else f"{'not ' if negated else ''}({field} like {word})"


def _time_comparison(condition: ColumnCondition, negated: bool) -> str | None:
    if condition.operator == "null":
        return f"{HAS_TIME} == {'true' if negated else 'false'}"
    if condition.operator == "like" or not all(isinstance(value, str) for value in condition.values):
        return None
    times = [microseconds(time_of(str(value))) for value in condition.values]
    if condition.operator == "in":
        sign, word = ("!=", "and") if negated else ("==", "or")
        inner = f" {word} ".join(f"({TIME} {sign} {time})" for time in times)
        return f"({HAS_TIME} == true and ({inner}))"
    operator = _OPPOSITE[condition.operator] if negated else condition.operator
    return f"({HAS_TIME} == true and {TIME} {_SIGNS[operator]} {times[0]})"
