"""A protocol table that a user writes is read, and errors in a table are reported."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from helpers import published_layouts
from reid.data.protocols.data_sets import load_protocol, open_data, protocol_samples
from reid.data.protocols.protocol_table import parse_protocol
from reid.errors import DataError
from reid.records import Modality, Sample, Split

ROOT = Path(__file__).parents[4]
TABLE = """
name = "x"
title = "X"
source = "s"
licence = "l"
obtain = "o"
[[parts]]
split = "query"
glob = "*.png"
pattern = '(?P<identity>\\d+)\\.png'
camera = ""
"""


def test_a_table_that_a_user_writes(tmp_path: Path) -> None:
    published_layouts.write_image(tmp_path / "0012.png")
    protocol = parse_protocol(TABLE, "here")
    assert protocol_samples(protocol, tmp_path) == (
        Sample(tmp_path / "0012.png", "0012", "", Modality.VISIBLE, "person", Split.QUERY),
    )


@pytest.mark.parametrize("name", [path.parent.name for path in (ROOT / "datasets").glob("*/protocol.toml")])
def test_every_pattern_has_an_example_that_it_matches(name: str) -> None:
    for part in load_protocol(name).parts:
        assert re.fullmatch(part.pattern, part.example())
        assert "\\" not in part.example()
        assert "(" not in part.example()


def test_a_pattern_without_an_example_is_shown_itself() -> None:
    odd = r"(?P<identity>\d+)(?<=7)\.png"
    assert parse_protocol(TABLE.replace(r"(?P<identity>\d+)\.png", odd), "here").parts[0].example() == odd


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('name = "x"', "name = ", "here: not TOML"),
        ('title = "X"', 'titel = "X"', "here: title: Field required"),
        ('split = "query"', 'split = "test"', "here: parts.0.split: "),
        ('glob = "*.png"', "", "glob or list"),
        ('glob = "*.png"', 'list = "a.txt"', "path"),
        ("?P<identity>", "?:", "identity"),
        ("png'", "png('", "not a regular expression"),
        ("[[parts]]", '[variants.v]\ndefault = "3"\nchoices = { 1 = {} }\n[[parts]]', '"3"'),
        ("[[parts]]", "[[pieces]]", "here: pieces"),
    ],
)
def test_a_wrong_table(old: str, new: str, expected: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_protocol(TABLE.replace(old, new), "here")
    assert expected in str(caught.value)


def test_a_table_without_files() -> None:
    with pytest.raises(DataError, match=r"here: table: .*manifest or parts"):
        parse_protocol(TABLE.split("[[parts]]")[0], "here")


def test_an_unknown_word_in_a_template(tmp_path: Path) -> None:
    published_layouts.write_image(tmp_path / "0012.png")
    protocol = parse_protocol(TABLE.replace('camera = ""', 'camera = "{came}"'), "here")
    with pytest.raises(DataError, match='"came"'):
        protocol_samples(protocol, tmp_path)


def test_a_folder_that_is_called_like_a_published_data_set(tmp_path: Path) -> None:
    """The message names the protocol, whether the folder is there or not."""
    folder = tmp_path / "Market-1501-v15.09.15"
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            open_data(str(folder))
        assert "--data market1501" in str(caught.value)
        folder.mkdir(exist_ok=True)


def test_a_pipe_as_a_manifest_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.csv")
    with pytest.raises(DataError) as caught:
        open_data(str(tmp_path / "m.csv"))
    assert "pipe" in str(caught.value)
