"""Files appear whole or not at all, and nothing else is overwritten.

The tests refuse two wrong ways: writing into the file itself, and one temporary name for all programs that write it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from reid.errors import ConfigError
from reid.files import Writer, check_output_file, is_part, prepare_output_folder, write_whole


def in_place(path: Path, write: Writer) -> None:
    """Write in a wrong way: a program that stops half-way leaves half a file, and the old one is lost."""
    write(path)


def beside(path: Path, write: Writer) -> None:
    """Write in a wrong way: two programs that write the same file use the same temporary file."""
    part = path.with_name(path.name + ".part")
    write(part)
    part.replace(path)


def after_a_stop(path: Path, way: Callable[[Path, Writer], None]) -> str:
    """Return what the file holds after a program stopped half-way."""
    path.write_text("old")

    def half(part: Path) -> None:
        part.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        way(path, half)
    return path.read_text()


def both_at_once(path: Path, way: Callable[[Path, Writer], None]) -> list[str]:
    """Return what the file holds after the second of two programs, which began later, and after the first."""
    contents = []

    def first(part: Path) -> None:
        part.write_text("first, ")
        way(path, lambda own: own.write_text("second"))
        contents.append(path.read_text())
        with part.open("a") as file:
            file.write("whole")

    way(path, first)
    return [*contents, path.read_text()]


def test_a_program_that_stops_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    assert after_a_stop(tmp_path / "file", write_whole) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert after_a_stop(tmp_path / "file", in_place) == "ne"  # the wrong variant


def test_of_two_programs_the_one_that_ends_later_counts(tmp_path: Path) -> None:
    assert both_at_once(tmp_path / "file", write_whole) == ["second", "first, whole"]
    assert both_at_once(tmp_path / "other", beside) == ["second", "whole"]  # the wrong variant: half of the first


def test_folders_are_created_and_only_the_owner_can_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_whole(tmp_path / "a" / "b" / "file", lambda part: part.write_text("new"))
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "b" / "file").stat().st_mode & 0o777 == 0o600


def test_a_temporary_file_is_recognised_by_its_name(tmp_path: Path) -> None:
    names = []
    write_whole(tmp_path / "file", lambda part: names.append(part.name) or part.touch())
    assert is_part(tmp_path / names[0])
    assert not is_part(tmp_path / "file")
    assert not is_part(tmp_path / "mine.part")


def test_an_output_replaces_only_a_file_of_its_kind(tmp_path: Path) -> None:
    check_output_file(tmp_path / "new" / "scores.json", "results")
    for content in (b'{"results": []}', b""):
        (tmp_path / "scores.json").write_bytes(content)
        check_output_file(tmp_path / "scores.json", "results")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "input.json").write_text("results")
    for out, inputs in (("notes.txt", []), ("input.json", [str(tmp_path / "input.json")]), (".", [])):
        with pytest.raises(ConfigError) as caught:
            check_output_file(tmp_path / out, "results", inputs)
        assert str(tmp_path / out) in str(caught.value)


def test_a_folder_that_cannot_be_written_names_the_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for out in (None, tmp_path / "file" / "folder" / "out"):
        with pytest.raises(ConfigError) as caught:
            prepare_output_folder(tmp_path / "file" / "folder", out)
        assert str(out or tmp_path / "file" / "folder") in str(caught.value)
