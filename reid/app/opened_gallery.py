"""Open the gallery of a user for the application: any folder that ``reid index`` writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reid.app.gallery_network import read_network
from reid.app.served_data import ServedData, ServedGallery
from reid.app.site_data import QueryCrops, SiteData, categories_by_size
from reid.errors import ConfigError
from reid.models.checkpoint import Checkpoint
from reid.models.execution import current_execution
from reid.pipeline import load_checkpoint
from reid.records import Sample
from reid.retrieval.gallery import Gallery
from reid.retrieval.query_file import load_queries
from reid.retrieval.row_table import RowTable
from reid.retrieval.storage import QUERIES_FILE, check_gallery, stamp_of


def open_served_gallery(
    folder: Path, weights: Path | None = None, backbone: str | None = None, profiles: Sequence[Path] = ()
) -> ServedData:
    """Open a gallery as it is, with or without queries, identities, cameras and a network.

    Args:
        folder: The folder of the gallery.
        weights: The weights that it was built with; None takes the network that it holds.
        backbone: The name of the network of ``weights``, where they do not say it.
        profiles: Files of camera profiles of ``weights``.

    Returns:
        One site, which has the name of the folder or of the one around it, and the gallery. Its queries are offered to
        search with; where it has none, its own crops are.

    Raises:
        GalleryError: The gallery is missing or damaged.
        ConfigError: Another network than that of ``weights`` built the gallery.
    """
    check_gallery(folder)
    stamp = stamp_of(folder)
    gallery = Gallery.open(folder)
    checkpoint = _network_of(folder, gallery, weights, backbone, profiles)
    queries = load_queries(folder) if (folder / QUERIES_FILE).exists() else None
    if queries is not None and queries.fingerprint != gallery.fingerprint:
        queries = None  # they were embedded by another network, so they cannot be compared
    name = _name_of(folder)
    tables = [gallery.table] if queries is None else [gallery.table, RowTable.from_samples(queries.samples)]
    served = ServedGallery(name, categories_by_size(*tables), checkpoint, gallery, queries, folder, stamp)
    return ServedData([served], lambda galleries: _read_site(name, galleries[0]))


def _network_of(
    folder: Path, gallery: Gallery, weights: Path | None, backbone: str | None, profiles: Sequence[Path]
) -> Checkpoint | None:
    if weights is None and not profiles:
        return read_network(folder, current_execution())
    checkpoint = load_checkpoint(weights, backbone, None, profiles)
    if checkpoint.fingerprint != gallery.fingerprint:
        raise ConfigError(
            f'{folder}: was built with "{gallery.fingerprint}", and these weights are "{checkpoint.fingerprint}"; leave'
            " out --weights and --profiles, or build the gallery with them"
        )
    return checkpoint


def _name_of(folder: Path) -> str:
    """Return the name of a gallery on the page: that of its folder, or of the folder around one named "gallery".

    Example:
        >>> _name_of(Path("/srv/shop-reid/gallery")), _name_of(Path("/srv/galleries/shop"))
        ('shop', 'shop')
    """
    folder = folder.resolve()
    around = folder.parent.name.removesuffix("-reid")
    return around if folder.name == "gallery" and around else folder.name


def _read_site(name: str, served: ServedGallery) -> tuple[Sequence[SiteData], QueryCrops]:
    table, queries = served.gallery.table, served.queries
    samples: Sequence[Sample] = table.samples
    if queries is None or not len(queries):
        crops = QueryCrops(table, np.zeros(len(table), np.int64), [name], are_gallery_rows=True)
    else:
        samples = (*queries.samples, *samples)
        crops = QueryCrops(RowTable.from_samples(queries.samples), np.zeros(len(queries), np.int64), [name])
    return [SiteData(name, samples)], crops
