"""The gallery as a file that an administrator downloads: what ``reid index export`` writes."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from reid.app.accounts import User
from reid.app.gallery_service import GalleryService
from reid.errors import ConfigError, unknown_name
from reid.files import make_output_folder
from reid.retrieval.exchange import export_rows

FORMATS = {"parquet": "Parquet", "npz": "NumPy", "safetensors": "safetensors"}
EXPORTS = "exports"  # subfolder of the state folder
LEFT_SECONDS = 3600  # after which a file that was not removed after its download is


def write_export(service: GalleryService, user: User, suffix: str) -> Path:
    """Write vectors and rows of the gallery to a private file, which whoever sends it removes.

    Args:
        service: The gallery.
        user: Who asks for it; written to the log.
        suffix: A key of ``FORMATS``.

    Returns:
        The file.

    Raises:
        ConfigError: The format is unknown.
        DataError: The gallery has no rows.
    """
    if suffix not in FORMATS:
        raise ConfigError(unknown_name("format", suffix, FORMATS))
    folder = make_output_folder(service.state_folder / EXPORTS, 0o700)
    for left in folder.iterdir():
        if left.stat().st_mtime < time.time() - LEFT_SECONDS:
            left.unlink(missing_ok=True)
    service.audit.record("export", user.name, {"format": suffix})
    out = folder / f"{secrets.token_hex(8)}.{suffix}"
    export_rows(service.folder, out)
    return out
