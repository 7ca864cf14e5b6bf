"""Data of the machine that a user may name: only what lies below the folders that the operator allows."""

from __future__ import annotations

from pathlib import Path

from reid.app.gallery_service import GalleryService
from reid.errors import DataError


def find_source(service: GalleryService, text: str) -> Path:
    """Find data that a user names, below one of the folders that are allowed.

    Args:
        service: The gallery.
        text: An absolute path, or one below an allowed folder.

    Returns:
        The path without links.

    Raises:
        DataError: There is no such file or folder below an allowed one; the message does not say which of both.
    """
    if not text.strip():
        raise DataError("source: expected a manifest, a folder of crops or a video below --import-folder")
    if not service.sources:
        raise DataError("no folder to read data from is allowed; start the application with --import-folder FOLDER")
    for folder in service.sources:
        try:
            path = (folder / text).resolve()
            if path.is_relative_to(folder) and path.exists():
                return path
        except (OSError, ValueError, RuntimeError):
            continue
    raise DataError("there is no such file or folder below those that are allowed (--import-folder)")
