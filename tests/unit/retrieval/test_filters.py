"""Filters: expressions select the rows that a plain loop selects, and nothing but conditions is accepted."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reid.errors import DataError
from reid.records import Modality, Sample
from reid.retrieval.filters import (
    ColumnCondition,
    Combination,
    Filter,
    both,
    equals,
    parse_where,
    rows_where,
    time_of,
    without,
)
from reid.retrieval.row_table import RowTable

WORDS = ["", "a", "b", "Zo\u00eb", "x'y"]
TIMES = [
    None,
    datetime(2024, 5, 1),
    datetime(2024, 5, 2, tzinfo=UTC),
    datetime(2024, 5, 2, tzinfo=timezone(timedelta(hours=5))),
]
SAMPLES = [
    Sample(
        Path(f"crops/{i}.jpg"), WORDS[i % 5], WORDS[(i // 2) % 5], list(Modality)[i % 2], time=TIMES[i % 4],
        track=str(i),
    )
    for i in range(40)
]  # fmt: skip
HEIGHTS: list[str | None] = [None if i % 6 == 0 else "tall" if i % 6 == 1 else str(i * 1.5) for i in range(40)]
TABLE = RowTable.from_samples(SAMPLES, more={"height": HEIGHTS})


def instant(sample: Sample) -> datetime | None:
    if sample.time is None:
        return None
    return sample.time.replace(tzinfo=None) - (sample.time.utcoffset() or timedelta(0))


def height(row: int) -> float | None:
    try:
        return float(HEIGHTS[row] or "")
    except ValueError:
        return None


CASES: dict[str, Callable[[int], bool]] = {
    "camera = 'a'": lambda i: SAMPLES[i].camera == "a",
    "camera <> 'a'": lambda i: SAMPLES[i].camera != "a",
    "'a' != camera": lambda i: SAMPLES[i].camera != "a",
    "identity = 'Zoe\u0308'": lambda i: SAMPLES[i].identity == "Zo\u00eb",
    "identity = 'x''y'": lambda i: SAMPLES[i].identity == "x'y",
    'identity == "b"': lambda i: SAMPLES[i].identity == "b",
    "identity IN ('a', 'b') AND NOT camera IN ('b')": lambda i: (
        SAMPLES[i].identity in ("a", "b") and SAMPLES[i].camera != "b"
    ),
    "identity NOT IN ('a')": lambda i: SAMPLES[i].identity != "a",
    "camera IS NULL OR track LIKE '1%'": lambda i: SAMPLES[i].camera == "" or str(i).startswith("1"),
    "camera IS NOT NULL": lambda i: SAMPLES[i].camera != "",
    "path LIKE 'crops/_.jpg'": lambda i: i < 10,
    "modality = 'infrared'": lambda i: SAMPLES[i].modality is Modality.INFRARED,
    "domain = 'person'": lambda _: True,
    "height > 20": lambda i: (height(i) or 0) > 20,
    "NOT height > 20": lambda i: height(i) is not None and not height(i) > 20,  # type: ignore[operator]
    "height BETWEEN 3 AND 30.5": lambda i: height(i) is not None and 3 <= height(i) <= 30.5,  # type: ignore[operator]
    "height IN (3, 'tall')": lambda i: HEIGHTS[i] == "tall" or height(i) == 3,
    "height = -1": lambda _: False,
    "time IS NULL": lambda i: SAMPLES[i].time is None,
    "time < '2024-05-02'": lambda i: (t := instant(SAMPLES[i])) is not None and t < datetime(2024, 5, 2),
    "NOT time < '2024-05-02'": lambda i: (t := instant(SAMPLES[i])) is not None and t >= datetime(2024, 5, 2),
    "time = '2024-05-02T05:00+05:00'": lambda i: instant(SAMPLES[i]) == datetime(2024, 5, 2),
    "time BETWEEN '2024-05-01' AND '2024-05-01T19:00'": lambda i: (
        (t := instant(SAMPLES[i])) is not None and datetime(2024, 5, 1) <= t <= datetime(2024, 5, 1, 19)
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", CASES)
def test_an_expression_selects_what_a_loop_selects(text: str) -> None:
    expected = [CASES[text](i) for i in range(40)]
    assert rows_where(parse_where(text), TABLE).tolist() == expected
    assert rows_where(parse_where(f"({text})"), TABLE).tolist() == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "camera", "1 = 1", "camera = ", "camera = (SELECT 1)", "camera IN (SELECT 1)", "DROP TABLE x",
        "f(camera) = 1",
        "camera = 'a'; camera = 'b'", "camera = identity", "time LIKE '2024%'", "time < 5", "time < 'yesterday'",
        "camera = CAST('a' AS TEXT)", "x.camera = 'a'", "colour = 'red'", "_id = '1'", "camera LIKE 5", "camera = 'a",
        "__import__('os').system('true')", "(" * 5000 + "camera = 'a'" + ")" * 5000, "camera = NULL", "a" * 200_000,
    ],
    ids=range(23),
)  # fmt: skip
def test_anything_else_is_one_clear_line(text: str) -> None:
    with pytest.raises(DataError) as caught:
        rows_where(parse_where(text), TABLE)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_an_unknown_column_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"camra.*did you mean \"camera\".*height"):
        rows_where(parse_where("camra = 'a'"), TABLE)


CONDITIONS = st.builds(
    ColumnCondition, st.sampled_from(["identity", "camera"]), st.sampled_from(["=", "<>", "<", ">="]),
    st.tuples(st.sampled_from(WORDS)),
)  # fmt: skip
FILTERS: st.SearchStrategy[Filter] = st.recursive(
    CONDITIONS,
    lambda parts: st.builds(lambda op, some: Combination(op, tuple(some[:1] if op == "not" else some)),
                            st.sampled_from(["and", "or", "not"]), st.lists(parts, min_size=1, max_size=3)),
    max_leaves=6,
)  # fmt: skip


def holds(where: Filter, sample: Sample) -> bool:
    """The plain meaning of a filter."""
    if isinstance(where, ColumnCondition):
        mine, value = getattr(sample, where.column), where.values[0]
        return {"=": mine == value, "<>": mine != value, "<": mine < value, ">=": mine >= value}[where.operator]
    parts = [holds(part, sample) for part in where.parts]
    return not parts[0] if where.operator == "not" else (all if where.operator == "and" else any)(parts)


@given(FILTERS)
@settings(max_examples=60, deadline=None)
def test_combinations_mean_what_they_say(where: Filter) -> None:
    assert rows_where(where, TABLE).tolist() == [holds(where, sample) for sample in SAMPLES]


def test_filters_are_put_together() -> None:
    chosen = both(None, equals("camera", "a", "b"), without("identity", "a"), equals("track"))
    assert chosen is not None
    expected = [s.camera in ("a", "b") and s.identity != "a" for s in SAMPLES]
    assert rows_where(chosen, TABLE).tolist() == expected
    assert both(None, None) is None


def test_an_empty_table_has_no_rows() -> None:
    empty = RowTable.from_samples(())
    for text in ("camera = 'a'", "time < '2024-01-01'", "path = 'x' OR camera IS NULL"):
        assert rows_where(parse_where(text), empty).shape == (0,)


@pytest.mark.parametrize(
    ("text", "expected"), [("2024-05-01", datetime(2024, 5, 1)), ("2024-05-01T02:00+02:00", datetime(2024, 5, 1))]
)
def test_times_are_instants(text: str, expected: datetime) -> None:
    assert time_of(text) == expected


def test_rows_survive_a_file(tmp_path: Path) -> None:
    TABLE.write(tmp_path / "t.parquet")
    again = RowTable.read(tmp_path / "t.parquet")
    assert again.samples == tuple(SAMPLES)
    assert again.samples[3:5] == tuple(SAMPLES[3:5])
    assert again.samples[-1] == SAMPLES[-1]
    assert again.column("height").to_pylist() == HEIGHTS
    some = again.take(np.array([7, 9]))
    some.write(tmp_path / "some.parquet")
    words = RowTable.read(tmp_path / "some.parquet").codes("identity")[1]
    assert set(words) == {SAMPLES[7].identity, SAMPLES[9].identity}, "no word of another row is left in the file"
    both_tables = RowTable.concatenated([again, RowTable.from_samples(SAMPLES[:3], 40)])
    assert both_tables.samples == (*SAMPLES, *SAMPLES[:3])
    assert both_tables.column("height").to_pylist() == [*HEIGHTS, None, None, None]
