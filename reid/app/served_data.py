"""What the application shows: data sites, galleries and embeddings of their queries.

Galleries are computed once and used again at the next start, as long as the weights and the data that they were
computed from are the same. Identities that were erased from one of them are left out of all of them; a running
application notices an erasure before it answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import Lock

import numpy as np
import typer

from reid.app.data_digest import digest_of_data
from reid.data.manifest import read_manifest
from reid.data.street.generation import StreetPlan
from reid.errors import DataError, GalleryError, ReidError, WeightsError
from reid.evaluation import Report, evaluate
from reid.files import remove_partial_files
from reid.models.checkpoint import Checkpoint
from reid.old_names import current_experiment
from reid.pipeline import (
    DEFAULT_DATA,
    DEFAULT_GALLERY,
    build_gallery,
    embed_samples,
    gallery_checkpoint,
    load_checkpoint,
    make_street,
    shipped_weights,
    with_unseen_cameras,
)
from reid.records import Embeddings, Sample, Split
from reid.retrieval.application_galleries import APPLICATION_GALLERIES
from reid.retrieval.gallery import Gallery
from reid.retrieval.query_file import load_queries, save_queries
from reid.retrieval.storage import stamp_of
from reid.retrieval.tombstones import Tombstones, read_tombstones, without_erased
from reid.structured_text import parse_toml

MANIFEST = "manifest.csv"
DATA_KEY = "data"  # key of a checkpoint's free text: the digest of the data that its gallery was built from
CAMERA_BN, PLAIN_BN = "Camera BN", "Plain BN"


def compared_weights() -> dict[str, Path]:
    """Return the shipped pair to compare: one small network, trained with camera BN and with plain BN."""
    shipped = shipped_weights()
    return {
        "Small, camera BN": shipped.with_name("small-camera.safetensors"),
        "Small, plain BN": shipped.with_name("small-plain.safetensors"),
    }


@dataclass(frozen=True)
class SiteData:
    """The samples of one manifest: a site with its cameras."""

    name: str
    samples: tuple[Sample, ...]

    @cached_property
    def cameras(self) -> tuple[Sample, ...]:
        """One sample for each pair of a category and a camera, sorted by (category, camera)."""
        examples = {(sample.category, sample.camera): sample for sample in self.samples}
        return tuple(examples[key] for key in sorted(examples))


@dataclass(frozen=True)
class ServedGallery:
    """A network with its gallery and its queries.

    Args:
        title: The heading on the page, such as "Camera BN".
        categories: The categories that the network was trained on; the gallery holds no others.
        checkpoint: The network, with statistics for the cameras of every site.
        gallery: The gallery crops of every site.
        queries: The embeddings of the queries of every site.
        folder: The folder of the gallery.
        stamp: Of the folder, before it was read.
    """

    title: str
    categories: tuple[str, ...]
    checkpoint: Checkpoint
    gallery: Gallery
    queries: Embeddings
    folder: Path
    stamp: tuple[object, ...]

    def current(self) -> ServedGallery:
        """Return this gallery as its folder holds it now, without what another program has erased from it.

        Raises:
            ReidError: The folder can no longer be read, or another network built its gallery again.
        """
        stamp = stamp_of(self.folder)
        if stamp == self.stamp:
            return self
        gallery, queries = self.gallery.reopened(), load_queries(self.folder)
        if not gallery.fingerprint == queries.fingerprint == self.checkpoint.fingerprint:
            raise GalleryError(f"{self.folder.name}: another program built this gallery again; start the page again")
        return replace(self, gallery=gallery, queries=queries, stamp=stamp)

    @cached_property
    def embeddings(self) -> Embeddings:
        """The gallery's samples with their vectors, in the order of its rows."""
        return self.gallery.embeddings

    def score_site(self, site: SiteData) -> Report:
        """Score the queries of ``site`` against the gallery rows of the same site."""
        of_site = set(site.samples)
        parts = [
            part.select(np.array([sample in of_site for sample in part.samples], dtype=np.bool_))
            for part in (self.queries, self.embeddings)
        ]
        samples = parts[0].samples + parts[1].samples
        vectors = np.concatenate([part.vectors for part in parts])
        return evaluate(Embeddings(samples, vectors, self.checkpoint.fingerprint), protocol=site.name)


class ServedData:
    """What the pages show: sites, and a gallery of all sites for each network.

    Args:
        sites: The sites.
        galleries: The galleries, as they were opened.
    """

    def __init__(self, sites: Sequence[SiteData], galleries: Sequence[ServedGallery]):
        self.sites = tuple(sites)
        self.version = 0  # grows when a gallery has changed on disk
        self._galleries = tuple(galleries)
        self._erased_queries: frozenset[int] | None = None
        self._lock = Lock()

    @property
    def galleries(self) -> tuple[ServedGallery, ...]:
        """The galleries as their folders hold them now; those that have changed are read again.

        Raises:
            ReidError: A gallery has changed and cannot be read, so nothing may be answered from what it was.
        """
        with self._lock:
            current = tuple(served.current() for served in self._galleries)
            if any(new is not old for new, old in zip(current, self._galleries, strict=True)):
                self._galleries, self.version, self._erased_queries = current, self.version + 1, None
            return current

    @property
    def erased_queries(self) -> frozenset[int]:
        """The indices in ``queries`` of the crops whose identities were erased; no page shows them.

        All are, where the galleries cannot be read.
        """
        try:
            galleries = self.galleries
        except ReidError:
            return frozenset(range(len(self.queries)))
        if self._erased_queries is None:
            kept = {*without_erased([s for _, s in self.queries], [read_tombstones(one.folder) for one in galleries])}
            self._erased_queries = frozenset(key for key, (_, s) in enumerate(self.queries) if s not in kept)
        return self._erased_queries

    @property
    def state(self) -> int | None:
        """A number that changes when another program has changed a gallery; None while one cannot be read."""
        try:
            return self.version if self.galleries else None
        except ReidError:
            return None

    @property
    def current_sites(self) -> tuple[SiteData, ...]:
        """The sites without the crops of identities that were erased.

        Raises:
            ReidError: A gallery or its list of erased identities cannot be read.
        """
        tombstones = [read_tombstones(one.folder) for one in self.galleries]
        return tuple(SiteData(site.name, without_erased(site.samples, tombstones)) for site in self.sites)

    @cached_property
    def queries(self) -> tuple[tuple[SiteData, Sample], ...]:
        """Every query with its site; a page names a query by its index in this tuple."""
        return tuple((site, s) for site in self.sites for s in site.samples if s.split is Split.QUERY)

    @cached_property
    def site_of(self) -> dict[Path, str]:
        """The name of the site by the path of an image."""
        return {sample.path: site.name for site in self.sites for sample in site.samples}

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """The categories of the queries, in the order of their first appearance."""
        return tuple(dict.fromkeys(sample.category for _, sample in self.queries))


def prepare_data(
    data: Path, galleries: Path, weights: Path | None = None, plain: Path | None = None, identities: int | None = None,
    profiles: Sequence[Path] = (),
) -> ServedData:  # fmt: skip
    """Prepare all that the application shows, and compute what is missing or out of date.

    Args:
        data: A folder whose subfolders hold a manifest each; the synthetic street is made where there is none.
        galleries: The folder for the computed galleries.
        weights: The weights to show; None takes the shipped ones.
        plain: Plain-BN weights to compare with; None takes the shipped pair of :func:`compared_weights`.
        identities: The number of test people at each site of a new street; None takes the default street.
        profiles: Files of camera profiles of ``weights``.

    Returns:
        The sites and one gallery for each network.

    Raises:
        WeightsError: A weights file is missing or cannot be read.
        DataError: The data hold no query, or an image cannot be read.
    """
    files = {CAMERA_BN: weights or shipped_weights(), **({PLAIN_BN: plain} if plain else compared_weights())}
    # Weights come first: without them there is no need to make a street.
    loaded = {
        title: load_checkpoint(path, profiles=profiles if title == CAMERA_BN else ()) for title, path in files.items()
    }
    manifests = find_or_make_manifests(data, identities)
    tombstones = [read_tombstones(galleries / name) for name in APPLICATION_GALLERIES]
    sites = _read_sites(manifests, tombstones, galleries)
    samples = tuple(sample for site in sites for sample in site.samples)
    if not any(sample.split is Split.QUERY for sample in samples):
        raise DataError(f'{data}: no row of split "query"; the application needs queries to search with')
    digest = digest_of_data(manifests)
    served = [
        _open_or_build(title, checkpoint, samples, galleries / _folder_name(title), digest)
        for title, checkpoint in loaded.items()
    ]
    return ServedData(sites, served)


def _read_sites(manifests: Sequence[Path], tombstones: Sequence[Tombstones], galleries: Path) -> list[SiteData]:
    """Read the manifests without erased identities, and say how many rows are left out."""
    sites, left_out = [], 0
    for path in manifests:
        every_sample = read_manifest(path)
        samples = without_erased(every_sample, tombstones)
        left_out += len(every_sample) - len(samples)
        sites.append(SiteData(path.parent.name, samples))
    if left_out:
        typer.echo(
            f'{galleries}: left out {left_out} rows of erased identities; "reid index restore" lifts an erasure',
            err=True,
        )
    return sites


def _folder_name(title: str) -> str:
    """Name the folder of a gallery: "street" for the main one, "street-plain" for "Plain BN"."""
    if title == CAMERA_BN:
        return DEFAULT_GALLERY.name
    words = [word for word in title.lower().replace(",", "").split() if word != "bn"]
    return "-".join([DEFAULT_GALLERY.name, *words])


def _trained_categories(checkpoint: Checkpoint, samples: Sequence[Sample]) -> tuple[str, ...]:
    """Read the categories from the experiment of the weights; without an experiment, take those of ``samples``."""
    text = checkpoint.extra.get("experiment")
    # Only this key is read: an experiment of an earlier version may hold keys that are unknown today.
    try:
        data = current_experiment(parse_toml(text), "weights").get("data", {}) if text else {}
        trained = tuple(map(str, data.get("categories", ())))
    except (ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{checkpoint.source}: the experiment in the header is damaged ({error})") from error
    return trained or tuple(dict.fromkeys(sample.category for sample in samples))


def find_or_make_manifests(data: Path, identities: int | None = None) -> list[Path]:
    """Find the manifests in the subfolders of ``data``, or make the synthetic street there.

    A folder of the user's own is taken as it is. The street is made or completed in a folder without manifests, in
    the default folder, and where a number of identities is given.

    Args:
        data: The folder.
        identities: The number of test people at each site of the street; None takes the default street.

    Returns:
        Absolute paths of the manifests, sorted by site.
    """
    data = data.resolve()
    found = sorted(data.glob(f"*/{MANIFEST}"))
    if found and identities is None and data != DEFAULT_DATA.resolve():
        return found
    return make_street(data, StreetPlan() if identities is None else StreetPlan.of(identities))


def _open_or_build(
    title: str, loaded: Checkpoint, every_sample: Sequence[Sample], folder: Path, digest: str
) -> ServedGallery:
    """Open the gallery in ``folder``; build it where it is missing, damaged or out of date."""
    categories = _trained_categories(loaded, every_sample)
    samples = [sample for sample in every_sample if sample.category in categories]
    # with profiles, the fingerprint is another than that of the weights
    digest = digest if loaded.fingerprint == loaded.weights else f"{digest}-{loaded.fingerprint}"
    if current := _open_if_current(title, categories, folder, samples, loaded.weights, digest):
        remove_partial_files(folder)  # of an earlier start that was killed
        return current
    named = replace(loaded, extra={**loaded.extra, DATA_KEY: digest})
    checkpoint = with_unseen_cameras(named, samples, "calibrate")
    query_samples = [sample for sample in samples if sample.split is Split.QUERY]
    queries = embed_samples(checkpoint, query_samples, f"{title}: queries")
    gallery = build_gallery(checkpoint, samples, folder)
    queries = save_queries(folder, queries)
    return ServedGallery(title, categories, checkpoint, gallery, queries, folder, stamp_of(folder))


def _open_if_current(
    title: str, categories: tuple[str, ...], folder: Path, samples: Sequence[Sample], weights: str, digest: str
) -> ServedGallery | None:
    """Open the gallery in ``folder`` if it was built from these weights and data; else return None and warn.

    Rows may be missing from it, because identities that were erased from a gallery stay erased, and it may have others,
    because "reid index add" gives it further crops.
    """
    if not folder.exists():
        return None
    try:
        stamp = stamp_of(folder)
        checkpoint, gallery = gallery_checkpoint(folder), Gallery.open(folder)
        gallery.verify()  # otherwise damaged vectors would show when a visitor searches
        queries = load_queries(folder)
        lifted = read_tombstones(folder).lifted
    except ReidError as error:
        typer.echo(f"{folder}: building it again ({error})", err=True)
        return None
    is_current = (
        (checkpoint.weights, checkpoint.extra.get(DATA_KEY)) == (weights, digest)
        and checkpoint.fingerprint == gallery.fingerprint == queries.fingerprint
        and set(queries.samples) <= set(samples)
        and not lifted
    )
    if not is_current:
        reason = "an erasure was lifted" if lifted else "built from other weights or data"
        typer.echo(f"{folder}: {reason}; building it again", err=True)
        return None
    return ServedGallery(title, categories, checkpoint, gallery, queries, folder, stamp)
