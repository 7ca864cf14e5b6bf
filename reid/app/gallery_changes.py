"""What changes a gallery, as plain functions for the REST interface and the page: add, name, erase.

Every change is written to the log of the application with the user who made it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from reid.app.accounts import User
from reid.app.gallery_service import GalleryService
from reid.app.new_crops import NEW_CAMERAS
from reid.app.upload_images import guess_modality, read_upload
from reid.data.file_times import read_time
from reid.data.label_text import clean_label
from reid.errors import ConfigError, DataError, unknown_name
from reid.files import write_whole
from reid.pipeline import unknown_domains
from reid.records import Modality, Sample, Split
from reid.retrieval.embed import embed
from reid.retrieval.erasure import erase_identity, erase_rows
from reid.retrieval.filters import ColumnCondition, Filter, both, equals, parse_where, rows_where, time_of
from reid.retrieval.growth import add_samples
from reid.retrieval.person_filters import on_paths
from reid.retrieval.persons.decisions import Decision
from reid.retrieval.persons.person_changes import record_decision, undo_decision
from reid.retrieval.persons.person_state import PersonState
from reid.retrieval.persons.requests import (
    decide_confirm,
    decide_different,
    decide_name,
    decide_same,
    decide_split,
    find_subject,
)
from reid.retrieval.receipts import read_receipts
from reid.retrieval.upkeep import compact_gallery, delete_images, selected_paths

PREVIEWED = 20  # rows that a preview names
CROPS = "crops"  # subfolder of the state folder


@dataclass(frozen=True)
class CropLabels:
    """The labels of a crop that is added; "" where one is unknown, and None guesses the light."""

    camera: str = ""
    modality: Modality | None = None
    category: str = "person"
    identity: str = ""
    time: str = ""
    track: str = ""


@dataclass(frozen=True)
class ErasureWish:
    """Which rows are to be erased: those that fulfil every condition that is given."""

    identity: str = ""
    person: str = ""
    camera: str = ""
    before: str = ""
    where: str = ""
    crops: tuple[int, ...] = ()


def add_crop(service: GalleryService, user: User, content: bytes, labels: CropLabels) -> dict[str, Any]:
    """Add one picture to the gallery.

    The picture is kept in the state folder, without its metadata.

    Args:
        service: The gallery.
        user: Who adds it.
        content: The content of an image file.
        labels: Its labels.

    Returns:
        The id of the crop, and whether it is new, known, or barred by an earlier erasure.

    Raises:
        DataError: The image or a label cannot be read.
        ConditionError: The network has no statistics for the camera.
    """
    image = read_upload(content)
    served = service.data.main
    if served.checkpoint is None:
        raise DataError("this gallery holds no network, so nothing can be added to it")
    name = f"{hashlib.sha256(content).hexdigest()[:32]}.png"
    path = (service.state_folder / CROPS).resolve() / name
    modality = labels.modality or guess_modality(image)
    sample = Sample(
        path, clean_label(labels.identity), clean_label(labels.camera), modality, clean_label(labels.category),
        Split.GALLERY, _time(labels.time), clean_label(labels.track),
    )  # fmt: skip
    missing = unknown_domains(served.checkpoint, [sample]) if served.checkpoint.unknown_domain is None else []
    if missing:
        raise DataError(
            f"the network has no statistics for {missing[0]}; calibrate this camera, or build the gallery with"
            " --unseen-camera nearest"
        )
    service.audit.record("add", user.name, {"camera": sample.camera, "category": sample.category})
    is_there = path.exists()
    if not is_there:
        buffer = BytesIO()
        image.save(buffer, "PNG")
        write_whole(path, lambda part: part.write_bytes(buffer.getvalue()))
    checkpoint = served.checkpoint
    try:
        found = add_samples(
            service.folder, [sample], lambda part: embed(checkpoint, part), fingerprint=checkpoint.fingerprint
        )
    except BaseException:
        if not is_there:
            path.unlink(missing_ok=True)
        raise
    if found.barred and not is_there:
        path.unlink(missing_ok=True)
    return {"crop": _crop_of(service, path), "added": found.added, "known": found.known, "barred": found.barred}


def _time(text: str) -> Any:
    try:
        return read_time(text) if text else None
    except ValueError:
        raise DataError(f'"{text}" is no time such as 2024-05-31T16:20:00') from None


def _crop_of(service: GalleryService, path: Path) -> int | None:
    table = service.data.main.gallery.table
    rows = np.flatnonzero(rows_where(ColumnCondition("path", "in", (str(path),)), table))
    return int(table.row_ids[rows[-1]]) if len(rows) else None


def decide(
    service: GalleryService, user: User, verb: str, subjects: Sequence[str], text: str = "", instead: bool = False
) -> dict[str, Any]:
    """Record what somebody says about persons.

    Args:
        service: The gallery.
        user: Who says it.
        verb: A key of ``VERBS``, or "undo".
        subjects: Persons such as "person-12", names of persons, or "crop-ID" with the id of a crop.
        text: The name, for the verb "name"; the number of the decision, for "undo", "" for the last.
        instead: Replace older decisions that say the opposite.

    Returns:
        The decision, and how many crops have another person now.

    Raises:
        ReidError: The verb or a subject is unknown, or an older decision says the opposite.
    """
    if verb != "undo" and verb not in VERBS:
        raise ConfigError(unknown_name("verb", verb, [*VERBS, "undo"]))
    service.audit.record("decide", user.name, {"verb": verb, "subjects": len(subjects)})
    if verb == "undo":
        if text and not text.isdigit():
            raise DataError(f'"{text}" is no number of a decision')
        state, taken, number = undo_decision(service.folder, int(text) if text else None)
        return {"undone": number, "verb": taken.verb, "decisions": len(state.log.decisions)}
    words = [_word_of(service, subject) for subject in subjects]
    state, changed = record_decision(service.folder, lambda now: VERBS[verb](now, words, text), instead=instead)
    decision = state.log.decisions[-1]
    return {"number": len(state.log.decisions), "verb": decision.verb, "changed_crops": changed}


def _word_of(service: GalleryService, subject: str) -> str:
    """Return the word by which the persons know a subject: crops are known by their paths."""
    kind, _, number = subject.partition("-")
    if kind == "crop" and number.isdigit():
        return str(service.sample_of(int(number)).path)
    if "/" in subject:
        raise DataError(f'"{subject[:80]}": expected a person such as person-12, or a crop such as crop-7')
    return subject


def _same(state: PersonState, words: Sequence[str], _: str) -> Decision:
    return decide_same(state, [find_subject(state, word) for word in words])


def _different(state: PersonState, words: Sequence[str], _: str) -> Decision:
    if len(words) != 2:
        raise DataError(f"different: expected two persons or crops, got {len(words)}")
    return decide_different(state, find_subject(state, words[0]), find_subject(state, words[1]))


def _confirm(state: PersonState, words: Sequence[str], _: str) -> Decision:
    if not words:
        raise DataError("confirm: expected a person")
    return decide_confirm(state, find_subject(state, words[0]), [find_subject(state, word) for word in words[1:]])


def _split(state: PersonState, words: Sequence[str], _: str) -> Decision:
    return decide_split(state, [find_subject(state, word) for word in words])


def _name(state: PersonState, words: Sequence[str], text: str) -> Decision:
    if len(words) != 1:
        raise DataError(f"name: expected one person, got {len(words)}")
    return decide_name(state, find_subject(state, words[0]), clean_label(text))


VERBS = {"same": _same, "different": _different, "confirm": _confirm, "split": _split, "name": _name}


def preview_erasure(service: GalleryService, wish: ErasureWish) -> dict[str, Any]:
    """Say what an erasure would remove, and change nothing."""
    served = service.data.main
    table = served.gallery.table
    chosen = rows_where(on_paths(service.folder, _filter_of(service, wish)), table)
    part = table.take(np.flatnonzero(chosen))
    some = part.row_ids[:PREVIEWED].tolist()
    return {
        "rows": int(chosen.sum()),
        "crops": some,
        "cameras": part.distinct("camera"),
        "identities": len(part.distinct("identity")),
    }


def erase(service: GalleryService, user: User, wish: ErasureWish, rows: int) -> dict[str, Any]:
    """Erase rows from the gallery and from all that was derived from the same data, with their bytes.

    Pictures that the application was sent are deleted as well; other image files stay.

    Args:
        service: The gallery.
        user: Who erases.
        wish: Which rows.
        rows: How many rows the preview showed; another number is refused.

    Returns:
        How many rows were removed, what remains, and the receipt.

    Raises:
        DataError: No row fulfils the conditions, or another number than the preview showed.
    """
    preview = preview_erasure(service, wish)
    if preview["rows"] != rows or not rows:
        raise DataError(f"{preview['rows']} rows fulfil these conditions, not {rows}; look at the preview again")
    service.audit.record("erase", user.name, {"rows": rows, "by": [key for key, value in vars(wish).items() if value]})
    chosen = on_paths(service.folder, _filter_of(service, wish))
    own = [(service.state_folder / name).resolve() for name in (CROPS, NEW_CAMERAS)]
    images = [path for path in selected_paths(service.folder, chosen) if any(map(path.is_relative_to, own))]
    only_identity = bool(wish.identity) and replace(wish, identity="") == ErasureWish()
    erased = erase_identity(service.folder, wish.identity) if only_identity else erase_rows(service.folder, chosen)
    if not only_identity:
        compact_gallery(service.folder)
    remaining = [line for one in erased for line in one.remaining]
    remaining += delete_images(images)
    receipts = [one for one in read_receipts(service.folder) if one.get("action") != "compact"]
    return {
        "rows": rows,
        "images": len(images),
        "remaining": len(remaining),
        "receipt": receipts[-1] if receipts else None,
    }


def _filter_of(service: GalleryService, wish: ErasureWish) -> Filter:
    """Return the filter of an erasure; DataError where it has no condition."""
    if wish.before:
        time_of(wish.before)
    paths = [str(service.sample_of(crop).path) for crop in wish.crops]
    chosen = both(
        parse_where(wish.where) if wish.where else None,
        equals("path", *paths),
        *(equals(name, value) for name in ("identity", "person", "camera") if (value := getattr(wish, name))),
        ColumnCondition("time", "<", (wish.before,)) if wish.before else None,
    )
    if chosen is None:
        raise DataError("which rows? give an identity, a person, a camera, a time, crops or a condition")
    return chosen
