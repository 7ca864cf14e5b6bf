"""Prepare what the application shows from manifests: galleries, and embeddings of their queries.

Galleries are computed once and used again at the next start, as long as the weights and the data that they were
computed from are the same. Identities that were erased from one of them are left out of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import typer

from reid.app.data_digest import digest_of_data
from reid.app.served_data import ServedData, ServedGallery
from reid.app.site_data import QueryCrops, SiteData
from reid.data.manifest import read_manifest
from reid.data.street.generation import PLAN_FILE, StreetPlan
from reid.errors import DataError, ReidError, WeightsError
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
    unknown_domains,
    with_unseen_cameras,
)
from reid.records import Sample, Split, domain_of
from reid.retrieval.application_galleries import APPLICATION_GALLERIES
from reid.retrieval.gallery import Gallery
from reid.retrieval.query_file import load_queries, save_queries
from reid.retrieval.row_table import RowTable
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


def prepare_data(
    data: Path, galleries: Path, weights: Path | None = None, plain: Path | None = None, identities: int | None = None,
    profiles: Sequence[Path] = (), backbone: str | None = None,
) -> ServedData:  # fmt: skip
    """Prepare all that the application shows, and compute what is missing or out of date.

    Args:
        data: A manifest, a folder that holds one, or a folder whose subfolders do; the synthetic street is made where
            there is nothing.
        galleries: The folder for the computed galleries.
        weights: The weights to show; None takes the shipped ones.
        plain: Plain-BN weights to compare with; None takes the shipped pair of :func:`compared_weights` for the street,
            and compares nothing for other data.
        identities: The number of test people at each site of a new street; None takes the default street.
        profiles: Files of camera profiles of ``weights``.
        backbone: The name of the network of ``weights``, where they do not say it.

    Returns:
        The sites and one gallery for each network. Queries, identities and other splits may be missing.

    Raises:
        WeightsError: A weights file is missing or cannot be read.
        DataError: The data hold no row, or an image cannot be read.
    """
    # Weights come first: without them there is no need to make a street.
    main = load_checkpoint(weights or shipped_weights(), backbone, None, profiles)
    chosen = {PLAIN_BN: load_checkpoint(plain)} if plain else {}
    manifests = find_or_make_manifests(data, identities)
    loaded = {CAMERA_BN: main, **(chosen or _shipped_pair(manifests))}
    tombstones = [read_tombstones(galleries / name) for name in APPLICATION_GALLERIES]
    sites = _read_sites(manifests, tombstones, galleries)
    samples = tuple(sample for site in sites for sample in site.samples)
    if not samples:
        raise DataError(f"{data}: no row is left to show; the manifests are empty, or all rows were erased")
    digest = digest_of_data(manifests)
    served = [
        _open_or_build(title, checkpoint, samples, galleries / _folder_name(title), digest)
        for title, checkpoint in loaded.items()
    ]
    folders = {path.parent: site.name for path, site in zip(manifests, sites, strict=True)}
    return ServedData(served, lambda now: _current_sites(sites, now), folders)


def _shipped_pair(manifests: Sequence[Path]) -> dict[str, Checkpoint]:
    """Return the shipped networks to compare where the data are the street, which they were trained for."""
    if not all((path.parents[1] / PLAN_FILE).is_file() for path in manifests):
        return {}
    return {title: load_checkpoint(path) for title, path in compared_weights().items()}


def _read_sites(manifests: Sequence[Path], tombstones: Sequence[Tombstones], galleries: Path) -> list[SiteData]:
    """Read the manifests without erased identities, and say how many rows are left out."""
    sites, left_out = [], 0
    for path in manifests:
        every_sample = _with_gallery(read_manifest(path))
        samples = without_erased(every_sample, tombstones)
        left_out += len(every_sample) - len(samples)
        sites.append(SiteData(path.parent.name, samples))
    if left_out:
        typer.echo(
            f'{galleries}: left out {left_out} rows of erased identities; "reid index restore" lifts an erasure',
            err=True,
        )
    return sites


def _with_gallery(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Return the samples; where none is of split gallery, those of split train are, else all of them."""
    if any(sample.split is Split.GALLERY for sample in samples):
        return tuple(samples)
    has_train = any(sample.split is Split.TRAIN for sample in samples)
    moved = Split.TRAIN if has_train else Split.QUERY
    return tuple(replace(s, split=Split.GALLERY) if s.split is moved else s for s in samples)


def _current_sites(
    sites: Sequence[SiteData], galleries: Sequence[ServedGallery]
) -> tuple[Sequence[SiteData], QueryCrops]:
    """Return the sites and their queries without erased identities; without queries, the crops of the gallery."""
    tombstones = [read_tombstones(one.folder) for one in galleries]
    names = [site.name for site in sites]
    current = [SiteData(site.name, without_erased(site.samples, tombstones)) for site in sites]
    pairs = [(n, s) for n, site in enumerate(sites) for s in site.samples if s.split is Split.QUERY]
    if pairs:
        kept = {*without_erased([sample for _, sample in pairs], tombstones)}
        table = RowTable.from_samples([sample for _, sample in pairs])
        rows = np.array([row for row, (_, sample) in enumerate(pairs) if sample in kept], np.int64)
        return current, QueryCrops(table.take(rows), np.array([pairs[row][0] for row in rows], np.int64), names)
    table = galleries[0].gallery.table
    site_of = {sample.path: n for n, site in enumerate(sites) for sample in site.samples}
    positions = np.array([site_of.get(sample.path, 0) for sample in table.samples], np.int64)
    return current, QueryCrops(table, positions, names, are_gallery_rows=True)


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
    """Find the manifests that ``data`` names, or make the synthetic street there.

    Data of the user's own are taken as they are. The street is made or completed in a folder without files, in the
    default folder, and where a number of identities is given.

    Args:
        data: A manifest, a folder that holds one, or a folder whose subfolders hold one each.
        identities: The number of test people at each site of the street; None takes the default street.

    Returns:
        Absolute paths of the manifests, sorted by site.

    Raises:
        DataError: A folder of the user's own holds no manifest.
    """
    data = data.resolve()
    if data.is_file():
        return [data]
    found = sorted(data.glob(f"*/{MANIFEST}"))
    if (data / MANIFEST).is_file() and not found:
        return [data / MANIFEST]
    is_street = data == DEFAULT_DATA.resolve() or (data / PLAN_FILE).is_file()
    if found and identities is None and data != DEFAULT_DATA.resolve():
        return found
    if not found and not is_street and data.is_dir() and any(data.iterdir()):
        raise DataError(f'{data}: holds no {MANIFEST}; write one with "reid init {data}", or name a manifest')
    return make_street(data, StreetPlan() if identities is None else StreetPlan.of(identities))


def _open_or_build(
    title: str, loaded: Checkpoint, every_sample: Sequence[Sample], folder: Path, digest: str
) -> ServedGallery:
    """Open the gallery in ``folder``; build it where it is missing, damaged or out of date."""
    trained = _trained_categories(loaded, every_sample)
    known = tuple(dict.fromkeys(sample.category for sample in every_sample))
    # What the main network was not trained on is shown as well as it can be.
    categories = trained if title != CAMERA_BN or set(known) <= set(trained) else known
    samples = [sample for sample in every_sample if sample.category in categories]
    # with profiles, the fingerprint is another than that of the weights
    digest = digest if loaded.fingerprint == loaded.weights else f"{digest}-{loaded.fingerprint}"
    if current := _open_if_current(title, categories, folder, samples, loaded.weights, digest):
        remove_partial_files(folder)  # of an earlier start that was killed
        return current
    named = replace(loaded, extra={**loaded.extra, DATA_KEY: digest})
    checkpoint = _for_every_camera(named, samples)
    query_samples = [sample for sample in samples if sample.split is Split.QUERY]
    queries = embed_samples(checkpoint, query_samples, f"{title}: queries") if query_samples else None
    gallery = build_gallery(checkpoint, samples, folder)
    queries = None if queries is None else save_queries(folder, queries)
    stamp, is_compared = stamp_of(folder), title != CAMERA_BN
    return ServedGallery(title, categories, checkpoint, gallery, queries, folder, stamp, is_compared)


def _for_every_camera(checkpoint: Checkpoint, samples: Sequence[Sample]) -> Checkpoint:
    """Return a checkpoint that knows the cameras of all samples.

    A new camera is calibrated with its own crops. Crops of unknown cameras get the mixture of all known statistics.
    """
    named = [sample for sample in samples if sample.camera or "camera" not in checkpoint.domain_fields]
    calibrated = with_unseen_cameras(checkpoint, _with_calibration_crops(checkpoint, named), "calibrate")
    return calibrated if len(named) == len(samples) else with_unseen_cameras(calibrated, samples, "prior")


def _with_calibration_crops(checkpoint: Checkpoint, samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples; crops of a new camera without any of split train are added to that split.

    Calibration uses no label, so that the crops of the gallery serve as well.
    """
    missing = set(unknown_domains(checkpoint, samples)) if checkpoint.domain_fields else set()
    if not missing:
        return list(samples)
    by_domain = [(sample, domain_of(sample, checkpoint.domain_fields)) for sample in samples]
    missing -= {domain for sample, domain in by_domain if sample.split is Split.TRAIN and not sample.generated}
    more = {s.path: replace(s, split=Split.TRAIN) for s, domain in by_domain if domain in missing}
    return [*samples, *more.values()]


def _open_if_current(
    title: str, categories: tuple[str, ...], folder: Path, samples: Sequence[Sample], weights: str, digest: str
) -> ServedGallery | None:
    """Open the gallery in ``folder`` if it was built from these weights and data; else return None and warn.

    Rows may be missing from it, because identities that were erased from a gallery stay erased, and it may have others,
    because "reid index add" gives it further crops.
    """
    if not folder.exists():
        return None
    has_queries = any(sample.split is Split.QUERY for sample in samples)
    try:
        stamp = stamp_of(folder)
        checkpoint, gallery = gallery_checkpoint(folder), Gallery.open(folder)
        gallery.verify()  # otherwise damaged vectors would show when a visitor searches
        queries = load_queries(folder) if has_queries else None
        lifted = read_tombstones(folder).lifted
    except ReidError as error:
        typer.echo(f"{folder}: building it again ({error})", err=True)
        return None
    is_current = (
        (checkpoint.weights, checkpoint.extra.get(DATA_KEY)) == (weights, digest)
        and checkpoint.fingerprint == gallery.fingerprint
        and (queries is None or checkpoint.fingerprint == queries.fingerprint)
        and (queries is None or set(queries.samples) <= set(samples))
        and not lifted
    )
    if not is_current:
        reason = "an erasure was lifted" if lifted else "built from other weights or data"
        typer.echo(f"{folder}: {reason}; building it again", err=True)
        return None
    return ServedGallery(title, categories, checkpoint, gallery, queries, folder, stamp, is_compared=title != CAMERA_BN)
