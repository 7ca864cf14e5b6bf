"""Gallery folders and tables of samples on disk: private, and written as a whole or not at all.

A gallery folder holds ``header.json`` and the data files of one generation; the header lists their names and
checksums. A new generation is written beside the old one. It takes effect when the header is replaced, which the file
system does at once or not at all, and then the old files are removed. A program that is stopped at any moment therefore
leaves the old gallery or the new one.

Embeddings of people are biometric data, so folders have the mode 0700 and files 0600.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from safetensors import SafetensorError

from reid.errors import DataError, GalleryError, WeightsError
from reid.files import Writer, is_part, locked, sync, write_whole
from reid.records import Modality, Sample, Split

HEADER = "header.json"
FORMAT = "reid-gallery"
VERSION = 1
DATA_FILE = "data-*"  # pattern of all data files, including those of unfinished generations
REBUILD = 'build it again with "reid index build"'

_COLUMNS = ("path", "identity", "camera", "modality", "domain", "split", "time")


def encode_samples(samples: Sequence[Sample]) -> bytes:
    """Write samples as a Parquet table.

    Args:
        samples: The samples; their paths are kept as they are.

    Returns:
        The bytes of the table, one row for each sample, in the same order.

    Raises:
        DataError: A path or a label is not valid Unicode.
    """
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
    """Read samples that :func:`encode_samples` wrote.

    Args:
        data: The bytes of the table.
        source: The file they come from, for the message of an error.

    Returns:
        The samples.

    Raises:
        DataError: The bytes are damaged or something else.

    Example:
        >>> samples = (Sample(Path("1.jpg"), "anna", "door"),)
        >>> decode_samples(encode_samples(samples), Path("table")) == samples
        True
    """
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
        raise DataError(f"{source}: the table of samples is damaged ({first_line(error)})") from error


def write_private(path: Path, write: Writer) -> None:
    """Write a private file with :func:`reid.files.write_whole`; every failure to write is an OSError.

    Args:
        path: The file.
        write: Writes to the path that it is called with, by any library.

    Raises:
        OSError: The file cannot be written, for example because the disk is full.
    """
    try:
        write_whole(path, write)
    except (SafetensorError, RuntimeError) as error:  # what safetensors and faiss raise
        raise OSError(errno.EIO, first_line(error), str(path)) from error
    except WeightsError as error:  # raised by the writer of a network that is kept beside the vectors
        raise OSError(errno.EIO, first_line(error.__cause__ or error), str(path)) from error


def check_gallery_folder(folder: Path) -> None:
    """Check that a gallery can be written to a folder, before the work of building it begins.

    Args:
        folder: The folder; it is made if it is missing.

    Raises:
        GalleryError: The folder cannot be written to, or it holds files of something else.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(folder):
            _check_replaceable(folder, None)
            TemporaryFile(dir=folder).close()
    except OSError as error:
        raise GalleryError(_unwritable(folder, error)) from error


def _unwritable(folder: Path, error: OSError) -> str:
    return (
        f"{folder}: the gallery cannot be written ({error.strerror or error}); choose another folder or free some space"
    )


def write_gallery_folder(
    folder: Path, writers: Mapping[str, Writer], facts: Mapping[str, Any], replaces: str | None = None
) -> dict[str, Any]:
    """Write a new generation of a gallery and remove the old one.

    Args:
        folder: The folder of the gallery; it is made if it is missing.
        writers: The writer of each data file, by the suffix of its name.
        facts: Further entries of the header.
        replaces: The generation that the new one was derived from. If the folder holds another generation by now,
            nothing is written, because that would undo a change by another program. None replaces any generation.

    Returns:
        The header of the new generation.

    Raises:
        GalleryError: The folder cannot be written to, holds files of something else or holds another generation.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(folder):
            _check_replaceable(folder, replaces)
            folder.chmod(0o700)
            return _write_generation(folder, writers, facts)
    except OSError as error:
        raise GalleryError(_unwritable(folder, error)) from error


def _write_generation(folder: Path, writers: Mapping[str, Writer], facts: Mapping[str, Any]) -> dict[str, Any]:
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
        with suppress(GalleryError):  # a damaged header is reported when it is read
            _remove_unlisted_files(folder)
    return header


@contextmanager
def open_gallery_folder(folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, Path]]]:
    """Check the files of a gallery and keep them in place during the ``with`` block.

    Args:
        folder: The folder of the gallery.

    Yields:
        The header, and the data files by the suffix of their names.

    Raises:
        GalleryError: The gallery is missing, incomplete or damaged, or it cannot be read.
    """
    if not folder.is_dir():
        raise GalleryError(f'{folder}: no gallery there; build one with "reid index build"')
    try:
        with locked(folder, shared=True):
            header = _read_header(folder)
            with suppress(OSError):  # a gallery in a read-only folder can still be searched
                _remove_unlisted_files(folder)
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
        with locked(folder, shared=True):
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
        raise GalleryError(
            f"{folder}: not a gallery, or one that was not written to its end: there is no {HEADER}; {REBUILD}"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GalleryError(f"{folder}: {HEADER} is damaged ({first_line(error)}); {REBUILD}") from error
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
        foreign = [path.name for path in folder.iterdir() if not _is_data_file(path)]
        if foreign:
            raise GalleryError(f'{folder}: holds "{min(foreign)}" and is no gallery; choose an empty folder')
    if replaces is not None and _read_header(folder)["generation"] != replaces:
        raise GalleryError(f"{folder}: the gallery was changed by another program; open it again, then repeat")


def _is_data_file(path: Path) -> bool:
    return path.match(DATA_FILE) or is_part(path)


def _remove_unlisted_files(folder: Path) -> None:
    """Remove data files that the header does not list, because an erased identity must not survive in them.

    The caller holds a lock, so nobody is writing such a file: the program that wrote it was stopped.
    """
    used: set[str] = set()
    if (folder / HEADER).exists():
        used = {entry["name"] for entry in _read_header(folder)["files"].values()}
    unlisted = [path for path in folder.iterdir() if _is_data_file(path) and path.name not in used]
    for path in unlisted:
        path.unlink()
    if unlisted:
        sync(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; the name of its type when the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]
