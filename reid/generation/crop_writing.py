"""Write crops to a folder of their own, with a manifest that marks them as generated."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from reid.data.loading import Progress
from reid.data.manifest import write_manifest
from reid.files import writer_folder
from reid.records import Sample, Split

MANIFEST, SETTINGS, IMAGES = "manifest.csv", "generation.json", "images"


def write_crops(
    out: Path, crops: Mapping[Path, Callable[[], Image.Image | None]], progress: Progress | None = None
) -> set[Path]:
    """Write those crops that are not there yet; each appears whole or not at all.

    Args:
        out: The folder, after :func:`reid.data.changed_images.begin_folder`.
        crops: For each file what draws its crop; None leaves the file out.
        progress: Called with 1 after each crop.

    Returns:
        The files that are there.
    """
    there: set[Path] = set()
    with writer_folder(out) as own:
        for target, draw in crops.items():
            image = None if target.exists() else draw()
            if image is not None:
                _write_image(image, target, own)
            if image is not None or target.exists():
                there.add(target)
            if progress is not None:
                progress(1)
    return there


def _write_image(image: Image.Image, target: Path, own: Path) -> None:
    part = own / f"{zlib.crc32(os.fsencode(target)):08x}-{target.name}"
    with os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        image.save(file, "PNG", compress_level=1)
    target.parent.mkdir(parents=True, exist_ok=True)
    part.replace(target)


def finish_folder(out: Path, rows: Sequence[Sample]) -> Path:
    """Write the manifest, which says that all crops are there.

    Args:
        out: The folder.
        rows: The rows.

    Returns:
        The manifest.
    """
    manifest = out / MANIFEST
    if not manifest.exists():
        write_manifest(rows, manifest)
    return manifest


def generated_row(sample: Sample, path: Path) -> Sample:
    """Return the row of a crop that was written from a recorded one: marked, in split train.

    A row of split query or gallery loses its identity, so that nobody trains on the labels of a test.

    Args:
        sample: The recorded crop.
        path: The written one.
    """
    identity = sample.identity if sample.split is Split.TRAIN else ""
    return Sample(
        path, identity, sample.camera, sample.modality, sample.category, Split.TRAIN, sample.time, sample.track,
        generated=True,
    )  # fmt: skip


def files_below(crops: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Return for each crop a file below ``folder`` that keeps its path below the common folder, with ".png" added."""
    if not crops:
        return {}
    common = os.path.commonpath([path.absolute().parent for path in crops])
    return {path: folder / f"{os.path.relpath(path.absolute(), common)}.png" for path in crops}


def rows_checksum(samples: Sequence[Sample]) -> str:
    """Return a checksum of rows, for the settings of a folder."""
    names = Sample.__slots__
    rows = "\n".join(repr([str(getattr(sample, name)) for name in names]) for sample in samples)
    return f"{zlib.crc32(rows.encode('utf-8', 'surrogateescape')):08x}"
