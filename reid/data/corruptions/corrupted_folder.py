"""Write corrupted images of a manifest to a folder of their own, with a manifest that names them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

from reid.data.changed_images import (
    IMAGES,
    MANIFEST,
    begin_folder,
    rows_checksum,
    target_files,
    with_path,
    write_image,
)
from reid.data.corruptions.corruption_types import CorruptionPlan
from reid.data.images import read_image
from reid.data.loading import Progress
from reid.data.manifest import write_manifest
from reid.errors import DataError, unknown_name
from reid.files import writer_folder
from reid.records import Sample

SETTINGS = "corruption.json"


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
    targets = target_files(list(chosen), out / IMAGES)
    manifest = out / MANIFEST
    begin_folder(out, SETTINGS, _settings(samples, plan, cameras))
    with writer_folder(out) as own:
        write = partial(_corrupt_file, plan=plan, own=own)
        with ThreadPoolExecutor(max(1, workers), thread_name_prefix="reid-corrupt") as pool:
            for _ in pool.map(write, chosen.values(), [targets[path] for path in chosen]):
                if progress is not None:
                    progress(1)
    if not manifest.exists():
        write_manifest([with_path(sample, targets.get(sample.path, sample.path)) for sample in samples], manifest)
    return manifest


def count_corrupted(samples: Sequence[Sample], cameras: Collection[str] = ()) -> int:
    """Count the images that :func:`write_corrupted` writes."""
    return len({sample.path for sample in samples if not cameras or sample.camera in cameras})


def _corrupt_file(sample: Sample, target: Path, *, plan: CorruptionPlan, own: Path) -> None:
    if not target.exists():
        write_image(plan.apply(sample, read_image(sample.path)), target, own)


def _settings(samples: Sequence[Sample], plan: CorruptionPlan, cameras: Collection[str]) -> dict[str, object]:
    """What decides the images and the rows, in values that JSON can hold."""
    chosen = {**asdict(plan), "names": list(plan.names)}
    return {**chosen, "cameras": sorted(cameras), "samples": len(samples), "rows": rows_checksum(samples)}
