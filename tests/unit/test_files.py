"""Files appear whole or not at all, and nothing else is overwritten.

The tests refuse two wrong ways: writing into the file itself, and one temporary name for all programs that write it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from reid.errors import ConfigError
from reid.files import (
    Writer,
    check_output_file,
    folder_for_files,
    is_part,
    prepare_output_folder,
    write_together,
    write_whole,
)


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


def test_a_part_is_known_by_its_name(tmp_path: Path) -> None:
    names: list[str] = []

    def write(part: Path) -> None:
        part.touch()
        names.extend([path.name for path in tmp_path.iterdir()])

    write_whole(tmp_path / "file", write)
    assert [is_part(tmp_path / name) for name in names] == [True]
    assert is_part(tmp_path / ".scores.json.1f6d2c07.part"), "version 0.1.0 left such files"
    assert not is_part(tmp_path / "file")
    assert not is_part(tmp_path / "mine.part")


def test_an_output_replaces_only_a_file_of_its_kind(tmp_path: Path) -> None:
    check_output_file(tmp_path / "new" / "folder" / "scores.json", "results")
    assert not list(tmp_path.iterdir()), "a command that fails later leaves no empty folder"
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


def test_a_link_that_leads_nowhere_is_no_place_for_files(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("link", "loop"):
        with pytest.raises(ConfigError, match=name):
            prepare_output_folder(tmp_path / name / "folder")
        with pytest.raises(ConfigError, match="leads nowhere"):
            check_output_file(tmp_path / name, "results")


def test_a_folder_is_removed_where_no_file_was_put_into_it(tmp_path: Path) -> None:
    with folder_for_files(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    with pytest.raises(ValueError, match="wrong"), folder_for_files(tmp_path / "a" / "b"):
        raise ValueError("wrong")
    assert not list(tmp_path.iterdir())
    with folder_for_files(tmp_path / "a" / "b"):
        (tmp_path / "a" / "file").write_text("mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "file"]
    with folder_for_files(tmp_path / "a"):
        pass
    assert (tmp_path / "a" / "file").exists()


def test_temporary_files_of_libraries_are_private_and_go_with_the_part(tmp_path: Path) -> None:
    def write(part: Path) -> None:
        (part.parent / ".tmpAbC123").write_text("a library wrote this")
        assert part.parent.parent.stat().st_mode & 0o777 == 0o700
        part.write_text("new")

    write_whole(tmp_path / "file", write)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    killed = tmp_path / ".reid-partial" / "0123456789abcdef"
    killed.mkdir(parents=True)
    (killed / "vectors").write_text("half")
    (tmp_path / ".reid-partial" / "notes").mkdir()  # not a name of this program
    write_whole(tmp_path / "file", lambda part: part.write_text("new"))
    assert [path.name for path in (tmp_path / ".reid-partial").iterdir()] == ["notes"]


def test_a_writer_at_work_is_left_alone(tmp_path: Path) -> None:
    def write(part: Path) -> None:
        part.write_text("first")
        write_whole(tmp_path / "other", lambda own: own.write_text("second"))
        assert part.read_text() == "first"

    write_whole(tmp_path / "file", write)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other"]


def test_files_that_belong_together_never_mix(tmp_path: Path) -> None:
    paths = [tmp_path / "model", tmp_path / "card"]

    def write(words: str) -> Callable[[Path], None]:
        return lambda folder: [(folder / path.name).write_text(words) for path in paths] and None

    write_together(paths, write("old"))
    replaced: list[list[str]] = []

    def watch(path: Path, target: Path) -> Path:
        replaced.append(sorted(f"{one.name} {one.read_text()}" for one in paths if one.exists()))
        path.rename(target)
        return target

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", watch)
        write_together(paths, write("new"))
    assert replaced == [["card old"], ["card new"]]
    assert [path.read_text() for path in paths] == ["new", "new"]

    def fail(folder: Path) -> None:
        (folder / "model").write_text("newer")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_together(paths, fail)
    assert [path.read_text() for path in paths] == ["new", "new"]
