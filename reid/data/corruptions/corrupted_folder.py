"""Write corrupted images of a manifest to a folder of their own, with a manifest that names them."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

from reid.data.corruptions.corruption_types import CorruptionPlan
from reid.data.images import read_image
from reid.data.loading import Progress
from reid.data.manifest import write_manifest
from reid.errors import ConfigError, DataError, unknown_name
from reid.files import is_part, prepare_output_folder, remove_partial_files, write_whole, writer_folder
from reid.records import SAMPLE_FIELDS, Sample
from reid.structured_text import read_json

MANIFEST, SETTINGS, IMAGES = "manifest.csv", "corruption.json", "images"


def write_corrupted(
    samples: Sequence[Sample],
    out: Path,
    plan: CorruptionPlan,
    *,
    cameras: Collection[str] = (),
    workers: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Corrupt the images of samples and write them as PNG files.

    Images that are there already are kept, so an interrupted run continues and a finished one returns at once.  Every
    image appears whole or not at all, and the manifest appears when all are complete.

    Args:
        samples: The samples; an image that is listed several times is corrupted once.
        out: The folder: new, empty, or of an earlier run with the same samples and plan.
        plan: What to do with each image.
        cameras: The cameras whose images are corrupted; () means all.  The rows of the others name their own images.
        workers: Threads that corrupt images.
        progress: Called with 1 after each image.

    Returns:
        The manifest; its rows are those of ``samples`` in their order.

    Raises:
        ConfigError: The folder holds something else, or no file can be written in it.
        DataError: An image cannot be read, or a camera is unknown.
    """
    known = sorted({sample.camera for sample in samples})
    for camera in cameras:
        if camera not in known:
            raise DataError(unknown_name("camera", camera, known))
    chosen = {sample.path: sample for sample in samples if not cameras or sample.camera in cameras}
    targets = _target_files(list(chosen), out / IMAGES)
    manifest = out / MANIFEST
    _begin(out, _settings(samples, plan, cameras))
    with writer_folder(out) as own:
        write = partial(_write_image, plan=plan, own=own)
        with ThreadPoolExecutor(max(1, workers), thread_name_prefix="reid-corrupt") as pool:
            for _ in pool.map(write, chosen.values(), [targets[path] for path in chosen]):
                if progress is not None:
                    progress(1)
    if not manifest.exists():
        write_manifest([_moved(sample, targets.get(sample.path, sample.path)) for sample in samples], manifest)
    return manifest


def count_corrupted(samples: Sequence[Sample], cameras: Collection[str] = ()) -> int:
    """Count the images that :func:`write_corrupted` writes."""
    return len({sample.path for sample in samples if not cameras or sample.camera in cameras})


def _target_files(paths: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """The new file of each image: its path below the folder of all, with the suffix .png added."""
    if not paths:
        return {}
    common = os.path.commonpath([path.absolute().parent for path in paths])
    return {path: folder / f"{os.path.relpath(path.absolute(), common)}.png" for path in paths}


def _moved(sample: Sample, path: Path) -> Sample:
    values = {name: getattr(sample, name) for name in Sample.__slots__}
    return Sample(**{**values, "path": path})


def _write_image(sample: Sample, target: Path, *, plan: CorruptionPlan, own: Path) -> None:
    if target.exists():
        return
    image = plan.apply(sample, read_image(sample.path))
    part = own / f"{zlib.crc32(os.fsencode(target)):08x}-{target.name}"
    with os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        image.save(file, "PNG", compress_level=1)
    target.parent.mkdir(parents=True, exist_ok=True)
    part.replace(target)


def _settings(samples: Sequence[Sample], plan: CorruptionPlan, cameras: Collection[str]) -> dict[str, object]:
    """What decides the images and the rows, in values that JSON can hold."""
    rows = "\n".join(repr([str(getattr(sample, name)) for name in SAMPLE_FIELDS]) for sample in samples)
    checksum = f"{zlib.crc32(rows.encode('utf-8', 'surrogateescape')):08x}"
    chosen = {**asdict(plan), "names": list(plan.names)}
    return {**chosen, "cameras": sorted(cameras), "samples": len(samples), "rows": checksum}


def _begin(out: Path, settings: dict[str, object]) -> None:
    """Make the folder, or check that it is that of an earlier run with the same settings."""
    prepare_output_folder(out)
    remove_partial_files(out)
    file = out / SETTINGS
    try:
        found = [path for path in out.iterdir() if not is_part(path)] if out.exists() else []
        earlier = read_json(file) if file.exists() else None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{out}: cannot be continued ({error}); choose another folder") from error
    if found and earlier != settings:
        what = "holds images of other data or settings" if file.exists() else "holds something else"
        raise ConfigError(f"{out}: {what}; choose another folder, or delete it")
    if not found:
        write_whole(file, lambda part: part.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8"))
