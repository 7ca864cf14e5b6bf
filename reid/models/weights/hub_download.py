"""Download of one file from the Hugging Face hub with the package huggingface_hub (extra "hub").

The package reads the user's own settings: a token for files behind a licence, a proxy, or that there is no connection.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reid.errors import WeightsError

SHA256_DIGITS = 64
HOST = "huggingface.co"
TIMEOUT = 30.0  # seconds without an answer


def hub_client() -> Any:
    """Return the package huggingface_hub, or None where it is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.errors  # its errors are no attribute before they are imported
    except ImportError:
        return None
    return huggingface_hub


def download_from_hub(
    client: Any, repository: str, file: str, part: Path, progress: Callable[[int, int | None], object] | None = None
) -> str:
    """Download a file, and ask the hub for its hash.

    Args:
        client: The package huggingface_hub.
        repository: The repository, "owner/name".
        file: The file in it.
        part: Where to write it.
        progress: Is called with the bytes so far and, where it is known, their total.

    Returns:
        The SHA-256 that the hub states for the file, 64 hex digits, or "" where it states none.

    Raises:
        WeightsError: If the hub cannot be reached, or does not give out the file.
    """
    failures = (OSError, getattr(client.errors, "HTTPError", OSError))
    try:
        metadata = client.get_hf_file_metadata(client.hf_hub_url(repository, file), timeout=TIMEOUT)
        if progress is not None:
            progress(0, metadata.size)
        with tempfile.TemporaryDirectory(dir=part.parent) as folder:
            # exactly the version whose hash was stated
            found = client.hf_hub_download(repository, file, revision=metadata.commit_hash, local_dir=folder)
            shutil.move(found, part)
    except failures as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"{HOST} does not give out {repository}/{file} ({first}); files behind a licence need an account that"
            " accepted it: log in with the command hf auth login"
        ) from error
    if progress is not None:
        progress(part.stat().st_size, metadata.size)
    stated = (metadata.etag or "").strip('"')
    return stated if len(stated) == SHA256_DIGITS else ""
