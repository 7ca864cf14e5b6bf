"""Write restyled crops to a folder of their own, with a manifest that marks them as generated.

An interrupted command continues: crops that are there are kept, each appears whole or not at all, and the manifest
appears last.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reid.data.changed_images import begin_folder
from reid.data.images import read_image
from reid.data.loading import Progress
from reid.data.manifest import write_manifest
from reid.data.selection import calibration_samples
from reid.data.transforms import LUMA
from reid.errors import ConfigError, DataError
from reid.files import writer_folder
from reid.generation.camera_style import CameraStyle, measure_style, transfer_moments
from reid.generation.crop_writing import generated_row
from reid.generation.restyle_plan import style_name
from reid.generation.restyler import Restyler
from reid.records import Modality, Sample

MANIFEST, SETTINGS, IMAGES, RESTYLER = "manifest.csv", "restyle.json", "images", "restyler"
FEWEST = 2  # crops that a style is measured on

Restyle = Callable[[Sample, Sample, Image.Image], Tensor]  # source, target, image -> (3, H, W) uint8


def write_restyled(
    pairs: Sequence[tuple[Sample, Sample]],
    restyle: Restyle,
    out: Path,
    settings: Mapping[str, object],
    *,
    progress: Progress | None = None,
) -> Path:
    """Restyle crops and write them as PNG files, with a manifest of split train.

    Args:
        pairs: The crops and crops of their target cameras, see :meth:`~reid.generation.restyle_plan.RestylePlan.pairs`.
        restyle: Restyles one image.
        out: The folder: new, empty, or of an earlier run with the same settings and pairs.
        settings: What decides the crops, in values that JSON can hold.
        progress: Is called with 1 after each crop.

    Returns:
        The manifest. A row has the identity of its crop of split train, and camera and light of its target; it is
        marked as generated.

    Raises:
        ConfigError: The folder holds something else, or no file can be written in it.
        DataError: An image cannot be read.
    """
    begin_folder(out, SETTINGS, settings)
    files = _files_of(pairs, out / IMAGES)
    manifest = out / MANIFEST
    try:
        with writer_folder(out) as own:
            for (sample, target), file in zip(pairs, files, strict=True):
                if not file.exists():
                    pixels = as_modality(restyle(sample, target, read_image(sample.path)), target.modality)
                    _write_image(pixels, own, file)
                if progress is not None:
                    progress(1)
        if not manifest.exists():
            rows = [_generated(sample, target, file) for (sample, target), file in zip(pairs, files, strict=True)]
            write_manifest(rows, manifest)
    except OSError as error:
        raise ConfigError(
            f"{out}: cannot be written ({error.strerror or error}); free some space, and the same command continues"
        ) from error
    return manifest


def moments_restyle(samples: Sequence[Sample], pairs: Sequence[tuple[Sample, Sample]]) -> Restyle:
    """Return the function that transfers the moments of pixels between cameras.

    The styles are measured on the recorded crops of split train of each camera, or on all where it has none. Where the
    target records infrared light, crops are made grey before they are measured and changed.

    Args:
        samples: All rows of the data.
        pairs: The crops that will be restyled.

    Raises:
        DataError: A camera has fewer than two crops, or an image cannot be read.
    """
    styles: dict[tuple[str, Modality], CameraStyle] = {}
    for pair in pairs:
        for sample in pair:
            key = style_name(sample), pair[1].modality
            if key not in styles:
                styles[key] = _pixel_style(samples, sample, pair[1].modality)

    def restyle(sample: Sample, target: Sample, image: Image.Image) -> Tensor:
        light = target.modality
        pixels = as_modality(to_pixels(image), light)[None]
        changed = transfer_moments(pixels, styles[style_name(sample), light], styles[style_name(target), light])
        return changed[0].round().clamp(0, 255).to(torch.uint8)

    return restyle


def network_restyle(restyler: Restyler) -> Restyle:
    """Return the function that restyles by a network, in the size of its image preparation."""

    def restyle(_sample: Sample, target: Sample, image: Image.Image) -> Tensor:
        pixels = as_modality(restyler.transform.resize(image), target.modality)
        return restyler.restyle(pixels[None], style_name(target))[0]

    return restyle


def to_pixels(image: Image.Image) -> Tensor:
    """Turn an RGB image into pixels (3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def as_modality(pixels: Tensor, modality: Modality) -> Tensor:
    """Make pixels (3, H, W) uint8 grey if they shall look infrared, which has three equal channels."""
    if modality is not Modality.INFRARED:
        return pixels
    grey = (pixels.float() * torch.tensor(LUMA)[:, None, None]).sum(0, keepdim=True)
    return grey.round().clamp(0, 255).to(torch.uint8).expand(3, -1, -1)


def _pixel_style(samples: Sequence[Sample], of: Sample, light: Modality) -> CameraStyle:
    own = [sample for sample in samples if style_name(sample) == style_name(of) and not sample.generated]
    chosen = calibration_samples(own)
    if len(chosen) < FEWEST:
        raise DataError(f'camera "{of.camera}": {len(chosen)} crop; its style is measured on {FEWEST} or more')
    return measure_style(as_modality(to_pixels(read_image(one.path)), light)[None] for one in chosen)


def _generated(sample: Sample, target: Sample, path: Path) -> Sample:
    row = replace(generated_row(sample, path), camera=target.camera, modality=target.modality)
    return replace(row, time=None, track="")


def _files_of(pairs: Sequence[tuple[Sample, Sample]], folder: Path) -> list[Path]:
    """Name the file of each crop by its own name and a hash of where it lies and of the target camera.

    Where it lies counts from the folder that all crops have in common, so the names stay when this folder moves.
    """
    paths = [sample.path.absolute() for sample, _ in pairs]
    common = os.path.commonpath([path.parent for path in paths])
    keys = [f"{os.path.relpath(path, common)}\0{target.camera}" for path, (_, target) in zip(paths, pairs, strict=True)]
    return [
        folder / f"{path.stem[:48]}-{hashlib.sha256(os.fsencode(key)).hexdigest()[:16]}.png"
        for path, key in zip(paths, keys, strict=True)
    ]


def _write_image(pixels: Tensor, own: Path, target: Path) -> None:
    part = own / target.name
    with os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(file, "PNG", compress_level=1)
    target.parent.mkdir(parents=True, exist_ok=True)
    part.replace(target)
