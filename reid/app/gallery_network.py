"""The network of a gallery, read together with the rows that it embedded."""

from __future__ import annotations

from pathlib import Path

from reid.errors import GalleryError
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.models.execution import Execution, as_stored
from reid.pipeline import NETWORK
from reid.retrieval.folder_reading import read_attached
from reid.retrieval.gallery import Gallery
from reid.retrieval.kept_site import with_site_of

ATTEMPTS = 20  # of reading rows and network, where another program writes both anew meanwhile


def read_network(folder: Path, execution: Execution) -> Checkpoint | None:
    """Read the network that a gallery holds, with the crops of its cameras.

    Args:
        folder: The folder of the gallery.
        execution: Where and how the network runs; precision and decoder are those that the gallery was built with.

    Returns:
        The network; None where the gallery holds none.

    Raises:
        GalleryError: The gallery is missing or damaged.
        ConfigError: The network cannot run like that.
    """
    checkpoint = read_attached(folder, NETWORK, load_checkpoint)
    if checkpoint is None:
        return None
    return with_site_of(checkpoint.with_execution(as_stored(execution, checkpoint.extra, str(folder))), folder)


def read_changed(gallery: Gallery, folder: Path, known: Checkpoint) -> tuple[Gallery, Checkpoint]:
    """Read a gallery again after another program may have given it another network.

    Args:
        gallery: The gallery as it was read before.
        folder: Its folder.
        known: The network that embedded its rows before.

    Returns:
        The gallery, and the network that embedded its rows: the known one, or that of the folder where "reid index
        refresh" or an added camera has changed it.

    Raises:
        GalleryError: The gallery cannot be read, or other rows than those of its network are in it.
    """
    for _ in range(ATTEMPTS):
        now = gallery.reopened()
        if now.fingerprint == known.fingerprint:
            return now, known
        checkpoint = read_network(folder, known.execution)
        if checkpoint is None:
            break
        if checkpoint.fingerprint == now.fingerprint:
            return now, checkpoint
    raise GalleryError(
        f"{folder.name}: another program built this gallery again with a network that it does not hold; start the page"
        " again with its weights"
    )
