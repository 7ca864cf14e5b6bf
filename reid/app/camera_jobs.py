"""Long jobs about the cameras of a gallery, on a sample of its crops and without labels, and what they found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from reid.app.gallery_service import GalleryService
from reid.app.job_records import Job, JobStatus, path_of_job
from reid.data.manifest import write_manifest
from reid.errors import DataError
from reid.files import write_whole
from reid.models.checkpoint import Checkpoint
from reid.pipeline import NETWORK
from reid.records import IntArray, Sample, Split, domain_of
from reid.structured_text import parse_json

REPORT, DRIFT = "cameras", "drift"  # kinds of jobs
MEASURED = 160  # crops of a camera that a report measures
LATEST = 0.2  # of the crops of a camera, in the order in which they were added, are compared with the earlier ones
FEWEST_LATEST, FEWEST_EARLIER = 8, 16  # crops, below which a camera cannot be compared
MANIFESTS = ("cameras.csv", "latest.csv", "earlier.csv")
NO_NETWORK = "this gallery holds no network, so its cameras cannot be measured"
NO_STATISTICS = "the network of this gallery has no statistics of single cameras, so there is nothing to drift from"
TOO_FEW = (
    f"no camera has statistics of its own and {FEWEST_EARLIER + FEWEST_LATEST} crops whose files are there, so the"
    " latest crops cannot be compared with the earlier ones"
)


@dataclass(frozen=True)
class CameraAnswer:
    """What a job found about a camera.

    Args:
        camera: The camera, without the other fields of its domain.
        domain: The normalization domain, such as "person/door".
        verdict: What to do, or "drifted" or "as before".
        reason: Why, in one sentence.
    """

    camera: str
    domain: str
    verdict: str
    reason: str


def plan_report(service: GalleryService, _parameters: object) -> tuple[str, Sequence[Sequence[str]]]:
    """Judge every camera: calibrate it, leave it, or collect more crops."""
    weights = _write_network(service)
    crops = [sample for rows in _crops_by_domain(service).values() for sample in existing_crops(rows, MEASURED)]
    if not crops:
        raise DataError("no file of a crop is there, so the cameras cannot be measured")
    data = _write_crops(service, crops, MANIFESTS[0])
    return "Judge the cameras", [["cameras", "report", f"--data={data}", f"--weights={weights}", "--json"]]


def plan_watch(service: GalleryService, _parameters: object) -> tuple[str, Sequence[Sequence[str]]]:
    """Compare the latest crops of every camera that has statistics with its earlier ones."""
    checkpoint = _network(service)
    if not checkpoint.domain_fields or not checkpoint.has_statistics:
        raise DataError(NO_STATISTICS)
    latest: list[Sample] = []
    earlier: list[Sample] = []
    for name, rows in _crops_by_domain(service).items():
        at = len(rows) - max(int(LATEST * len(rows)), min(FEWEST_LATEST, len(rows)))
        new, old = existing_crops(rows[at:], MEASURED), existing_crops(rows[:at], 2 * MEASURED)
        if name in checkpoint.domains and len(new) >= FEWEST_LATEST and len(old) >= FEWEST_EARLIER:
            latest += new
            earlier += old
    if not latest:
        raise DataError(TOO_FEW)
    weights = _write_network(service)
    new_data, old_data = _write_crops(service, latest, MANIFESTS[1]), _write_crops(service, earlier, MANIFESTS[2])
    words = ["cameras", "watch", f"--data={new_data}", f"--reference={old_data}", f"--weights={weights}", "--json"]
    return "Look for drift", [words]


def answers_of(service: GalleryService, kind: str) -> tuple[Job, list[CameraAnswer]] | None:
    """Return the latest job of a kind that is done, and what it found; None where there is none.

    Args:
        service: The gallery.
        kind: ``REPORT`` or ``DRIFT``.
    """
    jobs = [job for job in service.jobs.jobs() if job.kind in (REPORT, DRIFT)]
    if all(job.has_ended for job in jobs):
        for name in MANIFESTS:  # they name crops, which may be erased
            (service.state_folder / name).unlink(missing_ok=True)
    done = next((job for job in jobs if job.kind == kind and job.status is JobStatus.DONE), None)
    if done is None:
        return None
    try:
        printed = path_of_job(service.state_folder / "jobs", done.number, "out").read_text(encoding="utf-8")
        found = parse_json(printed)
        return done, [_read_answer(service, kind, one) for one in (found["cameras"] if kind == REPORT else found)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"what job {done.number} found cannot be read; start it again") from error


def _read_answer(service: GalleryService, kind: str, found: dict[str, Any]) -> CameraAnswer:
    domain = str(found["camera"])
    checkpoint = service.data.main.checkpoint
    fields = (checkpoint.domain_fields if checkpoint is not None else ()) or ("camera",)
    words = domain.split("/", len(fields) - 1)
    camera = words[fields.index("camera")] if "camera" in fields and len(words) == len(fields) else domain
    if kind == REPORT:
        return CameraAnswer(camera, domain, str(found["verdict"]), str(found["reason"]))
    reason = (
        f"its {found['crops']} latest crops lie {found['drift']:.2f} from its earlier ones; by chance it is at most"
        f" {found['threshold']:.2f}"
    )
    return CameraAnswer(camera, domain, "drifted" if found["alarm"] else "as before", reason)


def _network(service: GalleryService) -> Checkpoint:
    checkpoint = service.data.main.checkpoint
    if checkpoint is None:
        raise DataError(NO_NETWORK)
    return checkpoint


def _write_network(service: GalleryService) -> Path:
    path = service.state_folder.resolve() / f"measured.{NETWORK}"
    write_whole(path, _network(service).save)
    return path


def _write_crops(service: GalleryService, crops: Sequence[Sample], name: str) -> Path:
    """Write crops without identities as a manifest, and return its path."""
    path = service.state_folder.resolve() / name
    write_manifest([replace(s, path=s.path.absolute(), identity="", split=Split.TRAIN) for s in crops], path)
    path.chmod(0o600)
    return path


def _crops_by_domain(service: GalleryService) -> dict[str, list[Sample]]:
    """Return the crops of each normalization domain with a camera, in the order in which they were added."""
    fields = _network(service).domain_fields or ("camera",)
    table = service.data.main.gallery.table
    codes, cameras = table.codes("camera")
    found: dict[str, list[Sample]] = {}
    for code in np.unique(codes).tolist():
        if cameras[code]:
            rows: IntArray = np.flatnonzero(codes == code)
            rows = rows[np.argsort(table.row_ids[rows], kind="stable")]
            for sample in table.samples_at(rows):
                found.setdefault(domain_of(sample, fields), []).append(sample)
    return found


def existing_crops(rows: Sequence[Sample], most: int) -> list[Sample]:
    """Return at most so many of some crops, evenly spread, whose files are there."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)).tolist() if rows else []
    return [rows[position] for position in chosen if rows[position].path.is_file()]
