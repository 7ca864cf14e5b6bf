"""The embeddings of queries that the application keeps in the folder of a gallery."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from reid.errors import DataError
from reid.records import Embeddings, Sample
from reid.retrieval.embed import FORMAT, load_embeddings, save_embeddings
from reid.retrieval.storage import QUERIES_FILE, write_gallery
from reid.retrieval.tombstones import BoolArray, Tombstones, read_tombstones


def save_queries(folder: Path, queries: Embeddings) -> Embeddings:
    """Write the embeddings of queries into the folder of their gallery, without identities that were erased from it.

    Returns:
        What was written.

    Raises:
        DataError: The file cannot be written.
        GalleryError: The folder cannot be written to.
    """
    with write_gallery(folder) as writer:
        kept = queries.select(~writer.tombstones.barred(queries.samples))
        save_embeddings(kept, folder / QUERIES_FILE)
    return kept


def load_queries(folder: Path) -> Embeddings:
    """Read the embeddings of queries in the folder of a gallery, without identities that were erased from it.

    Raises:
        DataError: The file is missing or damaged.
        GalleryError: The list of erased identities is damaged.
    """
    queries = load_embeddings(folder / QUERIES_FILE)
    return queries.select(~read_tombstones(folder).barred(queries.samples))


def erase_queries(
    folder: Path, tombstones: Tombstones, erased: Callable[[Sequence[Sample]], BoolArray]
) -> tuple[int | None, list[str]]:
    """Write the file of queries anew without erased rows; the caller holds the folder's lock.

    A damaged file of this program is removed, because it may hold such rows; the application computes it again.

    Args:
        folder: The folder of the gallery.
        tombstones: What was erased from it.
        erased: Returns (N,) bool, which samples are erased besides those that the tombstones name.

    Returns:
        The number of rows that were removed (None where the file was removed), and one line for what remains.
    """
    path = folder / QUERIES_FILE
    if not path.exists():
        return 0, []
    try:
        queries = load_embeddings(path)
        gone = tombstones.barred(queries.samples) | erased(queries.samples)
        if gone.any():
            save_embeddings(queries.select(~gone), path)
        return int(gone.sum()), []
    except DataError as error:
        if not _is_damaged_own_file(path):
            return 0, [str(error)]
    try:
        path.unlink()
    except OSError as error:
        return 0, [f"{path}: cannot be removed ({error.strerror or error})"]
    return None, []


def _is_damaged_own_file(path: Path) -> bool:
    """Whether a file bears the mark of this program and cannot be read, in contrast to one that cannot be written."""
    try:
        load_embeddings(path)
        return False
    except DataError:
        pass
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return FORMAT.encode() in stream.read(2**20)
