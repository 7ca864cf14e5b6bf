"""Read files of a gallery folder while other programs may write to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from reid.errors import GalleryError
from reid.retrieval.gallery_header import header_if_readable, read_header
from reid.retrieval.segments import checked_file

ATTEMPTS = 50  # of a reader, while a writer replaces the files that it is about to open

_T = TypeVar("_T")


def read_gallery_folder(folder: Path, read: Callable[[dict[str, Any]], _T]) -> _T:
    """Read something of a gallery while other programs may write to it.

    Args:
        folder: The folder of the gallery.
        read: Reads the files that the header lists; it is called again where a writer has replaced them meanwhile.

    Raises:
        GalleryError: The gallery is missing, incomplete or damaged, or it cannot be read.
    """
    for attempt in range(ATTEMPTS):
        header = read_header(folder)
        try:
            return read(header)
        except (GalleryError, OSError) as error:
            now = header_if_readable(folder)
            if attempt + 1 < ATTEMPTS and now is not None and now["generation"] != header["generation"]:
                continue
            if isinstance(error, OSError):
                raise GalleryError(f"{folder}: the gallery cannot be read ({error.strerror or error})") from error
            raise
    raise GalleryError(f"{folder}: the gallery changes faster than it can be read; try again")


def read_attached(folder: Path, suffix: str, read: Callable[[Path], _T]) -> _T | None:
    """Read a file that belongs to a gallery as a whole, such as its network, after its checksum was compared.

    Args:
        folder: The folder of the gallery.
        suffix: The suffix of the name of the file.
        read: Reads the file.

    Returns:
        What ``read`` returns; None where the gallery has no such file.

    Raises:
        GalleryError: The gallery is missing or damaged.
    """

    def read_checked(header: dict[str, Any]) -> _T | None:
        entry = header["files"].get(suffix)
        return None if entry is None else read(checked_file(folder, entry))

    return read_gallery_folder(folder, read_checked)
