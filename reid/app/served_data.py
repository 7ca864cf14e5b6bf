"""What the application shows: sites with their cameras, galleries, and the crops that it offers as queries.

Other programs may change a gallery while the application runs. It reads a gallery again before it answers, so that
additions answer and erased rows do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import Lock

import numpy as np

from reid.app.gallery_network import read_changed
from reid.app.site_data import QueryCrops, SiteData
from reid.errors import DataError, GalleryError, ReidError
from reid.evaluation import Report, evaluate
from reid.models.checkpoint import Checkpoint
from reid.records import Embeddings, Sample
from reid.retrieval.gallery import Gallery
from reid.retrieval.query_file import load_queries
from reid.retrieval.storage import stamp_of

NO_QUERIES = "there is nothing to score: no queries with known identities came with these data"


@dataclass(frozen=True)
class ServedGallery:
    """A gallery with its network and its queries.

    Args:
        title: The heading on the page, such as "Camera BN".
        categories: The categories that may be searched for in it.
        checkpoint: The network, with statistics for the cameras of every site; None where the gallery holds none, so
            that only its own crops can be searched for.
        gallery: The crops of every site.
        queries: The embeddings of the queries of every site; None where there are none.
        folder: The folder of the gallery.
        stamp: Of the folder, before it was read.
        is_compared: Whether it is only shown when the visitor asks to compare networks.
    """

    title: str
    categories: tuple[str, ...]
    checkpoint: Checkpoint | None
    gallery: Gallery
    queries: Embeddings | None
    folder: Path
    stamp: tuple[object, ...]
    is_compared: bool = False

    def current(self) -> ServedGallery:
        """Return this gallery as its folder holds it now, without what another program has erased from it.

        Where its network was changed, such as by a new camera, that network embeds the queries from now on.

        Raises:
            ReidError: The folder can no longer be read, or holds rows of a network that it does not hold.
        """
        stamp = stamp_of(self.folder)
        if stamp == self.stamp:
            return self
        checkpoint = self.checkpoint
        if checkpoint is None:
            gallery = self.gallery.reopened()
            if gallery.fingerprint != self.gallery.fingerprint:
                raise GalleryError(
                    f"{self.folder.name}: another program built this gallery again; start the page again"
                )
        else:
            gallery, checkpoint = read_changed(self.gallery, self.folder, checkpoint)
        queries = None if self.queries is None else load_queries(self.folder)
        if queries is not None and queries.fingerprint != gallery.fingerprint:
            queries = queries.select(np.zeros(len(queries), np.bool_))  # until they are embedded again
        more = tuple(name for name in gallery.table.distinct("category") if name not in self.categories)
        categories = self.categories if self.is_compared else (*self.categories, *more)
        return replace(
            self, gallery=gallery, checkpoint=checkpoint, queries=queries, stamp=stamp, categories=categories
        )

    @cached_property
    def embeddings(self) -> Embeddings:
        """The gallery's samples with their vectors, in the order of its rows."""
        return self.gallery.embeddings

    @cached_property
    def query_rows(self) -> dict[Sample, int]:
        """The position of each query in ``queries``."""
        samples = () if self.queries is None else self.queries.samples
        return {sample: row for row, sample in enumerate(samples)}

    def score_site(self, site: SiteData) -> Report:
        """Score the queries of ``site`` against the gallery rows of the same site.

        Raises:
            DataError: There are no queries.
        """
        if self.queries is None:
            raise DataError(NO_QUERIES)
        of_site = set(site.samples)
        parts = [
            part.select(np.array([sample in of_site for sample in part.samples], dtype=np.bool_))
            for part in (self.queries, self.embeddings)
        ]
        samples = parts[0].samples + parts[1].samples
        vectors = np.concatenate([part.vectors for part in parts])
        return evaluate(Embeddings(samples, vectors, self.gallery.fingerprint), protocol=site.name)


ReadSites = Callable[[Sequence[ServedGallery]], tuple[Sequence[SiteData], QueryCrops]]
"""Returns the sites and the crops that are offered as queries, for the galleries as they are now."""


@dataclass(frozen=True)
class _Contents:
    galleries: tuple[ServedGallery, ...]
    sites: tuple[SiteData, ...]
    query_crops: QueryCrops


class ServedData:
    """What the pages show: sites, and a gallery of all sites for each network.

    Args:
        galleries: The galleries, as they were opened; the first one is the main one.
        read_sites: Returns the sites and the query crops.
        site_folders: The name of the site of the images in a folder and below it; without any, there is one site.
    """

    def __init__(
        self, galleries: Sequence[ServedGallery], read_sites: ReadSites, site_folders: dict[Path, str] | None = None
    ) -> None:
        self.version = 0  # grows when a gallery has changed on disk
        self._read_sites = read_sites
        self._site_folders = site_folders or {}
        self._contents = _Contents(tuple(galleries), *self._sites_of(galleries))
        self._site_names = {
            sample.path: site.name
            for site in (self._contents.sites if self._site_folders else ())
            for sample in site.samples
        }
        self._lock = Lock()

    @property
    def galleries(self) -> tuple[ServedGallery, ...]:
        """The galleries as their folders hold them now; those that have changed are read again.

        Raises:
            ReidError: A gallery has changed and cannot be read, so nothing may be answered from what it was.
        """
        return self._current().galleries

    @property
    def main(self) -> ServedGallery:
        """The main gallery, as its folder holds it now."""
        return self._current().galleries[0]

    @property
    def sites(self) -> tuple[SiteData, ...]:
        """The sites without the crops of identities that were erased.

        Raises:
            ReidError: A gallery or its list of erased identities cannot be read.
        """
        return self._current().sites

    @property
    def query_crops(self) -> QueryCrops:
        """The crops that are offered as queries; no crop of an identity that was erased is among them."""
        return self._current().query_crops

    @property
    def state(self) -> int | None:
        """A number that changes when another program has changed a gallery; None while one cannot be read."""
        try:
            return self.version if self.galleries else None
        except ReidError:
            return None

    @property
    def has_several_sites(self) -> bool:
        """Whether there is more than one site."""
        return len(self._contents.sites) > 1

    def site_of(self, sample: Sample) -> str:
        """Return the name of the site of a sample; "" where it belongs to none."""
        if not self._site_folders:
            return self._contents.sites[0].name
        known = self._site_names.get(sample.path)
        if known is not None:
            return known
        return next((self._site_folders[one] for one in sample.path.parents if one in self._site_folders), "")

    def _sites_of(self, galleries: Sequence[ServedGallery]) -> tuple[tuple[SiteData, ...], QueryCrops]:
        sites, crops = self._read_sites(galleries)
        return tuple(sites), crops

    def _current(self) -> _Contents:
        with self._lock:
            old = self._contents.galleries
            current = tuple(served.current() for served in old)
            if any(new is not before for new, before in zip(current, old, strict=True)):
                self._contents = _Contents(current, *self._sites_of(current))
                self.version += 1
            return self._contents
