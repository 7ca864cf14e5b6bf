"""The approximate index of a gallery folder: a file beside the vectors, which makes searches of large galleries fast.

The index is derived from the vectors. Rows that are added later are scored one by one until it is built again, removed
rows do not answer, and a search with a filter does not use it. Compaction that removes rows removes the index as well,
because it holds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reid.errors import ConfigError
from reid.retrieval.gallery_header import INDEX, read_header
from reid.retrieval.segments import GallerySegment, checked_file
from reid.retrieval.storage import write_gallery
from reid.retrieval.stored_gallery import under_lock, with_files, without_index
from reid.retrieval.stores.flat_store import FlatStore
from reid.retrieval.stores.index_kinds import FLAT
from reid.retrieval.stores.indexed_store import DEFAULT_RECALL, IndexedStore, IndexReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reid.records import IntArray


@dataclass(frozen=True)
class IndexFile:
    """The index of a gallery.

    Args:
        folder: The folder of the gallery.
        entry: What the header says of the file.
        index_kind: Its kind.
    """

    folder: Path
    entry: Mapping[str, Any]
    index_kind: str

    def open(self, dimension: int, segments: Sequence[GallerySegment], row_ids: IntArray) -> FlatStore:
        """Return a store of the rows (G,) with these ids, with the index.

        Raises:
            GalleryError: The file of the index or of the vectors is damaged.
        """
        store = IndexedStore(dimension, self.index_kind)
        fill_store(store, segments, row_ids)
        path = self.folder / str(self.entry["name"])
        if path.exists():  # otherwise another program has replaced it, and the search is exact until then
            store.read_index(checked_file(self.folder, self.entry), self.index_kind)
        return store


def index_file_of(folder: Path, facts: Mapping[str, Any]) -> IndexFile | None:
    """Return the index of a gallery with some facts; None where it has none."""
    if INDEX not in facts["files"]:
        return None
    return IndexFile(folder, facts["files"][INDEX], str(facts["index"]["index_kind"]))


def fill_store(store: FlatStore, segments: Sequence[GallerySegment], row_ids: IntArray) -> None:
    """Add the rows (G,) with some ids to a store; their vectors are not copied."""
    for segment in segments:
        kept = np.isin(segment.table.row_ids, row_ids, assume_unique=True)
        if kept.any():
            store.add(segment.table.row_ids, segment.vectors, source=segment.code_source())
        if not kept.all():
            store.remove(segment.table.row_ids[~kept])


def index_gallery(folder: Path, index_kind: str = "auto", recall: float = DEFAULT_RECALL) -> IndexReport:
    """Build the approximate index of a gallery, or remove it.

    Args:
        folder: The folder of the gallery.
        index_kind: "fp16", "sq8", "ivf-flat", "ivf-pq", "hnsw", "auto", which chooses by size, or "flat", which removes
            the index, so that every search is exact.
        recall: The wished recall in 0..1; the search settings are chosen for it.

    Returns:
        What was built, and its recall as measured on rows of the gallery.

    Raises:
        ConfigError: The kind is unknown, or the recall is not in 0..1.
        GalleryError: The gallery is damaged, or the folder cannot be written to.
    """
    if not 0 < recall <= 1:
        raise ConfigError(f"recall: expected a number above 0 and at most 1, got {recall:g}")
    with write_gallery(folder, replaces=str(read_header(folder)["generation"])) as writer:
        stored = under_lock(writer)
        store = IndexedStore(int(stored.facts["dimension"]), index_kind, recall)
        fill_store(store, stored.segments, stored.kept_table().row_ids)
        report = store.build_index()
        facts = without_index(stored.facts)
        if report.index_kind != FLAT:
            facts = with_files(writer, facts, {INDEX: store.write_index})
            facts |= {"index": {"index_kind": report.index_kind, "recall": report.recall, "wished": recall}}
        writer.commit(facts)
        writer.sweep()
    return report
