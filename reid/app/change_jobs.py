"""The jobs about the network of the gallery: add a camera, measure cameras, adapt to the site, take the adapted one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from reid.app.camera_jobs import existing_crops
from reid.app.gallery_service import GalleryService
from reid.app.import_sources import find_source
from reid.app.job_records import CALIBRATE, CAMERA, SWITCH
from reid.app.network_changes import ADAPTED_CROPS, begin_change, check_free, measuring, write_crops
from reid.app.new_crops import light_of, waiting_camera
from reid.data.label_text import clean_label
from reid.data.manifest import write_manifest
from reid.data.site_folder import find_in_folder
from reid.errors import ConfigError, DataError
from reid.files import write_whole
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.pipeline import NETWORK
from reid.records import Modality, Sample, Split
from reid.retrieval.filters import ColumnCondition, rows_where
from reid.retrieval.row_table import RowTable

Parameters = Mapping[str, Any]
Commands = Sequence[Sequence[str]]
FEWEST = 8  # crops of a camera that is measured
ADVISED = 32  # crops, below which the statistics of a camera are rough
MEASURED = 1000  # crops of a camera that is in the gallery already
MOST_EPOCHS = 100
ADAPTED = f"adapted.{NETWORK}"  # in the state folder


def plan_camera(service: GalleryService, parameters: Parameters) -> tuple[str, Commands]:
    """Add a camera with crops that wait or that lie in a folder ("source"), after its statistics were measured."""
    camera, category = _label(parameters, "camera"), _label(parameters, "category") or "person"
    if not camera:
        raise DataError("camera: expected the name of the new camera")
    check_free(service)
    crops = _new_crops(service, camera, category, parameters)
    checkpoint = _network(service)
    title = f"Add camera {camera} with {len(crops)} crops"
    folder, _ = begin_change(service, CAMERA, title, camera, category)
    data = write_crops(folder, crops)
    measure = measuring(service, folder, checkpoint, data) if checkpoint.domain_fields else []
    gallery = str(service.folder.resolve())
    return title, [*measure, ["index", "add", gallery, f"--data={data}"], ["identify", "--gallery", gallery]]


def plan_calibration(service: GalleryService, parameters: Parameters) -> tuple[str, Commands]:
    """Measure a camera of the gallery again on its own crops; all cameras where "camera" names none."""
    checkpoint, camera = _network(service), _label(parameters, "camera")
    check_free(service)
    table = service.data.main.gallery.table
    if camera:
        service.check_camera(camera)
        if not checkpoint.domain_fields:
            raise ConfigError(
                "the network has one set of statistics for all cameras, so a single one cannot be measured; measure"
                " all of them"
            )
    elif not checkpoint.domain_fields:
        _check_all_are_named(table)
    crops = _crops_of_cameras(table, camera)
    title = f"Measure camera {camera} again" if camera else "Measure every camera"
    folder, _ = begin_change(service, CALIBRATE, title, camera)
    return title, measuring(service, folder, checkpoint, write_crops(folder, crops))


def plan_adaptation(service: GalleryService, parameters: Parameters) -> tuple[str, Commands]:
    """Adapt the network to the crops of "source", or of the gallery, and build a gallery beside this one with it."""
    epochs = parameters.get("epochs", 8)
    if not isinstance(epochs, int) or isinstance(epochs, bool) or not 1 <= epochs <= MOST_EPOCHS:
        raise ConfigError(f"epochs: expected 1 to {MOST_EPOCHS}")
    named = str(parameters.get("source", "")).strip()
    source = find_source(service, named) if named else None
    checkpoint, state = _network(service), service.state_folder.resolve()
    if source is None:
        table = service.data.main.gallery.table
        crops = [sample for sample in table.samples if sample.path.is_file()]
        if len(crops) < FEWEST:
            raise DataError(f"the files of {len(crops)} crops are there, and the network cannot be adapted to so few")
        source = state / ADAPTED_CROPS
        write_manifest([_plain(sample) for sample in crops], source)
        source.chmod(0o600)
    weights, adapted = state / f"before-adaptation.{NETWORK}", state / ADAPTED
    write_whole(weights, checkpoint.save)
    gallery = service.folder.resolve()
    beside = gallery.with_name(f"{gallery.name}-adapted")
    title = f"Adapt the network to {source.name if named else 'the crops of this gallery'}"
    return title, [
        ["adapt", f"--data={source}", f"--weights={weights}", f"--out={adapted}", f"--epochs={epochs}"],
        ["index", "build", f"--data={source}", f"--weights={adapted}", f"--out={beside}"],
    ]


def plan_switch(service: GalleryService, _parameters: Parameters) -> tuple[str, Commands]:
    """Give the gallery the network that the job "adapt" has made; every row is embedded again."""
    check_free(service)
    adapted = service.state_folder.resolve() / ADAPTED
    if not adapted.is_file():
        raise DataError("no adapted network is there; adapt the network first")
    if load_checkpoint(adapted).fingerprint == service.data.main.gallery.fingerprint:
        raise DataError("the gallery has this network already")
    missing = [sample for sample in service.data.main.gallery.table.samples if not sample.path.is_file()]
    if missing:
        raise DataError(
            f"the files of {len(missing)} crops are missing, so they cannot be embedded by another network; erase these"
            " rows, or bring the files back"
        )
    title = "Take the adapted network"
    folder, _ = begin_change(service, SWITCH, title)
    taken = folder / f"after.{NETWORK}"  # another adaptation may replace the other file meanwhile
    write_whole(taken, lambda part: part.write_bytes(adapted.read_bytes()))
    return title, [["index", "refresh", str(service.folder.resolve()), f"--weights={taken}"]]


def _network(service: GalleryService) -> Checkpoint:
    checkpoint = service.data.main.checkpoint
    if checkpoint is None:
        raise DataError("this gallery holds no network, so nothing can be measured or adapted")
    return checkpoint


def _new_crops(service: GalleryService, camera: str, category: str, parameters: Parameters) -> list[Sample]:
    """Return the crops of a new camera: those that were sent, and those below a folder."""
    paths: list[Path] = list(waiting_camera(service, camera, category).crops)
    if str(parameters.get("source", "")).strip():
        source = find_source(service, str(parameters["source"]))
        if not source.is_dir():
            raise DataError("source: expected a folder of crops of this camera")
        paths += find_in_folder(source).images
    paths = _not_there(service.data.main.gallery.table, paths)
    if len(paths) < FEWEST:
        raise DataError(
            f"camera {camera}: {len(paths)} new crops, and its statistics need {FEWEST} at least, better {ADVISED} or"
            " more; send more"
        )
    light = str(parameters.get("modality", "") or "")
    if light and light not in [str(one) for one in Modality]:
        raise ConfigError(f'modality: expected {" or ".join(map(str, Modality))}, got "{light[:40]}"')
    modality = Modality(light) if light else light_of(paths)
    return [Sample(path, "", camera, modality, category, Split.GALLERY) for path in paths]


def _not_there(table: RowTable, paths: Sequence[Path]) -> list[Path]:
    """Return the paths that no row of the gallery has, each once."""
    texts = list(dict.fromkeys(map(str, paths)))
    if not texts:
        return []
    there = np.flatnonzero(rows_where(ColumnCondition("path", "in", tuple(texts)), table))
    known = set(table.take(there).column("path").to_pylist())
    return [Path(text) for text in texts if text not in known]


def _check_all_are_named(table: RowTable) -> None:
    codes, names = table.codes("camera")
    unnamed = int(sum(not names[code] for code in codes.tolist()))
    if unnamed:
        raise DataError(
            f"{unnamed} crops do not name their camera, and a network with statistics of cameras could not embed them"
        )


def _crops_of_cameras(table: RowTable, camera: str) -> list[Sample]:
    """Return crops of one camera, or of every camera with a name, whose files are there."""
    codes, names = table.codes("camera")
    found: list[Sample] = []
    for code in np.unique(codes).tolist():
        if names[code] and names[code] == (camera or names[code]):
            crops = existing_crops(table.samples_at(np.flatnonzero(codes == code)), MEASURED)
            if len(crops) < FEWEST:
                raise DataError(
                    f"camera {names[code]}: the files of {len(crops)} crops are there, and {FEWEST} are needed; add"
                    " more"
                )
            found += crops
    if not found:
        raise DataError("no crop names its camera, so no camera can be measured")
    return found


def _plain(sample: Sample) -> Sample:
    return replace(sample, path=sample.path.absolute(), identity="", split=Split.GALLERY)


def _label(parameters: Parameters, name: str) -> str:
    return clean_label(str(parameters.get(name, "")))
