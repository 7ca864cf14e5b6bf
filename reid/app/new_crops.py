"""Crops of a new camera that were sent to the application and wait until its statistics are measured on them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from reid.app.accounts import User
from reid.app.gallery_service import GalleryService
from reid.app.upload_images import guess_modality, read_upload
from reid.data.images import read_image
from reid.data.label_text import clean_label
from reid.errors import DataError
from reid.files import write_whole
from reid.records import Modality
from reid.retrieval.filters import ColumnCondition, rows_where
from reid.structured_text import read_json

NEW_CAMERAS = "new-cameras"  # subfolder of the state folder
LABELS = "camera.json"
MOST_CROPS = 2000  # of one camera
MOST_CAMERAS = 50  # that wait
SAMPLED = 8  # crops of which the light is guessed


@dataclass(frozen=True)
class NewCamera:
    """A camera whose crops wait.

    Args:
        camera: Its name.
        category: What the crops show.
        folder: Where they lie.
        crops: The images that are not in the gallery yet, sorted.
    """

    camera: str
    category: str
    folder: Path
    crops: tuple[Path, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values, without paths."""
        return {"camera": self.camera, "category": self.category, "crops": len(self.crops)}


def keep_new_crop(
    service: GalleryService, user: User, content: bytes, camera: str, category: str = "person"
) -> dict[str, Any]:
    """Keep a picture of a new camera until the camera is added; the same picture is kept once.

    Args:
        service: The gallery.
        user: Who sends it.
        content: The content of an image file.
        camera: The name of the camera.
        category: What the picture shows.

    Returns:
        The camera, the category, and how many of its crops wait now.

    Raises:
        DataError: The image or a label cannot be read, or too many crops or cameras wait.
    """
    camera, category = clean_label(camera), clean_label(category)
    if not camera or not category:
        raise DataError(
            f"{'category' if camera else 'camera'}: expected the name of the camera and what the crop shows"
        )
    image = read_upload(content)
    folder = folder_of(service, camera, category)
    if not folder.exists():
        if len(waiting_cameras(service)) >= MOST_CAMERAS:
            raise DataError(f"{MOST_CAMERAS} cameras wait already; add or discard some")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    labels = folder / LABELS
    if not labels.exists():
        text = json.dumps({"camera": camera, "category": category})
        write_whole(labels, lambda part: part.write_text(text, encoding="utf-8"))
    path = folder / f"{hashlib.sha256(content).hexdigest()[:32]}.png"
    if not path.exists():
        if len(list(folder.glob("*.png"))) >= MOST_CROPS:
            raise DataError(f"camera {camera}: {MOST_CROPS} crops were sent already; name a folder for more")
        service.audit.record("new crop", user.name, {"camera": camera, "category": category})
        buffer = BytesIO()
        image.save(buffer, "PNG")
        write_whole(path, lambda part: part.write_bytes(buffer.getvalue()))
    return waiting_camera(service, camera, category).to_json()


def discard_new_crops(service: GalleryService, user: User, camera: str, category: str = "person") -> dict[str, Any]:
    """Delete the crops of a camera that wait; those that are in the gallery stay.

    Raises:
        DataError: No crop of this camera waits.
    """
    waiting = waiting_camera(service, clean_label(camera), clean_label(category))
    if not waiting.crops:
        raise DataError(f'no crop of camera "{waiting.camera}" waits')
    service.audit.record("discard new crops", user.name, {"camera": waiting.camera, "crops": len(waiting.crops)})
    for path in waiting.crops:
        path.unlink(missing_ok=True)
    if not any(waiting.folder.glob("*.png")):
        (waiting.folder / LABELS).unlink(missing_ok=True)
        waiting.folder.rmdir()
    return {"camera": waiting.camera, "category": waiting.category, "discarded": len(waiting.crops)}


def waiting_cameras(service: GalleryService) -> list[NewCamera]:
    """Return the cameras of which crops wait, sorted by name."""
    found = []
    for labels in sorted((service.state_folder / NEW_CAMERAS).glob(f"*/{LABELS}")):
        try:
            known = read_json(labels)
            camera, category = str(known["camera"]), str(known["category"])
        except (DataError, OSError, KeyError, TypeError):  # it was not written to its end; sending again mends it
            continue
        found.append(waiting_camera(service, camera, category))
    return sorted((one for one in found if one.crops), key=lambda one: (one.camera, one.category))


def waiting_camera(service: GalleryService, camera: str, category: str) -> NewCamera:
    """Return one camera with its crops that are not in the gallery yet, of which there may be none."""
    folder = folder_of(service, camera, category)
    paths = sorted(folder.glob("*.png"))
    table = service.data.main.gallery.table
    there = rows_where(ColumnCondition("path", "in", tuple(map(str, paths))), table) if paths else None
    known = set() if there is None else set(table.take(np.flatnonzero(there)).column("path").to_pylist())
    return NewCamera(camera, category, folder, tuple(path for path in paths if str(path) not in known))


def folder_of(service: GalleryService, camera: str, category: str) -> Path:
    """Return the folder in which the crops of a camera wait, with a name that tells nothing."""
    name = hashlib.sha256(f"{category}\0{camera}".encode()).hexdigest()[:16]
    return service.state_folder.resolve() / NEW_CAMERAS / name


def light_of(paths: Sequence[Path]) -> Modality:
    """Guess the light of a camera from some of its crops: infrared where most of them have no colour.

    Raises:
        DataError: None of them can be read.
    """
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(SAMPLED, len(paths))).astype(np.int64)).tolist()
    found = Counter(guess_modality(read_image(paths[position])) for position in chosen)
    return Modality.INFRARED if found[Modality.INFRARED] > found[Modality.VISIBLE] else Modality.VISIBLE
