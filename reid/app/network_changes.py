"""Jobs that change the network of the gallery: a new camera, measured statistics, an adapted network; and their undo.

Every change keeps the network of before, until it is undone or forgotten.  The statistics of one camera are added to
the network beside those of the others, so that the rows of other cameras stay as they are: "reid index refresh" embeds
only the rows again that the change concerns.  One change at a time is made, and the last one can be undone.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from reid.app.gallery_service import GalleryService
from reid.app.job_records import CHANGING, UNDO, Job, JobStatus
from reid.data.manifest import write_manifest
from reid.errors import ConfigError, DataError
from reid.files import write_whole
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.pipeline import NETWORK
from reid.records import Sample, domain_of
from reid.retrieval.camera_normalization import levels_of
from reid.retrieval.filters import ColumnCondition, rows_where
from reid.structured_text import read_json

CHANGES = "changes"  # subfolder of the state folder
RECORD, PROFILES, CROPS = "change.json", "profiles.safetensors", "crops.csv"
ADAPTED_CROPS = "adapted.csv"  # in the state folder, as long as the job "adapt" needs it
ADDITION = "addition"  # the column of the gallery that names the change that added a row
KEPT_CHANGES = 10
NO_NETWORK = "this gallery holds no network, so no camera can be measured"
_FOLDER = re.compile(r"change-(\d{6,})")
_FINGERPRINT = re.compile(r"fingerprint (\S+)")


@dataclass(frozen=True)
class NetworkChange:
    """One change of the network, or the try of one.

    Args:
        number: 1 for the first.
        folder: Where the network of before and the crops lie.
        kind: The kind of its job.
        title: What it does, in one line.
        camera: The camera that it concerns; "" where it concerns all.
        category: The category of its crops.
        before: The fingerprint of the network before it.
        job: Its job; None where it was forgotten.
        undone: Whether it was undone.
    """

    number: int
    folder: Path
    kind: str
    title: str
    camera: str
    category: str
    before: str
    job: Job | None
    undone: bool

    @property
    def addition(self) -> str:
        """What the column ``ADDITION`` holds for its rows."""
        return self.folder.name

    @property
    def network(self) -> Path:
        """The file of the network before it."""
        return self.folder / NETWORK

    @property
    def after(self) -> str:
        """The fingerprint of the network after it; that of before as long as it has not changed it."""
        lines = self.job.result if self.job is not None else ()
        found = [match[1] for line in lines for match in _FINGERPRINT.finditer(line)]
        return found[-1] if found else self.before

    @property
    def has_ended(self) -> bool:
        """Whether its job runs no more."""
        return self.job is None or self.job.has_ended

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values, without paths."""
        status = "undone" if self.undone else str(self.job.status) if self.job is not None else "forgotten"
        return {
            "number": self.number, "kind": self.kind, "title": self.title, "camera": self.camera,
            "category": self.category, "status": status, "job": None if self.job is None else self.job.number,
            "fingerprint_before": self.before, "fingerprint_after": self.after,
        }  # fmt: skip


def network_changes(service: GalleryService) -> list[NetworkChange]:
    """Return the changes whose networks are kept, the latest first."""
    jobs = service.jobs.jobs()
    adaptation = next((job for job in jobs if job.kind == "adapt"), None)
    if adaptation is not None and adaptation.status is JobStatus.DONE:
        (service.state_folder / ADAPTED_CROPS).unlink(missing_ok=True)
    found = []
    for folder in sorted((service.state_folder.resolve() / CHANGES).glob("change-*"), reverse=True):
        match = _FOLDER.fullmatch(folder.name)
        try:
            kept = read_json(folder / RECORD) if match else None
            if match is None or not isinstance(kept, dict):
                continue
            words = {name: str(kept[name]) for name in ("kind", "title", "camera", "category", "before")}
        except (DataError, OSError, KeyError):  # it was not written to its end, so it has no job
            continue
        own = [job for job in jobs if any(str(folder) in word for command in job.commands for word in command)]
        job = next((one for one in own if one.kind != UNDO), None)
        undone = any(one.kind == UNDO and one.status is JobStatus.DONE for one in own)
        if job is not None and job.status is JobStatus.DONE:
            (folder / CROPS).unlink(missing_ok=True)  # it names crops, which may be erased
        found.append(NetworkChange(int(match[1]), folder, **words, job=job, undone=undone))
    return found


def find_change(service: GalleryService, number: int) -> NetworkChange:
    """Return one change; DataError where none of this number is kept."""
    found = next((one for one in network_changes(service) if one.number == number), None)
    if found is None:
        raise DataError(f"no change of the network has the number {number}")
    return found


def check_free(service: GalleryService) -> None:
    """Check that no other job is about to change the network.

    Raises:
        DataError: One waits, runs or is paused.
    """
    busy = [job for job in service.jobs.jobs() if job.kind in CHANGING and not job.has_ended]
    if busy:
        raise DataError(
            f'job {busy[0].number} ("{busy[0].title}") changes the network and is {busy[0].status}; wait for it, or'
            " cancel it"
        )


def begin_change(
    service: GalleryService, kind: str, title: str, camera: str = "", category: str = ""
) -> tuple[Path, Checkpoint]:
    """Keep the network of before, and return the folder of a change and the network.

    Args:
        service: The gallery.
        kind: The kind of the job.
        title: What it does, in one line.
        camera: The camera that it concerns; "" for all.
        category: The category of its crops.

    Raises:
        DataError: The gallery holds no network, or another job changes it.
        OSError: The disk is full.
    """
    check_free(service)
    checkpoint = service.data.main.checkpoint
    if checkpoint is None:
        raise DataError(NO_NETWORK)
    parent = service.state_folder.resolve() / CHANGES
    parent.mkdir(mode=0o700, exist_ok=True)
    changes = network_changes(service)
    for old in changes[KEPT_CHANGES - 1 :]:
        forget(old.folder)
    names = [match for folder in parent.iterdir() if (match := _FOLDER.fullmatch(folder.name))]
    folder = parent / f"change-{max((int(match[1]) for match in names), default=0) + 1:06}"
    folder.mkdir(mode=0o700)
    try:
        write_whole(folder / NETWORK, checkpoint.save)
        record = {
            "kind": kind, "title": title, "camera": camera, "category": category, "before": checkpoint.fingerprint,
        }  # fmt: skip
        text = json.dumps(record, indent=2)
        write_whole(folder / RECORD, lambda part: part.write_text(text, encoding="utf-8"))
    except BaseException:
        forget(folder)
        raise
    return folder, checkpoint


def forget(folder: Path) -> None:
    """Delete the network and the lists of a change."""
    shutil.rmtree(folder, ignore_errors=True)


def write_crops(folder: Path, crops: Sequence[Sample]) -> Path:
    """Write the crops of a change as a manifest without identities, each row marked with the change."""
    path, plain = folder / CROPS, folder / "part.csv"
    write_manifest([replace(sample, identity="") for sample in crops], plain)
    with plain.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    place = rows[0].index("path")
    for row, sample in zip(rows[1:], crops, strict=True):
        row[place] = str(sample.path.absolute())  # as the rows of a gallery name it
    buffer = StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(
        [[*rows[0], ADDITION], *([*row, folder.name] for row in rows[1:])]
    )
    write_whole(path, lambda part: part.write_text(buffer.getvalue(), encoding="utf-8", newline=""))
    plain.unlink()
    return path


def measuring(service: GalleryService, folder: Path, checkpoint: Checkpoint, data: Path) -> list[list[str]]:
    """Return the commands that measure cameras on some crops and give their statistics to the gallery.

    Cameras are normalized at the levels at which the network normalizes those that it knows.
    """
    levels = levels_of(checkpoint)
    names = [name for name, has in (("statistics", levels.statistics), ("centering", levels.centering)) if has]
    measure = ["calibrate", f"--data={data}", f"--weights={folder / NETWORK}", f"--out={folder / PROFILES}"]
    measure.append(f"--normalize={'+'.join(names) if checkpoint.domain_fields and names else 'auto'}")
    return [measure, ["index", "refresh", str(service.folder.resolve()), f"--profiles={folder / PROFILES}"]]


def plan_undo(service: GalleryService, _parameters: Mapping[str, Any]) -> tuple[str, list[list[str]]]:
    """Give the gallery the network before the last change, and take out the crops that came with it."""
    check_free(service)
    change = change_to_undo(service)
    gallery = str(service.folder.resolve())
    commands = [["index", "refresh", gallery, f"--weights={change.network}"]]
    if rows_of_change(service, change):
        where = f"--where={ADDITION} = '{change.addition}'"
        commands.insert(0, ["index", "remove", gallery, where, "--allow-again"])
    return f"Undo: {change.title}", commands


def change_to_undo(service: GalleryService) -> NetworkChange:
    """Return the change that can be undone: the last one, if the network is still the one that it has made.

    Raises:
        ConfigError: There is none, the network was changed since, or crops depend on it that others have added.
    """
    served = service.data.main
    last = next(
        (one for one in network_changes(service) if one.job is not None and one.has_ended and not one.undone), None
    )
    if last is None or served.checkpoint is None:
        raise ConfigError("no change of the network can be undone")
    if served.gallery.fingerprint not in (last.after, last.before):
        raise ConfigError(f'"{last.title}" cannot be undone: the network of the gallery was changed since')
    if last.camera and served.checkpoint.unknown_domain is None and served.gallery.fingerprint != last.before:
        left = _left_without_statistics(service, last)
        if left:
            raise ConfigError(
                f'"{last.title}" cannot be undone: {left} crops of this camera were added since, and the network of'
                " before has no statistics for them; erase them first"
            )
    return last


def _left_without_statistics(service: GalleryService, change: NetworkChange) -> int:
    """Return how many rows of the camera stay that the network before the change cannot embed."""
    before = load_checkpoint(change.network)
    table = service.data.main.gallery.table
    rows = np.flatnonzero(rows_where(ColumnCondition("camera", "in", (change.camera,)), table))
    kept = rows[~np.isin(rows, rows_of_change(service, change))]
    samples = table.samples_at(kept)
    return sum(domain_of(sample, before.domain_fields) not in before.domains for sample in samples)


def rows_of_change(service: GalleryService, change: NetworkChange) -> list[int]:
    """Return the positions of the rows that a change has added to the gallery."""
    table = service.data.main.gallery.table
    if ADDITION not in table.column_names:
        return []
    rows = np.flatnonzero(rows_where(ColumnCondition(ADDITION, "in", (change.addition,)), table))
    return [int(row) for row in rows]
