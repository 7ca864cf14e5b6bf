"""Galleries and embeddings on disk: private, whole or not there at all.

A gallery folder holds ``header.json`` and the data files of one generation, whose names and
checksums the header gives.  A new generation is written beside the old one and takes effect when the
header is replaced, which the file system does at once or not at all; then the old files go.  So a
stopped program leaves the old gallery or the new one, never a mixture.

Embeddings of people are biometric data: folders are 0700 and files 0600.  What a file means (which
index, which columns) is not known here, except for the table of samples.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from safetensors import SafetensorError

from reid.errors import DataError, GalleryError, WeightsError
from reid.files import Writer, is_part, sync, write_whole
from reid.records import Modality, Sample, Split

HEADER = "header.json"
FORMAT = "reid-gallery"
VERSION = 1
DATA_FILE = "data-*"  # pattern of every data file, those of abandoned generations too
REBUILD = 'build it again with "reid index build"'

_COLUMNS = ("path", "identity", "camera", "modality", "domain", "split", "time")


def encode_samples(samples: Sequence[Sample]) -> bytes:
    """A Parquet table of the fields of ``samples``, in their order; paths are kept as they are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        (str(s.path), s.identity, s.camera, s.modality.value, s.category, s.split.value, s.time and s.time.isoformat())
        for s in samples
    ]
    columns: list[Sequence[str | None]] = list(zip(*rows, strict=True)) or [()] * len(_COLUMNS)
    try:
        arrays = [pa.array(column, pa.string()) for column in columns]
    except UnicodeEncodeError as error:
        raise DataError(f"a path or label is not valid Unicode and cannot be saved: {error.object!r}") from error
    stream = io.BytesIO()
    pq.write_table(pa.table(dict(zip(_COLUMNS, arrays, strict=True))), stream)
    return stream.getvalue()


def decode_samples(data: bytes, source: Path) -> tuple[Sample, ...]:
    """What :func:`encode_samples` wrote; DataError that names ``source`` when it is something else."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read()  # read_table would import pandas
        columns = [table.column(name).to_pylist() for name in _COLUMNS]
        return tuple(
            Sample(
                Path(path), identity, camera, Modality(modality), category, Split(split),
                datetime.fromisoformat(time) if time else None,
            )
            for path, identity, camera, modality, category, split, time in zip(*columns, strict=True)
        )  # fmt: skip
    except (pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{source}: the table of samples is damaged ({_first_line(error)})") from error


def write_private(path: Path, write: Writer) -> None:
    """:func:`~reid.files.write_whole` in which a full disk is an OSError whichever library wrote."""
    try:
        write_whole(path, write)
    except (SafetensorError, RuntimeError) as error:  # what safetensors and faiss raise
        raise OSError(errno.EIO, _first_line(error), str(path)) from error
    except WeightsError as error:  # of a network that is kept beside the vectors
        raise OSError(errno.EIO, _first_line(error.__cause__ or error), str(path)) from error


def claim(folder: Path) -> None:
    """Refuse a folder that cannot become a gallery, or be replaced by one, before work is spent on it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _lock(folder, fcntl.LOCK_EX):
            _check_replaceable(folder, None)
            TemporaryFile(dir=folder).close()
    except OSError as error:
        raise GalleryError(_unwritable(folder, error)) from error


def _unwritable(folder: Path, error: OSError) -> str:
    return (
        f"{folder}: the gallery cannot be written ({error.strerror or error}); choose another place or free some space"
    )


def commit(
    folder: Path, writers: Mapping[str, Writer], facts: Mapping[str, Any], replaces: str | None = None
) -> dict[str, Any]:
    """Make ``folder`` a gallery of the files that ``writers`` (suffix -> writer) write; its header.

    ``facts`` go into the header.  ``replaces`` is the generation this one was derived from: if the
    folder holds another by now, nothing is written, lest a change by another program be undone.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _lock(folder, fcntl.LOCK_EX):
            _check_replaceable(folder, replaces)
            folder.chmod(0o700)
            return _commit(folder, writers, facts)
    except OSError as error:
        raise GalleryError(_unwritable(folder, error)) from error


def _commit(folder: Path, writers: Mapping[str, Writer], facts: Mapping[str, Any]) -> dict[str, Any]:
    generation = secrets.token_hex(8)
    files = {}
    try:
        for suffix, write in writers.items():
            path = folder / f"data-{generation}.{suffix}"
            write_private(path, write)
            files[suffix] = {"name": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path)}
        header = {"format": FORMAT, "version": VERSION, "generation": generation, **facts, "files": files}
        text = json.dumps(header, indent=2) + "\n"
        write_private(folder / HEADER, lambda part: part.write_text(text, encoding="utf-8"))
    finally:
        with suppress(GalleryError):  # a damaged header is reported by whoever reads it
            _sweep(folder)
    return header


@contextmanager
def reading(folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, Path]]]:
    """The header of a gallery and its checked data files (suffix -> path), which stay while reading."""
    if not folder.is_dir():
        raise GalleryError(f'{folder}: no gallery there; build one with "reid index build"')
    try:
        with _lock(folder, fcntl.LOCK_SH):
            header = _read_header(folder)
            with suppress(OSError):  # a folder that may only be read can still be searched
                _sweep(folder)
            yield header, {suffix: _checked(folder, entry) for suffix, entry in header["files"].items()}
    except OSError as error:
        raise GalleryError(f"{folder}: the gallery cannot be read ({error.strerror or error})") from error


def check_gallery(folder: Path) -> None:
    """Check that a folder holds a gallery, without reading its vectors.

    Raises:
        GalleryError: The folder is missing or holds no gallery, or the header of the gallery is damaged.
    """
    if not folder.is_dir():
        raise GalleryError(f'{folder}: no gallery there; build one with "reid index build"')
    try:
        with _lock(folder, fcntl.LOCK_SH):
            _read_header(folder)
    except OSError as error:
        raise GalleryError(f"{folder}: the gallery cannot be read ({error.strerror or error})") from error


def _read_header(folder: Path) -> dict[str, Any]:
    try:
        header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        known = header["format"] == FORMAT
        version = header["version"]
        complete = isinstance(header["generation"], str) and all(
            isinstance(entry["name"], str) and isinstance(entry["bytes"], int) and isinstance(entry["sha256"], str)
            for entry in header["files"].values()
        )
    except FileNotFoundError:
        raise GalleryError(f"{folder}: not a gallery or only half written, there is no {HEADER}; {REBUILD}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GalleryError(f"{folder}: {HEADER} is damaged ({_first_line(error)}); {REBUILD}") from error
    if not known or not complete:
        raise GalleryError(f"{folder}: {HEADER} is not that of a gallery; {REBUILD}")
    if version != VERSION:
        raise GalleryError(f"{folder}: gallery version {version}, this program reads {VERSION}; {REBUILD}")
    return dict(header)


def _checked(folder: Path, entry: Mapping[str, Any]) -> Path:
    path = folder / Path(entry["name"]).name
    if not path.is_file():
        raise GalleryError(f"{folder}: the gallery is damaged, {path.name} is missing; {REBUILD}")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise GalleryError(
            f"{folder}: the gallery is damaged, {path.name} has {size} bytes instead of {entry['bytes']}; {REBUILD}"
        )
    if _sha256(path) != entry["sha256"]:
        raise GalleryError(f"{folder}: the gallery is damaged, {path.name} has other contents; {REBUILD}")
    return path


def _check_replaceable(folder: Path, replaces: str | None) -> None:
    if not (folder / HEADER).exists():
        strangers = [path.name for path in folder.iterdir() if not _ours(path)]
        if strangers:
            raise GalleryError(f'{folder}: holds "{min(strangers)}" and is no gallery; choose an empty folder')
    if replaces is not None and _read_header(folder)["generation"] != replaces:
        raise GalleryError(f"{folder}: the gallery was changed by another program; open it again, then repeat")


def _ours(path: Path) -> bool:
    return path.match(DATA_FILE) or is_part(path)


def _sweep(folder: Path) -> None:
    """Remove data files that the header does not name: an erased identity must not survive in them.

    To be called under a lock: then such a file is not being written, its writer was stopped.
    """
    used: set[str] = set()
    if (folder / HEADER).exists():
        used = {entry["name"] for entry in _read_header(folder)["files"].values()}
    strays = [path for path in folder.iterdir() if _ours(path) and path.name not in used]
    for path in strays:
        path.unlink()
    if strays:
        sync(folder)


@contextmanager
def _lock(folder: Path, kind: int) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
