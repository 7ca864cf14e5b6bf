"""What the REST interface and the page can ask of a gallery, as plain functions: search, crops, persons, cameras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from reid import __version__
from reid.app.accounts import User
from reid.app.audit_log import AuditLog
from reid.app.image_alarm import alarm_about
from reid.app.job_queue import JobQueue
from reid.app.query import Query, QueryOutcome, SearchOptions, answer_query
from reid.app.search_checks import assumption_of, check_search, notes_on_assumption
from reid.app.served_data import ServedData
from reid.app.served_persons import ServedPersons
from reid.app.upload_images import doubts_about, guess_modality, read_upload
from reid.data.images import read_image
from reid.data.label_text import clean_label
from reid.errors import DataError, GalleryError, unknown_name
from reid.evaluation.reports.person_report import describe_persons
from reid.records import Modality, Sample, Split
from reid.retrieval.gallery import Gallery
from reid.retrieval.persons.person_state import PersonState
from reid.retrieval.search import UPLOADED

LONGEST_SIDE = 1024  # pixels of a crop that is sent
MOST_IMAGES = 20  # of one query


@dataclass(frozen=True)
class SearchWishes:
    """What a search asks for.

    Args:
        camera: The camera of the picture; "" where it is unknown.
        modality: Its light; None guesses it from the picture.
        category: What it shows; "" takes what most crops of the gallery show.
        options: Which rows may answer, and how they are ranked.
        purpose: Why somebody searches, where the application asks for it.
        unknown_camera: What to assume where the camera is not named: "nearest" or "mixture"; "" leaves it to the
            network.
    """

    camera: str = ""
    modality: Modality | None = None
    category: str = ""
    options: SearchOptions = field(default_factory=SearchOptions)
    purpose: str = ""
    unknown_camera: str = ""


class GalleryService:
    """The main gallery of a running application.

    Args:
        data: What the application serves.
        jobs: Its long jobs.
        audit: Its log of searches.
        state_folder: The folder in which the application keeps jobs, its log and crops that it was sent.
        sources: The folders below which an operator may name data to read.
        has_users: Whether users log in, and so can log out.
    """

    def __init__(
        self,
        data: ServedData,
        jobs: JobQueue,
        audit: AuditLog,
        state_folder: Path,
        sources: Sequence[Path] = (),
        has_users: bool = False,
    ):
        self.has_users = has_users
        self.data = data
        self.jobs = jobs
        self.audit = audit
        self.state_folder = state_folder
        self.sources = tuple(source.resolve() for source in sources)
        self.persons = ServedPersons(data)
        self.planning = Lock()  # one job at a time is planned and put into the queue

    @property
    def folder(self) -> Path:
        """The folder of the gallery."""
        return self.data.main.folder

    def health(self) -> dict[str, Any]:
        """Say whether the gallery can be read."""
        return {"status": "ok" if self.data.state is not None else "the gallery cannot be read", "version": __version__}

    def describe(self) -> dict[str, Any]:
        """Say what the gallery holds."""
        served = self.data.main
        table = served.gallery.table
        persons = self.persons.current()
        return {
            "name": served.folder.resolve().name,
            "crops": len(table),
            "cameras": table.distinct("camera"),
            "categories": table.distinct("category"),
            "modalities": table.distinct("modality"),
            "persons": 0 if persons is None else int(np.count_nonzero(np.unique(persons.persons))),
            "fingerprint": served.gallery.fingerprint,
            "purposes": list(self.audit.purposes),
        }

    def search(
        self, user: User, wishes: SearchWishes, images: Sequence[bytes] = (), crops: Sequence[int] = ()
    ) -> dict[str, Any]:
        """Search with images, or with a crop of the gallery.

        Args:
            user: Who searches; written to the log together with the filters.
            wishes: What the search asks for.
            images: The contents of image files of one person or object.
            crops: The ids of crops of the gallery; with several, the first names camera and light.

        Returns:
            The answers and what is to be known about them, as plain values.

        Raises:
            DataError: There is nothing to search with, an image cannot be read, or no row may answer.
        """
        self.audit.check_purpose(wishes.purpose)
        if not (images or crops) or len(images) + len(crops) > MOST_IMAGES:
            raise DataError(f"expected 1 to {MOST_IMAGES} images or crops to search with")
        query, doubts = self._query_of(wishes, images, crops)
        served = self.data.main
        doubts += check_search(served, query, wishes.options) + notes_on_assumption(served, query)
        persons = self.persons.current()
        options = wishes.options
        self.audit.record(
            "search", user.name,
            {
                "images": len(images), "crops": list(crops), "camera": query.sample.camera,
                "modality": str(query.sample.modality), "category": query.sample.category,
                "answers_modality": str(options.modality or ""), "in_cameras": options.cameras,
                "not_in_cameras": options.without_cameras, "after": options.after, "before": options.before,
                "cross_camera": options.cross_camera, "one_per": options.one_per, "ranking": options.ranking,
                "known": options.known,
                "k": options.answers,
            },
            wishes.purpose,
        )  # fmt: skip
        outcome = answer_query(self.data, query, options)[0]
        alarm = alarm_about(served, query)
        doubts += [] if alarm is None else alarm.notes
        return {
            "camera": query.sample.camera,
            "modality": str(query.sample.modality),
            "category": query.sample.category,
            "statistics": assumption_of(served, query),
            "searched_crops": outcome.rows,
            **({} if alarm is None else alarm.to_json()),
            "notes": [*doubts, *outcome.notes],
            "answers": _answers_json(outcome, persons),
        }

    def _query_of(self, wishes: SearchWishes, images: Sequence[bytes], crops: Sequence[int]) -> tuple[Query, list[str]]:
        """Return the query, and why its images do not look like crops."""
        if len(crops) == 1 and not images:
            return Query(self.sample_of(crops[0]), "", row=crops[0]), []
        category = clean_label(wishes.category) or next(iter(self.data.main.categories), "person")
        samples = [self.sample_of(crop) for crop in crops]
        decoded = [read_upload(content) for content in images]
        doubts = [doubt for image in decoded for doubt in doubts_about(image, category)]
        if samples:
            known, decoded = samples[0], [*(read_image(sample.path) for sample in samples), *decoded]
            query = Sample(UPLOADED, "", known.camera, known.modality, known.category, Split.QUERY)
        else:
            modality = wishes.modality or guess_modality(decoded[0])
            query = Sample(UPLOADED, "", clean_label(wishes.camera), modality, category, Split.QUERY)
        return Query(query, "", tuple(decoded), policy=wishes.unknown_camera), list(dict.fromkeys(doubts))

    def sample_of(self, crop: int) -> Sample:
        """Return the labels of a crop of the gallery; DataError where it has none of this id."""
        table = self.data.main.gallery.table
        row = int(np.searchsorted(table.row_ids, crop))
        if row == len(table) or table.row_ids[row] != crop:
            raise DataError(f"the gallery has no crop {crop}")
        return table.samples[row]

    def image_of(self, crop: int) -> bytes:
        """Return the picture of a crop as JPEG without metadata, at most ``LONGEST_SIDE`` pixels a side.

        Where its file cannot be read, this is the thumbnail that the gallery keeps of it.

        Raises:
            DataError: There is no such crop, or its file cannot be read.
        """
        sample = self.sample_of(crop)
        try:
            image = read_image(sample.path)
        except (DataError, OSError) as error:
            kept = kept_thumbnail(self.data.main.gallery, crop)
            if kept is None:
                raise DataError(f"the picture of crop {crop} cannot be read; its file was moved or damaged") from error
            return kept
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        out = BytesIO()
        image.convert("RGB").save(out, "JPEG", quality=90)
        return out.getvalue()

    def list_persons(self, limit: int = 100, offset: int = 0) -> dict[str, Any]:
        """Return the persons, the lowest number first, each with the ids of its crops.

        Raises:
            GalleryError: Nobody has identified any.
        """
        state = self._persons()
        described = describe_persons(state)
        crops: dict[str, list[int]] = {}
        for crop, label in zip(state.table.row_ids.tolist(), state.labels(), strict=True):
            crops.setdefault(label, []).append(crop)
        shown = [{**one, "crops": crops[one["person"]]} for one in described[offset : offset + limit]]
        return {"number_of_persons": len(described), "persons": shown}

    def _persons(self) -> PersonState:
        state = self.persons.current()
        if state is None:
            raise GalleryError("nobody has identified persons in this gallery yet; run the job identify first")
        return state

    def list_cameras(self) -> list[dict[str, Any]]:
        """Return the cameras with the number of their crops, their light and their times."""
        table = self.data.main.gallery.table
        codes, names = table.codes("camera")
        checkpoint = self.data.main.checkpoint
        known = {name.rpartition("/")[2] for name in checkpoint.domains} if checkpoint is not None else set()
        cameras = []
        for code in np.unique(codes).tolist():
            rows = np.flatnonzero(codes == code)
            part = table.take(rows)
            times = [time for time in part.column("time").to_pylist() if time is not None]
            cameras.append(
                {
                    "camera": names[code],
                    "crops": len(rows),
                    "modalities": part.distinct("modality"),
                    "categories": part.distinct("category"),
                    "first_time": min(times).isoformat() if times else None,
                    "last_time": max(times).isoformat() if times else None,
                    "has_statistics": names[code] in known,
                }
            )
        return sorted(cameras, key=lambda camera: str(camera["camera"]))

    def check_camera(self, camera: str) -> str:
        """Return the name of a camera of the gallery; DataError where it has none of this name."""
        known = self.data.main.gallery.table.distinct("camera")
        if clean_label(camera) not in known:
            raise DataError(unknown_name("camera", camera, known))
        return clean_label(camera)


def kept_thumbnail(gallery: Gallery, number: int) -> bytes | None:
    """Return the JPEG image that a gallery keeps of a row, by the lasting id of the row; None where it keeps none."""
    ids = gallery.table.row_ids
    row = int(np.searchsorted(ids, number))
    return gallery.thumbnail(row) if row < len(ids) and ids[row] == number else None


def _answers_json(outcome: QueryOutcome, persons: PersonState | None) -> list[dict[str, Any]]:
    """Return the answers as plain values, without the paths of the machine."""
    rows: list[dict[str, Any]] = []
    for rank, ((answer, _), crop) in enumerate(zip(outcome.answers, outcome.row_ids, strict=True), 1):
        sample = answer.sample
        row: dict[str, Any] = {
            "rank": rank,
            "crop": crop,
            "image": f"/api/crops/{crop}/image",
            "score": round(float(answer.score), 6),
            "identity": sample.identity,
            "camera": sample.camera,
            "modality": str(sample.modality),
            "category": sample.category,
            "time": sample.time.isoformat() if sample.time else None,
        }
        if answer.normalized is not None:
            row["normalized_score"] = round(float(answer.normalized), 6)
        if answer.match is not None:
            row |= {
                "verdict": str(answer.match.verdict),
                "false_match_rate": float(answer.match.false_match_rate),
                "false_alarm_rate": float(answer.match.false_alarm_rate),
            }
        if persons is not None:
            row |= persons.describe(answer.row)
        rows.append(row)
    return rows
