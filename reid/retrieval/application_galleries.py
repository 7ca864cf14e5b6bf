"""The galleries that the application keeps beside each other, which may hold the same images."""

from __future__ import annotations

from pathlib import Path

from reid.errors import ReidError
from reid.retrieval.embed import load_embeddings
from reid.retrieval.gallery_header import HEADER
from reid.retrieval.storage import QUERIES_FILE
from reid.retrieval.stored_gallery import read_gallery

APPLICATION_GALLERIES = ("street", "street-plain", "street-small-camera", "street-small-plain")


def application_folders(folder: Path) -> list[Path]:
    """Return the other folders beside a gallery of the application that may hold its galleries."""
    name = folder.resolve().name
    if name not in APPLICATION_GALLERIES:
        return []
    parent = folder.parent if folder.name == name else folder.resolve().parent
    return [parent / other for other in APPLICATION_GALLERIES if other != name]


def galleries_beside(folder: Path) -> list[Path]:
    """Return the application's other galleries that share images with this one; a damaged one may do so as well."""
    beside = [one for one in application_folders(folder) if (one / HEADER).exists()]
    own = _paths_in(folder) if beside else None
    return [one for one in beside if (paths := _paths_in(one)) is None or not own or not own.isdisjoint(paths)]


def _paths_in(folder: Path) -> set[str] | None:
    """Return the paths of all images in a gallery and its file of queries; None where nothing can be read."""
    paths: set[str] = set()
    try:
        paths |= set(read_gallery(folder).kept_table().column("path").to_pylist())
        paths |= {str(sample.path) for sample in load_embeddings(folder / QUERIES_FILE).samples}
    except ReidError:
        pass
    return paths or None
