"""The log of receipts: every erasure has one, even where programs stop, and none stops halfway because of the log."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from helpers.random_embeddings import embeddings_of, random_rows
from reid.errors import GalleryError
from reid.retrieval import receipts
from reid.retrieval.erasure import erase_identity
from reid.retrieval.gallery import Gallery
from reid.retrieval.receipts import RECEIPTS_FILE, read_receipts
from reid.retrieval.storage import GalleryWriter


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Gallery.build(embeddings_of(random_rows(np.random.default_rng(8), 70, 12))).save(tmp_path / "g")
    return tmp_path / "g"


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def names(folder: Path) -> set[str]:
    return {sample.identity for sample in Gallery.open(folder).samples}


@pytest.mark.parametrize(
    "make",
    [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path.parent.parent / "notes.txt")],
    ids=["folder", "pipe", "link"],
)
def test_something_else_of_its_name_is_told_before_anything_is_erased(
    folder: Path, tmp_path: Path, make: Callable[[Path], object]
) -> None:
    (tmp_path / "notes.txt").write_text("years of work")
    make(folder / RECEIPTS_FILE)
    before = listing(folder)
    with pytest.raises(GalleryError, match=RECEIPTS_FILE):
        erase_identity(folder, "id3")
    assert listing(folder) == before
    assert "id3" in names(folder)
    assert (tmp_path / "notes.txt").read_text() == "years of work"


def test_a_receipt_that_was_not_copied_survives_the_next_erasure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(GalleryWriter, "sweep", lambda writer: [])
        erase_identity(folder, "id3")
    erase_identity(folder, "id4")
    assert [receipt["action"] for receipt in read_receipts(folder)] == ["erase", "erase"]


def test_a_full_disk_at_the_receipt_does_not_undo_what_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(descriptor: int, text: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(receipts.os, "write", full)
        (erased,) = erase_identity(folder, "id3")
    assert erased.rows
    assert "id3" not in names(folder)
    assert RECEIPTS_FILE in caplog.text
    erase_identity(folder, "id4")
    assert len(read_receipts(folder)) == 2


def test_a_line_that_is_nested_too_deep_is_a_damaged_line(folder: Path) -> None:
    erase_identity(folder, "id3")
    with (folder / RECEIPTS_FILE).open("ab") as log:
        log.write(b"[" * 100_000 + b"\n")
    assert len(read_receipts(folder)) == 1
