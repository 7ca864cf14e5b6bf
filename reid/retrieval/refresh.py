"""Give a gallery the network of today: only rows whose embeddings would change are embedded again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from reid.errors import GalleryError
from reid.files import Writer
from reid.models.checkpoint import Checkpoint
from reid.norm.site_cohort import join_cohorts
from reid.records import Embeddings, Sample, domain_of
from reid.retrieval.filters import BoolArray
from reid.retrieval.kept_cohorts import with_cohorts
from reid.retrieval.query_file import load_queries
from reid.retrieval.row_table import CONTENT, FIELDS, FILE_TIME, ROWS_AT_ONCE, RowTable
from reid.retrieval.segments import thumbnails_of_rows
from reid.retrieval.storage import QUERIES_FILE, write_gallery
from reid.retrieval.stored_gallery import read_gallery, under_lock, with_files, with_rows, without_rows

PROBES = 2  # images of noise that tell whether a network embeds a domain as before


def changed_domains(old: Checkpoint, new: Checkpoint) -> set[str] | None:
    """Find the normalization domains whose images two networks embed differently.

    Both embed the same images of noise with the statistics of each domain. Equal weights and statistics give equal
    numbers; any other weights or statistics give others.

    Args:
        old: The network before.
        new: The network now.

    Returns:
        The names of the domains of either network that changed, or that only one of them knows; None where every image
        is embedded differently.
    """
    if old.fingerprint == new.fingerprint:
        return set()
    if old.transform != new.transform or old.domain_fields != new.domain_fields or not new.domain_fields:
        return None
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(PROBES, 3, new.transform.height, new.transform.width, generator=generator)
    changed = set(old.domains) ^ set(new.domains)
    for name in set(old.domains) & set(new.domains):
        before, now = (one.embed(images, one.domains.index(name)) for one in (old, new))
        if before.shape != now.shape or not torch.equal(before, now):
            changed.add(name)
    return changed


def rows_to_embed(table: RowTable, old: Checkpoint, new: Checkpoint) -> BoolArray:
    """Return (N,) bool: the rows whose embeddings the new network changes.

    A row of a domain that neither network knows changes whenever anything does, because its embedding depends on all.

    Args:
        table: The rows of the gallery.
        old: The network of the gallery.
        new: The network of today.
    """
    if old.fingerprint == new.fingerprint:
        return np.zeros(len(table), np.bool_)
    changed = changed_domains(old, new)
    if changed is None:
        return np.ones(len(table), np.bool_)
    unchanged = set(old.domains) & set(new.domains) - changed
    flags: dict[tuple[int, ...], bool] = {}
    columns = [table.codes(name) for name in new.domain_fields]
    codes = np.stack([column for column, _ in columns], axis=1) if len(table) else np.zeros((0, 1), np.int32)
    distinct, of_row = np.unique(codes, axis=0, return_inverse=True)
    for key in map(tuple, distinct.tolist()):
        name = "/".join(words[code] for code, (_, words) in zip(key, columns, strict=True))
        flags[key] = name not in unchanged
    return np.array([flags[key] for key in map(tuple, distinct.tolist())], np.bool_)[of_row.reshape(-1)]


def check_unchanged(folder: Path, old: Checkpoint, new: Checkpoint) -> None:
    """Check that no row of a gallery has to be embedded again before it can take a new network.

    Raises:
        GalleryError: Rows have to be; the message names their cameras.
    """
    table = read_gallery(folder).kept_table()
    rows = np.flatnonzero(rows_to_embed(table, old, new))
    if len(rows):
        names = sorted({domain_of(sample, new.domain_fields) for sample in table.samples_at(rows[:ROWS_AT_ONCE])})
        what = ", ".join(name or "unknown" for name in names[:10]) if new.domain_fields else "all cameras"
        raise GalleryError(
            f"{folder}: {len(rows)} rows of {what} were embedded with other statistics or weights and have to be"
            ' embedded again: run "reid index refresh" with the same options'
        )


def with_kept_crops(new: Checkpoint, old: Checkpoint) -> Checkpoint:
    """Return the new network of a gallery with the crops of cameras that the old one kept and that still fit.

    These are embeddings of cameras that both networks embed alike; those of other weights fit no longer.
    """
    if old.cohort is None or new.cohort is not None or old.weights != new.weights:
        return new
    changed = changed_domains(old, new)
    return new if changed is None else replace(new, cohort=join_cohorts(old.cohort, None, stale=sorted(changed)))


def refresh_queries(
    folder: Path, old: Checkpoint, new: Checkpoint, embed: Callable[[Sequence[Sample]], Embeddings]
) -> Embeddings | None:
    """Embed the queries of a gallery again that a new network changes, and keep the others.

    Where a program was stopped after the gallery had got a new network and before its queries had, all queries are
    embedded again.

    Args:
        folder: The folder of the gallery.
        old: The network of the gallery.
        new: The network of today.
        embed: Embeds some samples with the new network.

    Returns:
        The queries, which :func:`reid.retrieval.query_file.save_queries` writes; None where the gallery has none, or
        the new network has embedded them already.

    Raises:
        DataError: The image of such a query cannot be read, or the file is damaged.
    """
    if not (folder / QUERIES_FILE).exists():
        return None
    queries = load_queries(folder)
    if queries.fingerprint == new.fingerprint:
        return None
    rows = np.arange(len(queries))
    if queries.fingerprint == old.fingerprint:
        rows = np.flatnonzero(rows_to_embed(RowTable.from_samples(queries.samples), old, new))
    fresh = embed([queries.samples[row] for row in rows.tolist()]).vectors if len(rows) else queries.vectors
    vectors = fresh if len(rows) == len(queries) else queries.vectors.copy()
    if 0 < len(rows) < len(queries):
        vectors[rows] = fresh
    return Embeddings(queries.samples, vectors, new.fingerprint)


def refresh_gallery(
    folder: Path,
    old: Checkpoint,
    new: Checkpoint,
    embed: Callable[[Sequence[Sample]], Embeddings],
    attach: Mapping[str, Writer],
) -> tuple[int, int]:
    """Embed the rows again that a new network changes, and keep the others.

    Args:
        folder: The folder of the gallery, which stays locked meanwhile; readers go on with the old rows.
        old: The network of the gallery.
        new: The network of today.
        embed: Embeds some samples with the new network.
        attach: Writes the new network.

    Returns:
        How many rows were embedded again, and how many were kept.

    Raises:
        DataError: An image of such a row cannot be read; nothing is changed.
        GalleryError: The gallery is damaged or cannot be written to.
    """
    with write_gallery(folder) as writer:
        stored = under_lock(writer)
        table = stored.kept_table()
        rows = np.flatnonzero(rows_to_embed(table, old, new))
        facts, _ = without_rows(writer, stored, table.row_ids[rows])
        if len(rows):
            part = table.take(rows)
            samples = part.samples_at(np.arange(len(part)))
            embeddings = embed(samples)
            names = [
                name for name in part.arrow.column_names if name in (CONTENT, FILE_TIME) or name in part.column_names
            ]
            more = {name: part.arrow.column(name).to_pylist() for name in names if name not in FIELDS}
            if len(rows) == len(table):
                facts["dimension"] = embeddings.vectors.shape[1]
            fresh = RowTable.from_samples(samples, more=more)
            images = thumbnails_of_rows(stored.segments, part.row_ids)
            facts = with_rows(writer, facts, fresh, [embeddings.vectors], thumbnails=images)
        facts = with_files(writer, {**facts, "fingerprint": new.fingerprint}, attach)
        writer.commit(with_cohorts(writer, facts, stored))
        writer.sweep()
    return len(rows), len(table) - len(rows)
