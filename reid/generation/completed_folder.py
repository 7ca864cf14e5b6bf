"""Write the completed crops of a data set to a folder."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from reid.data.changed_images import begin_folder
from reid.data.images import read_image
from reid.data.loading import Progress
from reid.errors import ConfigError, DataError
from reid.generation.completion import Completion
from reid.generation.crop_writing import (
    IMAGES,
    SETTINGS,
    files_below,
    finish_folder,
    generated_row,
    rows_checksum,
    write_crops,
)
from reid.generation.mask_files import MaskFiles
from reid.records import Sample


@dataclass(frozen=True)
class CompletedFolder:
    """What was written.

    Attributes:
        manifest: The manifest; rows of crops that stay as they are name their recorded files.
        completed: The number of completed crops.
        kept: The number of crops that stay as they are.
    """

    manifest: Path
    completed: int
    kept: int


def write_completed(
    samples: Sequence[Sample],
    weights: Path | None,
    out: Path,
    masks: MaskFiles,
    *,
    method: str = "network",
    guess: bool = False,
    progress: Progress | None = None,
) -> CompletedFolder:
    """Complete the occluded crops of a data set and write them as PNG files, with a manifest.

    A completed crop is marked as generated and is in split train; one of a query or of the gallery loses its identity,
    so that no training sees the labels of a test.  Crops that are there already are kept, so an interrupted run
    continues.

    Args:
        samples: The crops; a crop that is listed several times is completed once.
        weights: The weights of the completion network; None where neither the method nor the guess needs them.
        out: The folder: new, empty, or of an earlier run with the same crops, masks and weights.
        masks: The masks of the crops.
        method: How hidden pixels are filled, a name of :data:`~reid.generation.completion.METHODS`.
        guess: Whether the masks of crops without one are guessed; else these crops stay as they are.
        progress: Called with 1 after each crop.

    Returns:
        The manifest and the counts.

    Raises:
        ConfigError: The folder holds something else, or weights are needed.
        DataError: A crop is generated already, no crop has a mask and none is to be guessed, or a file cannot be read.
        WeightsError: The weights cannot be used.
    """
    completion = Completion(method) if weights is None else Completion.load(weights, method)
    if guess and weights is None:
        raise ConfigError('guessing what is hidden needs weights; "reid complete --train" writes them')
    crops = {sample.path: sample for sample in samples}
    written = next((sample for sample in samples if sample.generated), None)
    if written is not None:
        raise DataError(f"{written.path}: is a generated crop; complete crops that cameras recorded")
    if not guess and not masks.files:
        raise DataError(
            "no crop has a mask: give --masks, a column mask in the manifest, files NAME.mask.png beside the crops, or"
            " --guess"
        )
    targets = files_below(list(crops), out / IMAGES)
    begin_folder(out, SETTINGS, {**_settings(samples, weights, masks), "method": method, "guess": guess})

    def draw(sample: Sample) -> Image.Image | None:
        image, share = completion.complete_crop(sample, read_image(sample.path), masks, guess)
        return image if share else None

    there = write_crops(out, {targets[path]: partial(draw, sample) for path, sample in crops.items()}, progress)
    completed = {path for path in crops if targets[path] in there}
    return CompletedFolder(
        finish_folder(out, _rows(samples, completed, targets)), len(completed), len(crops) - len(completed)
    )


def _rows(samples: Sequence[Sample], completed: set[Path], targets: dict[Path, Path]) -> list[Sample]:
    """Return the rows of the manifest: a completed crop has one row, wherever it is listed."""
    rows: dict[Path, Sample] = {}
    kept = []
    for sample in samples:
        if sample.path not in completed:
            kept.append(sample)
        elif sample.path not in rows:
            rows[sample.path] = generated_row(sample, targets[sample.path])
    return [*kept, *rows.values()]


def _settings(samples: Sequence[Sample], weights: Path | None, masks: MaskFiles) -> dict[str, object]:
    """Return what decides the crops, in values that JSON holds."""
    files = "\n".join(f"{crop}\0{mask}\0{mask.stat().st_size}" for crop, mask in sorted(masks.files.items()))
    return {
        "command": "complete",
        "weights": "" if weights is None else hashlib.sha256(weights.read_bytes()).hexdigest()[:16],
        "rows": rows_checksum(samples),
        "masks": f"{zlib.crc32(files.encode('utf-8', 'surrogateescape')):08x}",
    }
