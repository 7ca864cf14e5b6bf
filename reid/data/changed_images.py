"""Write changed images of a manifest to a folder of their own, so that an interrupted work can continue.

Corruptions and attacks share this: where each image is written, how it appears whole or not at all, and how a folder
of other data or settings is refused.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from reid.errors import ConfigError
from reid.files import is_part, prepare_output_folder, remove_partial_files, write_whole
from reid.records import SAMPLE_FIELDS, Sample
from reid.structured_text import parse_json, read_json

MANIFEST, IMAGES = "manifest.csv", "images"  # in a folder of changed images


def begin_folder(out: Path, settings_file: str, settings: Mapping[str, object]) -> None:
    """Make the folder, or check that it is that of an earlier run with the same settings.

    Args:
        out: The folder.
        settings_file: The name of the file in it that holds the settings.
        settings: What decides the images and the rows, in values that JSON can hold.

    Raises:
        ConfigError: The folder holds something else, or no file can be written in it.
    """
    prepare_output_folder(out)
    remove_partial_files(out)
    file = out / settings_file
    try:
        found = [path for path in out.iterdir() if not is_part(path)] if out.exists() else []
        earlier = read_json(file) if file.exists() else None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{out}: cannot be continued ({error}); choose another folder") from error
    if found and earlier != parse_json(json.dumps(settings)):
        what = "holds images of other data, weights or settings" if file.exists() else "holds something else"
        raise ConfigError(f"{out}: {what}; choose another folder, or delete it")
    if not found:
        write_whole(file, lambda part: part.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8"))


def rows_checksum(samples: Sequence[Sample]) -> str:
    """Return a checksum in hex of all labels and paths of some samples, in their order."""
    rows = "\n".join(repr([str(getattr(sample, name)) for name in SAMPLE_FIELDS]) for sample in samples)
    return f"{zlib.crc32(rows.encode('utf-8', 'surrogateescape')):08x}"


def target_files(paths: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Return the new file of each image: its path below the folder of all, with the suffix .png added."""
    if not paths:
        return {}
    common = os.path.commonpath([path.absolute().parent for path in paths])
    return {path: folder / f"{os.path.relpath(path.absolute(), common)}.png" for path in paths}


def with_path(sample: Sample, path: Path) -> Sample:
    """Return the same labels for another file."""
    values = {name: getattr(sample, name) for name in Sample.__slots__}
    return Sample(**{**values, "path": path})


def write_image(image: Image.Image, target: Path, own: Path) -> None:
    """Write a PNG file that appears whole or not at all.

    Args:
        image: The image.
        target: The file.
        own: The folder of this process inside the output folder (:func:`reid.files.writer_folder`).
    """
    part = own / f"{zlib.crc32(os.fsencode(target)):08x}-{target.name}"
    with os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        image.save(file, "PNG", compress_level=1)
    target.parent.mkdir(parents=True, exist_ok=True)
    part.replace(target)
