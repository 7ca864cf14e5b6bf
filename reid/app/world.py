"""Everything the demo needs before it can serve: data, two galleries, embeddings; made once, reused after.

Knows files and pipelines; it knows no page.  What can be reused is decided by what it was made from, never
by its being there.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import typer

from reid.data.manifest import read_manifest
from reid.data.street.generation import PLAN_FILE, StreetPlan
from reid.errors import DataError, ReidError
from reid.evaluation import Report, evaluate
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
from reid.retrieval.embed import load_embeddings, save_embeddings
from reid.retrieval.gallery import Gallery

MANIFEST = "manifest.csv"
QUERIES_FILE = "queries.safetensors"  # in a gallery's folder: embeddings of the query rows
DATA = "data"  # key of the network's free text: what its gallery was made from
CAMERA_BN, PLAIN_BN = "Camera BN", "Plain BN"


def compared_weights() -> dict[str, Path]:
    """What is compared by default: a small network trained twice alike, but for its normalization."""
    shipped = shipped_weights()
    return {
        "Small, camera BN": shipped.with_name("small-camera.safetensors"),
        "Small, plain BN": shipped.with_name("small-plain.safetensors"),
    }


@dataclass(frozen=True)
class SiteData:
    """One manifest: a place with its cameras."""

    name: str
    samples: tuple[Sample, ...]

    @cached_property
    def cameras(self) -> tuple[Sample, ...]:
        """A sample of each camera and kind of object, in the order of (kind, camera)."""
        seen = {(sample.category, sample.camera): sample for sample in self.samples}
        return tuple(seen[key] for key in sorted(seen))


@dataclass(frozen=True)
class NormalizedGallery:
    """A network with one way of normalizing, and everything it has embedded: the ``kinds`` it was trained on."""

    title: str
    kinds: tuple[str, ...]
    checkpoint: Checkpoint
    gallery: Gallery
    queries: Embeddings

    @cached_property
    def rows(self) -> Embeddings:
        """The gallery's rows with their vectors, in the order of its rankings."""
        return self.gallery.embeddings

    def report(self, site: SiteData) -> Report:
        """Scores of the queries of ``site`` against its gallery rows."""
        here = set(site.samples)
        parts = []
        for part in (self.queries, self.rows):
            parts.append(part.select(np.array([sample in here for sample in part.samples], dtype=np.bool_)))
        samples = parts[0].samples + parts[1].samples
        vectors = np.concatenate([part.vectors for part in parts])
        return evaluate(Embeddings(samples, vectors, self.checkpoint.fingerprint), protocol=site.name)


@dataclass(frozen=True)
class World:
    """What the pages show: sites, and the same galleries under each way of normalizing."""

    sites: tuple[SiteData, ...]
    norms: tuple[NormalizedGallery, ...]

    @cached_property
    def queries(self) -> tuple[tuple[SiteData, Sample], ...]:
        """Every query of every site; pages name a query by its position here."""
        return tuple((site, s) for site in self.sites for s in site.samples if s.split is Split.QUERY)

    @cached_property
    def site_of(self) -> dict[Path, str]:
        """The site's name by the path of a picture."""
        return {sample.path: site.name for site in self.sites for sample in site.samples}

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of object that are asked for, in order of appearance."""
        return tuple(dict.fromkeys(sample.category for _, sample in self.queries))


def prepare(
    data: Path, galleries: Path, weights: Path | None = None, plain: Path | None = None, identities: int | None = None
) -> World:
    """The world in ``data`` and ``galleries``; what is missing, or made from something else, is made now.

    ``plain`` are plain-BN weights to compare with instead of the shipped pair; ``identities`` is the number
    of test people at each site of a street to be made.
    """
    files = {CAMERA_BN: weights or shipped_weights(), **({PLAIN_BN: plain} if plain else compared_weights())}
    # First: without weights there is no need to make a street.
    loaded = {title: load_checkpoint(path) for title, path in files.items()}
    main = DEFAULT_GALLERY.name
    folders = {title: galleries / (main if title == CAMERA_BN else f"{main}-{_slug(title)}") for title in files}
    manifests = find_or_make(data, identities)
    sites = tuple(SiteData(path.parent.name, read_manifest(path)) for path in manifests)
    samples = tuple(sample for site in sites for sample in site.samples)
    if not any(sample.split is Split.QUERY for sample in samples):
        raise DataError(f'{data}: no row of split "query"; the demo needs pictures to ask with')
    stamp = _digest(manifests)
    norms = tuple(_norm(title, loaded[title], samples, folders[title], stamp) for title in loaded)
    return World(sites, norms)


def _slug(title: str) -> str:
    """ "Plain BN" -> "plain": the part of a folder's name."""
    return "-".join(word for word in title.lower().replace(",", "").split() if word != "bn")


def _kinds(checkpoint: Checkpoint, samples: Sequence[Sample]) -> tuple[str, ...]:
    """Kinds of object that the weights were trained on, as their experiment says; all kinds where it does not."""
    text = checkpoint.extra.get("experiment")
    # Only this key: an experiment of an earlier version may hold others.
    trained = current_experiment(tomllib.loads(text), "weights").get("data", {}).get("categories", []) if text else []
    return tuple(trained) or tuple(dict.fromkeys(sample.category for sample in samples))


def find_or_make(data: Path, identities: int | None = None) -> list[Path]:
    """Manifests in the subfolders of ``data``, absolute.

    A folder of the user's own is taken as it is; the default street, one that was interrupted or one
    whose size is asked for is made or completed.
    """
    data = data.resolve()
    found = sorted(data.glob(f"*/{MANIFEST}"))
    if found and identities is None and data != DEFAULT_DATA.resolve():
        return found
    return make_street(data, StreetPlan() if identities is None else StreetPlan.of(identities))


def _norm(title: str, loaded: Checkpoint, everything: Sequence[Sample], folder: Path, stamp: str) -> NormalizedGallery:
    kinds = _kinds(loaded, everything)
    samples = [sample for sample in everything if sample.category in kinds]
    found = _reuse(title, kinds, folder, samples, loaded.fingerprint, stamp)
    if found is not None:
        return found
    met = with_unseen_cameras(replace(loaded, extra={**loaded.extra, DATA: stamp}), samples, "calibrate")
    asked = [sample for sample in samples if sample.split is Split.QUERY]
    queries = embed_samples(met, asked, f"{title}: queries")
    gallery = build_gallery(met, samples, folder)
    save_embeddings(queries, folder / QUERIES_FILE)
    return NormalizedGallery(title, kinds, met, gallery, queries)


def _reuse(
    title: str, kinds: tuple[str, ...], folder: Path, samples: Sequence[Sample], weights: str, stamp: str
) -> NormalizedGallery | None:
    """What is in ``folder``, if it was made from these weights and data; else None, and stderr says why.

    Rows may be missing: who was erased from a gallery stays erased.
    """
    if not folder.exists():
        return None
    try:
        checkpoint, gallery = gallery_checkpoint(folder), Gallery.open(folder)
        queries = load_embeddings(folder / QUERIES_FILE)
    except ReidError as error:
        typer.echo(f"{folder}: building it again ({error})", err=True)
        return None
    fits = (
        (checkpoint.weights, checkpoint.extra.get(DATA)) == (weights, stamp)
        and checkpoint.fingerprint == gallery.fingerprint == queries.fingerprint
        and set(gallery.samples) | set(queries.samples) <= set(samples)
    )
    if not fits:
        typer.echo(f"{folder}: made from other weights or data; building it again", err=True)
        return None
    return NormalizedGallery(title, kinds, checkpoint, gallery, queries)


def _digest(manifests: Sequence[Path]) -> str:
    """Names what a gallery was made from: the manifests and, where there is one, the plan of the street."""
    digest = hashlib.sha256()
    plans = {path.parents[1] / PLAN_FILE for path in manifests}
    for path in [*manifests, *sorted(plan for plan in plans if plan.is_file())]:
        digest.update(path.name.encode() + b"\0" + path.parent.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:32]
