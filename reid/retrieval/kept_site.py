"""The crops of the site's cameras that a gallery keeps beside its network, to normalize scores of cameras it lacks.

Profiles may hold embeddings of unlabelled crops of each camera (:mod:`reid.norm.site_cohort`).  A gallery that is built
with them keeps them in ``data-<hex>.site.safetensors``.  Where the gallery has too few crops of a camera for a cohort,
a search takes these.  They are embeddings of people, so an erasure takes out those that equal a vector of an erased
row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from reid.files import Writer
from reid.records import FloatArray
from reid.retrieval.cohort_rows import BoolArray, CohortRows, LabelArray
from reid.retrieval.folder_reading import read_attached
from reid.retrieval.row_table import first_line
from reid.retrieval.segments import checked_file, damaged
from reid.retrieval.storage import NETWORK_SUFFIX, SITE_SUFFIX, GalleryWriter
from reid.retrieval.stored_gallery import Facts
from reid.structured_text import parse_json

if TYPE_CHECKING:
    from reid.models.checkpoint import Checkpoint

FORMAT = "reid-site-1"
EQUAL = 1 - 1e-5  # inner product from which two unit vectors are of one crop; they are kept with 11 bits
ROWS_AT_ONCE = 4096

SiteTable = tuple[LabelArray, LabelArray, FloatArray]  # domains (M,), cameras (M,), vectors (M, D)


def network_files(checkpoint: Checkpoint) -> dict[str, Writer]:
    """Return the writers of the files of a gallery's network: its weights, and crops of its cameras where it has some.

    Args:
        checkpoint: The network that embeds the queries of the gallery.

    Returns:
        Writers by the suffixes of their files, for :meth:`reid.retrieval.gallery.Gallery.save`.
    """
    files: dict[str, Writer] = {NETWORK_SUFFIX: checkpoint.save}
    cohort = checkpoint.cohort
    if cohort is not None:
        table = np.array(cohort.domains, np.str_), np.array(cohort.cameras, np.str_), cohort.vectors.float().numpy()
        files[SITE_SUFFIX] = partial(_write, table)
    return files


def with_site_of(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Return a gallery's network with the crops of its cameras that the gallery keeps.

    Raises:
        GalleryError: The gallery is missing, or the file is damaged.
    """
    table = read_attached(folder, SITE_SUFFIX, _read)
    if table is None:
        return checkpoint
    import torch

    from reid.norm.site_cohort import SiteCohort

    domains, cameras, vectors = table
    cohort = SiteCohort(tuple(domains.tolist()), tuple(cameras.tolist()), torch.from_numpy(vectors))
    return replace(checkpoint, cohort=cohort)


def read_site(folder: Path) -> CohortRows | None:
    """Read the crops that a gallery keeps of its cameras; None where it keeps none.

    Raises:
        GalleryError: The gallery is missing, or the file is damaged.
    """
    table = read_attached(folder, SITE_SUFFIX, _read)
    return None if table is None else site_rows(table[1], table[2])


def site_rows(cameras: LabelArray, vectors: FloatArray) -> CohortRows:
    """Return crops of cameras (M,) as rows of a cohort, which equal no image of a gallery."""
    keys = np.arange(len(cameras), dtype=np.uint64)
    # the bits of the largest numbers, which no hash of an image is likely to have
    return CohortRows(vectors, cameras, keys, np.iinfo(np.uint64).max - keys)


def without_crops(writer: GalleryWriter, files: Mapping[str, Facts], erased: FloatArray) -> dict[str, Facts]:
    """Take the crops out of the kept ones whose vectors are those of erased rows.

    Args:
        writer: The writer.
        files: The entries of the header for files of the gallery as a whole.
        erased: (E, D) float32, the vectors of the erased rows.

    Returns:
        The entries, with that of a new file where crops were taken out, or without one where none is left.

    Raises:
        OSError: The file cannot be written.
        GalleryError: The file is damaged.
    """
    if SITE_SUFFIX not in files or not len(erased):
        return dict(files)
    domains, cameras, vectors = _read(checked_file(writer.folder, files[SITE_SUFFIX]))
    kept = ~_equal_to(vectors, erased)
    if kept.all():
        return dict(files)
    left = {suffix: entry for suffix, entry in files.items() if suffix != SITE_SUFFIX}
    if kept.any():
        table = domains[kept], cameras[kept], vectors[kept]
        left[SITE_SUFFIX] = writer.write_data(SITE_SUFFIX, partial(_write, table))
    return left


def _equal_to(vectors: FloatArray, erased: FloatArray) -> BoolArray:
    """Return (M,) bool: the vectors that equal one of some others (E, D), up to rounding."""
    found = np.zeros(len(vectors), np.bool_)
    for start in range(0, len(erased) if erased.shape[1] == vectors.shape[1] else 0, ROWS_AT_ONCE):
        found |= (vectors @ erased[start : start + ROWS_AT_ONCE].T).max(axis=1) > EQUAL
    return found


def _write(table: SiteTable, path: Path) -> None:
    domains, cameras, vectors = table
    names = {"domains": json.dumps(domains.tolist()), "cameras": json.dumps(cameras.tolist())}
    save_file({"vectors": np.ascontiguousarray(vectors, np.float16)}, path, {"format": FORMAT, **names})


def _read(path: Path) -> SiteTable:
    try:
        with safe_open(path, framework="np") as file:
            note, vectors = file.metadata() or {}, np.asarray(file.get_tensor("vectors"), np.float32)
        if note.get("format") != FORMAT:
            raise ValueError("it is of another format")
        domains, cameras = (np.array(parse_json(note[name]), dtype=np.str_) for name in ("domains", "cameras"))
        if vectors.ndim != 2 or not len(vectors) == len(domains) == len(cameras):
            raise ValueError("its cameras do not fit its vectors")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise damaged(path.parent, f"{path.name} holds no crops of cameras ({first_line(error)})") from error
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return domains, cameras, (vectors / np.maximum(lengths, np.float32(1e-12))).astype(np.float32)
