"""TOML and JSON of others are read within bounds: nothing recurses without end, nothing takes quadratic time."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reid.structured_text import MAX_DEPTH, MAX_TOML, one_line, parse_json, parse_toml, read_json, read_toml, shorten

DEEP = 20_000


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_toml, "a = " + "[" * DEEP + "]" * DEEP),
        (parse_toml, "a = " + "{a = " * DEEP + "1" + "}" * DEEP),
        (parse_toml, ".".join(["a"] * 200_000) + " = 1"),
        (parse_toml, "[" + " . ".join(['"a"'] * 100_000) + "]"),
        (parse_toml, "a = " + "[" * 100 + "]" * 100),
        (parse_json, "[" * DEEP + "]" * DEEP),
        (parse_json, '{"a":' * DEEP + "1" + "}" * DEEP),
        (parse_json, "[" * 100 + "]" * 100),
    ],
)
def test_what_is_nested_too_deep_is_refused_in_one_line(parse: Callable[[str], Any], text: str) -> None:
    with pytest.raises(ValueError, match=str(MAX_DEPTH)) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_ordinary_text_is_read() -> None:
    assert parse_toml('[a.b]\nc = [0.1, 0.2, 0.3]\n"d.e" = "x.y.z"')["a"]["b"]["c"][2] == 0.3
    assert parse_toml(f"a = [{', '.join(['0.5'] * 5000)}]")["a"][-1] == 0.5
    assert parse_toml(f'a = "{"../" * 60}m.csv"')["a"].endswith("m.csv")
    assert parse_json('{"a": [[1, 2], {"b": null}]}') == {"a": [[1, 2], {"b": None}]}


def test_a_file_that_is_too_large_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "huge.toml"
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    for read in (read_toml, read_json):
        with pytest.raises(ValueError, match="too large"):
            read(path)
    with pytest.raises(ValueError, match="too large"):
        parse_toml("#" * (MAX_TOML + 1))


def test_a_pipe_and_a_device_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    for path in (tmp_path / "pipe.toml", Path("/dev/zero"), tmp_path):
        with pytest.raises(ValueError, match="expected a file"):
            read_toml(path)


def test_a_value_of_a_file_is_shown_in_one_short_line() -> None:
    nested: list[Any] = []
    for _ in range(5000):
        nested = [nested]
    for value in ("x" * 10**6, nested, 10**10000, "a\nb", list(range(10**5))):
        assert len(shorten(value)) < 200
        assert "\n" not in shorten(value)


def test_a_message_with_huge_names_is_one_line_that_can_be_read() -> None:
    for text in ("x" * 50_000, "long words " * 20_000, 'unknown split\n"' + "y" * 10**6 + '" in m.csv'):
        assert len(one_line(text)) < 5000
        assert "\n" not in one_line(text)
    assert one_line("a.csv, line 2:\n  no such file") == "a.csv, line 2: no such file"
    path = "/" + "folder/" * 60
    assert one_line(path) == path


def test_numbers_that_are_no_json_can_be_refused() -> None:
    def refuse(name: str) -> float:
        raise ValueError(name)

    for name in ("NaN", "Infinity", "-Infinity"):
        with pytest.raises(ValueError, match=name):
            parse_json(f'{{"a": {name}}}', refuse)


ROOT = Path(__file__).parents[2] / "reid"
# What a gallery keeps has readers with bounds of its own; the others read what the package itself holds or has written.
OWN_READERS = {
    "structured_text.py",
    "retrieval/gallery_header.py",
    "retrieval/tombstones.py",
    "models/weights/public_weights.py",
    "evaluation/reports/report_json.py",
    "data/street/generation.py",
}


def test_every_reader_of_other_peoples_files_has_these_bounds() -> None:
    calls = re.compile(r"\bjson\.loads?\(|\btomllib\.loads?\(")
    found = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if calls.search(path.read_text())}
    assert found <= OWN_READERS
