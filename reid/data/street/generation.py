"""Write the street: images of people and vehicles, seen by the cameras of two sites, and their manifests.

Every identity and every crop has a random generator of its own (:mod:`reid.data.street.random_draws`), so a larger plan
contains a smaller one byte for byte, whatever the number of processes.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from reid.data.street.crop_rendering import Visit, draw_visit, render_person_crop
from reid.data.street.people import draw_person
from reid.data.street.random_draws import generator
from reid.data.street.street_cameras import SITES, Camera
from reid.data.street.vehicles import draw_vehicle, render_vehicle_crop
from reid.errors import DataError, unknown_name
from reid.files import is_part, remove_partial_files, writer_folder
from reid.records import Split
from reid.structured_text import read_json

VERSION = 1  # of the drawing; a folder never mixes images of several versions
PLAN_FILE = "street.json"
COLUMNS = ("path", "identity", "camera", "modality", "category", "split", "time")
CROPS_PER_VISIT = 2  # an identity visits a camera several times; crops of one visit resemble each other
BYSTANDERS = 500  # people who only appear in front of other people
FIRST_DAY = datetime(2026, 3, 2)
VEHICLE_REACH = 2.2  # how many times farther away a vehicle stands than a person

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class StreetPlan:
    """How many identities and crops a street has.

    The first crop of a test identity in each camera is a query, the others are gallery.  Where nobody trains on a site,
    its train split serves as unlabelled crops for calibration.

    Args:
        seed: Decides how everything looks.
        identities: People for testing at each site.
        train_identities: People for training at each site.
        vehicles: Vehicles for testing at each site.
        train_vehicles: Vehicles for training at each site.
        crops: Crops of each identity in each camera.
        sites: Keys of ``SITES``.

    Raises:
        DataError: A site is unknown, or there are fewer than two crops.
    """

    seed: int = 0
    identities: int = 120
    train_identities: int = 40
    vehicles: int = 40
    train_vehicles: int = 15
    crops: int = 4
    sites: tuple[str, ...] = ("street-a", "street-b")

    def __post_init__(self) -> None:
        for site in self.sites:
            if site not in SITES:
                raise DataError(unknown_name("site", site, SITES))
        if self.crops < 2:
            raise DataError(f"crops: expected at least 2 (a query and a gallery image), got {self.crops}")

    @classmethod
    def of(cls, identities: int, **numbers: Any) -> StreetPlan:
        """Plan a street with default proportions.

        Args:
            identities: People for testing at each site.
            **numbers: Values that replace the proportional ones.

        Returns:
            The plan.

        Example:
            >>> StreetPlan.of(30, crops=2).train_identities
            10
        """
        share = {"train_identities": 3, "vehicles": 3, "train_vehicles": 8}
        scaled = {name: max(2, identities // part) if identities else 0 for name, part in share.items()}
        return cls(identities=identities, **(scaled | numbers))

    def counts(self) -> dict[tuple[str, str], int]:
        """Count the identities of a site by category and by "train" or "test"."""
        return {
            ("person", "train"): self.train_identities,
            ("person", "test"): self.identities,
            ("vehicle", "train"): self.train_vehicles,
            ("vehicle", "test"): self.vehicles,
        }


@dataclass(frozen=True)
class _Job:
    """One identity: the folder of its site and everything that its images depend on."""

    folder: Path
    seed: int
    site: str
    category: str
    part: str
    index: int
    crops: int
    partial: Path

    @property
    def identity(self) -> str:
        middle = "train-" if self.part == "train" else ""
        return f"{self.site[-1]}-{middle}{self.category}-{self.index:04d}"

    @property
    def name(self) -> tuple[int, str, str, str, int]:
        return self.seed, self.site, self.part, self.category, self.index


def generate(out: Path, plan: StreetPlan, *, workers: int = 0, progress: Progress | None = None) -> list[Path]:
    """Write a street.

    Existing images are kept, so that an interrupted run continues and a finished one returns at once.  A manifest
    appears when its images are complete.

    Args:
        out: The folder.
        plan: What to draw.
        workers: Number of processes; 0 starts one for each core.
        progress: Called with the number of images done and of all images.

    Returns:
        The manifests, one for each site.

    Raises:
        DataError: The folder holds something else, or a street that is not part of the plan, or cannot be written.
    """
    manifests = [out / site / "manifest.csv" for site in plan.sites]
    if _is_complete(out, plan) and all(path.is_file() for path in manifests):
        remove_partial_files(out)
        return manifests
    with _partial_folder(out) as partial:
        _draw(out, plan, partial, workers, progress)
    return manifests


@contextmanager
def _partial_folder(out: Path) -> Iterator[Path]:
    """Make the private folder for files that are being written."""
    with ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            partial = stack.enter_context(writer_folder(out))
        except OSError as error:
            raise DataError(f"{out}: cannot be written ({error.strerror or error}); choose another place") from error
        yield partial


def _draw(out: Path, plan: StreetPlan, partial: Path, workers: int, progress: Progress | None) -> None:
    """Draw what is missing, and write the manifests when their images are complete."""
    _write_file(out / PLAN_FILE, _plan_text(plan, complete=False), partial)
    jobs = list(_list_jobs(out, plan, partial))
    total = sum(len(SITES[job.site]) * job.crops for job in jobs)
    rows: dict[str, list[dict[str, str]]] = {site: [] for site in plan.sites}
    done = 0
    for job, written in zip(jobs, _run_jobs(jobs, workers or os.cpu_count() or 1), strict=True):
        rows[job.site] += written
        done += len(written)
        if progress is not None:
            progress(done, total)
    for site in plan.sites:
        _write_file(out / site / "manifest.csv", _csv(rows[site]), partial)
    _write_file(out / "card.md", _card(plan, rows).encode(), partial)
    _write_file(out / PLAN_FILE, _plan_text(plan, complete=True), partial)


def _is_complete(out: Path, plan: StreetPlan) -> bool:
    """Return whether the folder holds the whole street; refuse a folder that holds something else."""
    path = out / PLAN_FILE
    if path.is_file():
        found = _read_plan(path)
        if found == {**json.loads(_plan_text(plan, complete=True))}:
            return True
        if not _contains(plan, found):
            raise DataError(f"{out}: holds the street of another plan or version; choose another folder or delete it")
    elif out.exists() and (not out.is_dir() or not all(map(is_part, out.iterdir()))):
        raise DataError(f"{out}: expected an empty or new folder, it holds something that is not a street")
    return False


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise DataError(f"{path}: damaged; delete the folder and make the street again")
    return found


def _contains(plan: StreetPlan, found: dict[str, Any]) -> bool:
    """Whether every image of the street that ``found`` describes belongs to the plan."""
    wanted = json.loads(_plan_text(plan, complete=False))
    numbers = ("identities", "train_identities", "vehicles", "train_vehicles")
    return (
        all(found.get(key) == wanted[key] for key in ("version", "seed", "crops"))
        and isinstance(found.get("sites"), list)
        and all(site in wanted["sites"] for site in found["sites"])
        and all(isinstance(found.get(key), int) and found[key] <= wanted[key] for key in numbers)
    )


def _plan_text(plan: StreetPlan, complete: bool) -> bytes:
    return (json.dumps({"version": VERSION, **asdict(plan), "complete": complete}, indent=2) + "\n").encode()


def _list_jobs(out: Path, plan: StreetPlan, partial: Path) -> Iterator[_Job]:
    for site in plan.sites:
        for (category, part), count in plan.counts().items():
            for index in range(count):
                yield _Job(out / site, plan.seed, site, category, part, index, plan.crops, partial)


def _run_jobs(jobs: list[_Job], workers: int) -> Iterator[list[dict[str, str]]]:
    """Yield the manifest rows of every job, in order."""
    if workers == 1:
        yield from map(_write_images, jobs)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield from pool.map(_write_images, jobs, chunksize=4)
    finally:
        pool.shutdown(cancel_futures=True)


def _write_images(job: _Job) -> list[dict[str, str]]:
    """Write the missing images of one identity and return its manifest rows."""
    draw = _person_crops(job) if job.category == "person" else _vehicle_crops(job)
    rows = []
    for camera in SITES[job.site]:
        for n in range(job.crops):
            visit = _draw_visit(job, camera, n // CROPS_PER_VISIT)
            split = Split.TRAIN if job.part == "train" else Split.GALLERY if n else Split.QUERY
            path = Path("images", str(split), job.category, f"{job.identity}_{camera.name}_{n}.jpg")
            if not (job.folder / path).is_file():
                _write_file(job.folder / path, draw(camera, n, visit), job.partial)
            rows.append(
                {
                    "path": path.as_posix(),
                    "identity": job.identity,
                    "camera": camera.name,
                    "modality": "infrared" if camera.infrared else "visible",
                    "category": job.category,
                    "split": str(split),
                    "time": _time(job, camera, n, visit).isoformat(timespec="seconds"),
                }
            )
    return rows


DrawCrop = Callable[[Camera, int, Visit], bytes]
"""Draws crop n of a visit to a camera as JPEG."""


def _person_crops(job: _Job) -> DrawCrop:
    person = draw_person(job.seed, job.site, job.part, job.index)

    def draw(camera: Camera, n: int, visit: Visit) -> bytes:
        rng = generator(*job.name, camera.name, n)
        # The names "passer" and, below, "passing" belong to generators: other names would draw other streets.
        bystander = draw_person(job.seed, job.site, "passer", int(rng.integers(BYSTANDERS)))
        return render_person_crop(rng, person, bystander, camera, visit)

    return draw


def _vehicle_crops(job: _Job) -> DrawCrop:
    vehicle = draw_vehicle(job.seed, job.site, job.part, job.index)

    def draw(camera: Camera, n: int, visit: Visit) -> bytes:
        return render_vehicle_crop(generator(*job.name, camera.name, n), vehicle, camera, visit)

    return draw


def _draw_visit(job: _Job, camera: Camera, number: int) -> Visit:
    reach = VEHICLE_REACH if job.category == "vehicle" else 1.0
    return draw_visit(generator(*job.name, camera.name, "passing", number), camera, reach)


def _time(job: _Job, camera: Camera, n: int, visit: Visit) -> datetime:
    """Return the time of a crop: the day and hour of its visit, and a second for each crop."""
    day = int(generator(*job.name, camera.name, "day", n // CROPS_PER_VISIT).integers(5))
    return FIRST_DAY + timedelta(days=day, hours=visit.hour % 24, seconds=n % CROPS_PER_VISIT)


def _csv(rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _card(plan: StreetPlan, rows: dict[str, list[dict[str, str]]]) -> str:
    lines = [
        "# The street",
        "",
        "Synthetic people and vehicles, drawn by `reid synth`; nobody in these pictures exists. Licence: Apache-2.0.",
        "",
        f"Plan: `{json.dumps({'version': VERSION, **asdict(plan)})}`",
        "",
        "| site | domain | split | images | identities | cameras |",
        "|---|---|---|---|---|---|",
    ]
    for site, site_rows in rows.items():
        for category, split in sorted({(row["category"], row["split"]) for row in site_rows}):
            part = [row for row in site_rows if (row["category"], row["split"]) == (category, split)]
            identities, cameras = ({row[key] for row in part} for key in ("identity", "camera"))
            lines.append(f"| {site} | {category} | {split} | {len(part)} | {len(identities)} | {len(cameras)} |")
    return "\n".join(lines) + "\n"


def _write_file(path: Path, content: bytes, partial: Path) -> None:
    """Write a file that appears whole or not at all; a lost image is drawn again, so there is no wait for the disk.

    Each process has one file in the folder ``partial`` for what it is writing.
    """
    part = partial / str(os.getpid())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{path}: cannot be written ({reason}); mend that, then the same command goes on") from error
