"""Filters: which rows of a gallery an expression such as ``camera = 'door' AND time >= '2024-05-01'`` selects.

Expressions are conditions of SQL over the columns of a gallery. sqlglot parses them and nothing of them is executed:
only comparisons of a column with values, IN, BETWEEN, LIKE, IS NULL, AND, OR and NOT are translated, to the records
of this module. A store that keeps its own rows translates these records further.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from reid.errors import DataError
from reid.retrieval.row_table import RowTable, first_line

BoolArray = npt.NDArray[np.bool_]
Value = str | float

LONGEST = 100_000  # characters of an expression
_EPOCH = datetime(1970, 1, 1)
_MIRRORED = {"=": "=", "<>": "<>", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_FUNCTIONS = {
    "=": "equal", "<>": "not_equal", "<": "less", "<=": "less_equal", ">": "greater", ">=": "greater_equal",
}  # fmt: skip
_HELP = (
    "write a column, a comparison and a value, such as \"camera = 'door' AND time >= '2024-05-31T16:20'\"; known are"
    " =, <>, <, <=, >, >=, IN, BETWEEN, LIKE, IS NULL, AND, OR, NOT"
)


@dataclass(frozen=True)
class ColumnCondition:
    """A comparison of a column with values.

    Args:
        column: The name of the column.
        operator: "=", "<>", "<", "<=", ">", ">=", "in", "like" or "null"; "like" knows % for any text and _ for one
            character, and "null" has no values: it is true where the label or the time is unknown.
        values: One value, or for "in" at least one; a number compares a column of text by its number.
    """

    column: str
    operator: str
    values: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Combination:
    """Filters that are combined.

    Args:
        operator: "and", "or" or "not"; "not" has one part.
        parts: The filters; "and" of none is true, "or" of none is false.
    """

    operator: str
    parts: tuple[Filter, ...]


Filter = ColumnCondition | Combination


def parse_where(text: str) -> Filter:
    """Read an expression.

    Args:
        text: A condition of SQL, such as "camera IN ('a1', 'a2') AND NOT modality = 'infrared'".

    Returns:
        The filter. Whether its columns exist is known when it meets a table.

    Raises:
        DataError: It is no such condition; the message shows which part is not understood.

    Example:
        >>> parse_where("camera = 'door'")
        ColumnCondition(column='camera', operator='=', values=('door',))
    """
    import sqlglot
    from sqlglot import exp

    shown = text if len(text) <= 80 else text[:80] + "..."
    if len(text) > LONGEST:
        raise DataError(f'filter "{shown}": expected at most {LONGEST:,} characters, got {len(text):,}')
    try:
        return _translate(sqlglot.parse_one(text, into=exp.Condition))
    except (sqlglot.errors.SqlglotError, RecursionError) as error:
        raise DataError(f'filter "{shown}": cannot be read ({first_line(error)}); {_HELP}') from error
    except ValueError as error:
        raise DataError(f'filter "{shown}": {error}; {_HELP}') from error


def both(*filters: Filter | None) -> Filter | None:
    """Return the filter that is true where all of some filters are true; None stands for no filter."""
    given = tuple(one for one in filters if one is not None)
    return given[0] if len(given) == 1 else Combination("and", given) if given else None


def rows_where(where: Filter, table: RowTable) -> BoolArray:
    """Say which rows a filter selects.

    Args:
        where: The filter.
        table: The rows.

    Returns:
        (N,) bool. As in SQL, a comparison with an unknown time or number is neither true nor false, and such a row is
        not selected; an unknown label is an empty text.

    Raises:
        DataError: A column or a time is unknown.

    Example:
        >>> from pathlib import Path
        >>> from reid.records import Sample
        >>> samples = [Sample(Path("1.jpg"), "anna", "door"), Sample(Path("2.jpg"), "ben", "hall")]
        >>> rows_where(parse_where("camera IN ('door', 'yard') AND identity LIKE 'a%'"), RowTable.from_samples(samples))
        array([ True, False])
    """
    mask: BoolArray = _evaluate(where, table).fill_null(False).to_numpy(zero_copy_only=False)
    return mask.astype(np.bool_)


def time_of(text: str) -> datetime:
    """Read a time of ISO 8601 as an instant in UTC without a zone; a time without a zone counts as UTC.

    Raises:
        DataError: It is no such time.

    Example:
        >>> time_of("2024-05-31T16:20+02:00").isoformat()
        '2024-05-31T14:20:00'
    """
    try:
        time = datetime.fromisoformat(text)
        return time.replace(tzinfo=None) - (time.utcoffset() or timedelta(0))
    except (ValueError, OverflowError):
        raise DataError(f'time "{text}": expected ISO 8601 such as 2024-05-31T16:20:00') from None


def columns_of(where: Filter) -> set[str]:
    """Return the names of the columns that a filter compares."""
    if isinstance(where, ColumnCondition):
        return {where.column}
    return set().union(*(columns_of(part) for part in where.parts))


def _translate(node: Any) -> Filter:
    """Translate a node of sqlglot; ValueError where it is not one of those that are known."""
    from sqlglot import exp

    name = type(node).__name__
    if isinstance(node, exp.Paren):
        return _translate(node.this)
    if isinstance(node, exp.Not):
        return Combination("not", (_translate(node.this),))
    if isinstance(node, exp.And | exp.Or):
        return Combination(name.lower(), tuple(_translate(part) for part in node.flatten()))
    operators = {"EQ": "=", "NEQ": "<>", "LT": "<", "LTE": "<=", "GT": ">", "GTE": ">=", "Like": "like"}
    if name in operators:
        return _comparison(operators[name], node.this, node.expression)
    if isinstance(node, exp.Is) and isinstance(node.expression, exp.Null):
        return ColumnCondition(_column(node.this), "null")
    if isinstance(node, exp.In) and node.expressions:
        return ColumnCondition(_column(node.this), "in", tuple(_value(one) for one in node.expressions))
    if isinstance(node, exp.Between):
        column, low, high = _column(node.this), _value(node.args["low"]), _value(node.args["high"])
        return Combination("and", (ColumnCondition(column, ">=", (low,)), ColumnCondition(column, "<=", (high,))))
    raise ValueError(f'"{_shown(node)}" is no condition that is known')


def _comparison(operator: str, left: Any, right: Any) -> ColumnCondition:
    from sqlglot import exp

    if isinstance(right, exp.Column) and not isinstance(left, exp.Column) and operator in _MIRRORED:
        return _comparison(_MIRRORED[operator], right, left)
    value = _value(right)
    if operator == "like" and not isinstance(value, str):
        raise ValueError(f'"{_shown(right)}" is no text, which LIKE needs')
    return ColumnCondition(_column(left), operator, (value,))


def _column(node: Any) -> str:
    from sqlglot import exp

    if isinstance(node, exp.Column) and not node.table:
        return str(node.name)
    raise ValueError(f'"{_shown(node)}" is no column')


def _value(node: Any) -> Value:
    """Return the value of a literal; a name in double quotes is text as well, because shells make it convenient."""
    from sqlglot import exp

    if isinstance(node, exp.Literal):
        return str(node.this) if node.is_string else float(node.this)
    if isinstance(node, exp.Neg) and isinstance(node.this, exp.Literal) and not node.this.is_string:
        return -float(node.this.this)
    if isinstance(node, exp.Column) and not node.table and node.this.args.get("quoted"):
        return str(node.name)
    raise ValueError(f'"{_shown(node)}" is no value; text stands in single quotes')


def _shown(node: Any) -> str:
    text = " ".join(str(node).split())
    return text if len(text) <= 60 else text[:60] + "..."


def _evaluate(where: Filter, table: RowTable) -> Any:
    """Return an Arrow array (N,) of bool, with nulls where a comparison is neither true nor false."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(where, ColumnCondition):
        return _compare(where, table)
    if where.operator == "not":
        return pc.invert(_evaluate(where.parts[0], table))
    combine = {"and": pc.and_kleene, "or": pc.or_kleene}[where.operator]
    result = pa.array(np.full(len(table), where.operator == "and"))
    for part in where.parts:
        result = combine(result, _evaluate(part, table))
    return result


def _compare(condition: ColumnCondition, table: RowTable) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    name = next((own for own in table.column_names if own == condition.column), condition.column.lower())
    column = table.column(name)
    if name == "time":
        return _combined(_compare_times(condition, column))
    if pa.types.is_dictionary(column.type):
        codes, words = table.codes(name)
        normal = [unicodedata.normalize("NFC", word) for word in words]
        texts = [unicodedata.normalize("NFC", v) if isinstance(v, str) else v for v in condition.values]
        flags = _compare_texts(condition.operator, texts, pa.array(normal, pa.string()))
        return _combined(pc.take(flags, pa.array(codes)))
    return _combined(_compare_texts(condition.operator, condition.values, column))


def _combined(values: Any) -> Any:
    import pyarrow as pa

    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def _compare_texts(operator: str, values: Sequence[Value], texts: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    if operator == "null":
        return pc.equal(texts, "")
    if operator == "like":
        return pc.match_like(texts, values[0])
    if operator == "in":
        words = [value for value in values if isinstance(value, str)]
        found = pc.is_in(texts, value_set=pa.array(words, pa.string()))
        for number in (value for value in values if not isinstance(value, str)):
            found = pc.or_(found, pc.fill_null(pc.equal(_numbers(texts), number), False))
        return found
    value = values[0]
    return getattr(pc, _FUNCTIONS[operator])(texts if isinstance(value, str) else _numbers(texts), value)


def _numbers(texts: Any) -> Any:
    """Return the numbers that texts write; null where a text is no number."""
    import pyarrow as pa

    def number(text: str) -> float | None:
        try:
            return float(text)
        except ValueError:
            return None

    return pa.array([number(text) for text in texts.to_pylist()], pa.float64())


def _compare_times(condition: ColumnCondition, times: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    if condition.operator == "null":
        return pc.is_null(times)
    if condition.operator == "like" or not all(isinstance(value, str) for value in condition.values):
        raise DataError(f"time {condition.operator}: expected a time in quotes such as '2024-05-31T16:20:00'")
    instants = [time_of(str(value)) for value in condition.values]
    if condition.operator == "in":
        return pc.is_in(times, value_set=pa.array(instants, pa.timestamp("us")))
    return getattr(pc, _FUNCTIONS[condition.operator])(times, pa.scalar(instants[0], pa.timestamp("us")))


def equals(column: str, *values: str) -> Filter | None:
    """Return the filter for rows whose column has one of some values; None where none is given."""
    if not values:
        return None
    return ColumnCondition(column, "=", values) if len(values) == 1 else ColumnCondition(column, "in", values)


def without(column: str, *values: str) -> Filter | None:
    """Return the filter for rows whose column has none of some values; None where none is given."""
    inner = equals(column, *values)
    return None if inner is None else Combination("not", (inner,))


def selection(chosen: Mapping[str, Sequence[str]]) -> Filter | None:
    """Return the filter for rows that have one of the values of every column that is named."""
    return both(*(equals(column, *values) for column, values in chosen.items()))
