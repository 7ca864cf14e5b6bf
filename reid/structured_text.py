"""Read TOML and JSON that somebody else wrote, within bounds of size and depth.

Python's readers call themselves for every nested value, and take quadratic time for a long dotted key. A small file
could therefore end in a traceback, or keep the program busy for hours.
"""

from __future__ import annotations

import json
import re
import reprlib
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_TOML = 2**20  # bytes; the largest file of this project has 5 kB
MAX_JSON = 2**28  # bytes; results with a row for each query are long
MAX_DEPTH = 32  # tables or lists inside each other, and names in a dotted key
MAX_WORD, MAX_LINE = 500, 5000  # characters in a message

_NAME = r"""(?:[\w-]+|"[^"\n]*"|'[^'\n]*')"""
_LONG_KEY = re.compile(rf"(?<![\w.]){_NAME}(?:[ \t]*\.[ \t]*{_NAME}){{{MAX_DEPTH}}}")


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: The file.

    Returns:
        Its table.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no TOML or no UTF-8, or is too large or too deep; the message has one line.
    """
    return parse_toml(_read_text(path, MAX_TOML))


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML.

    Raises:
        ValueError: If the text is no TOML, or is too large or too deep; the message has one line.

    Example:
        >>> parse_toml("train.epochs = 3")
        {'train': {'epochs': 3}}
    """
    _check_length(len(text), MAX_TOML)
    if _LONG_KEY.search(text):
        raise ValueError(_too_deep())
    try:
        table = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(_too_deep()) from error
    _check_depth(table)
    return table


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no JSON or no UTF-8, or is too large or too deep; the message has one line.
    """
    return parse_json(_read_text(path, MAX_JSON))


def parse_json(text: str, refuse: Callable[[str], Any] | None = None) -> Any:
    """Parse JSON.

    Args:
        text: The JSON.
        refuse: Called with "NaN", "Infinity" or "-Infinity", which are no JSON but which Python reads.

        Raises:
        ValueError: If the text is no JSON, or is too large or too deep; the message has one line.

    Example:
        >>> parse_json('{"names": ["door"]}')
        {'names': ['door']}
    """
    _check_length(len(text), MAX_JSON)
    try:
        value = json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError(_too_deep()) from error
    _check_depth(value)
    return value


def one_line(text: str) -> str:
    """Put a message into one line that a person can read, whatever names of a user stand in it.

    A word of more than 500 characters keeps its beginning and its end, and so does a line of more than 5,000.

    Example:
        >>> one_line("no such\\n file")
        'no such file'
        >>> len(one_line("x" * 50_000)) < 500
        True
    """
    line = " ".join(_cut(word, MAX_WORD) for word in text.split())
    return _cut(line, MAX_LINE)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 4 :]}"


def shorten(value: object) -> str:
    """Show a value of a file in a message, in one line and at most some 100 characters.

    Example:
        >>> shorten("door")
        "'door'"
        >>> len(shorten("x" * 1000)) < 100
        True
    """
    try:
        return " ".join(_SHORT.repr(value).split())
    except ValueError:  # Python does not write a whole number of thousands of digits
        return "a huge number"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def _read_text(path: Path, largest: int) -> str:
    if path.exists() and not path.is_file():
        raise ValueError("expected a file, this is a folder or device")
    with path.open("rb") as file:
        content = file.read(largest + 1)
    _check_length(len(content), largest)
    return content.decode("utf-8")


def _check_length(length: int, largest: int) -> None:
    if length > largest:
        raise ValueError(f"too large, expected at most {largest:,} bytes")


def _check_depth(value: Any) -> None:
    """Raise a ValueError if the tables and lists stand too deep in each other."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise ValueError(_too_deep())


def _too_deep() -> str:
    return f"nested too deep, expected at most {MAX_DEPTH} tables or lists inside each other"
