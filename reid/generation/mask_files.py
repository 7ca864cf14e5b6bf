"""Find the mask of each crop: the pixels that an occluder hides.

A mask is an image as large as its crop, white (128 or more in any channel) where the crop is hidden.  It comes from a
folder, from the column ``mask`` of the manifest, or from a file beside the crop.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from reid.data.images import read_image
from reid.data.manifest import read_table
from reid.errors import DataError
from reid.records import Sample

COLUMN, SUFFIX = "mask", ".mask.png"
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class MaskFiles:
    """The mask files of the crops that have one; see :func:`find_masks`."""

    files: Mapping[Path, Path] = field(default_factory=dict)

    def read(self, crop: Path, size: tuple[int, int]) -> BoolArray | None:
        """Read the mask of a crop.

        Args:
            crop: The file of the crop.
            size: Width and height of the crop.

        Returns:
            (H, W) bool, True where the crop is hidden; None where the crop has no mask.

        Raises:
            DataError: The mask cannot be read, or has another size.
        """
        file = self.files.get(crop)
        if file is None:
            return None
        image = read_image(file)
        if image.size != size:
            raise DataError(
                f"{file}: the mask is {image.width} x {image.height} pixels and its crop {size[0]} x {size[1]}; give"
                " both the same size"
            )
        hidden: BoolArray = np.asarray(image).max(2) >= 128
        return hidden


def find_masks(samples: Sequence[Sample], sources: Sequence[str] = (), folder: Path | None = None) -> MaskFiles:
    """Find the mask files of crops.

    With ``folder``, the mask of ``a/b/1.jpg`` is ``a/b/1.png`` in it, the path counted from the folder that all crops
    have in common, or ``1.png`` where no other crop is called ``1``.  Without it, the mask stands in the column
    ``mask`` of the manifest, as a path relative to its folder, or beside the crop as ``1.mask.png``.

    Args:
        samples: The crops.
        sources: The manifests or folders that the crops come from.
        folder: The folder of masks.

    Returns:
        The files that were found.

    Raises:
        DataError: The folder is missing or holds no mask of these crops, a mask that a manifest names does not exist,
            or it is unclear which crop a mask belongs to.
    """
    crops = list(dict.fromkeys(sample.path for sample in samples))
    if folder is not None:
        return MaskFiles(_in_folder(crops, folder))
    named = _named_in_manifests(sources)
    beside = {crop: crop.with_name(crop.stem + SUFFIX) for crop in crops}
    return MaskFiles({**{crop: file for crop, file in beside.items() if file.is_file()}, **named})


def _in_folder(crops: Sequence[Path], folder: Path) -> dict[Path, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of masks")
    common = os.path.commonpath([crop.absolute().parent for crop in crops]) if crops else ""
    stems, found = Counter(crop.stem for crop in crops), {}
    for crop in crops:
        relative = folder / Path(os.path.relpath(crop.absolute(), common)).with_suffix(".png")
        plain = folder / f"{crop.stem}.png"
        if relative.is_file():
            found[crop] = relative
        elif plain.is_file():
            if stems[crop.stem] > 1:
                raise DataError(
                    f"{plain}: {stems[crop.stem]} crops are called {crop.stem}, such as {crop}; put their masks into"
                    " folders like those of the crops"
                )
            found[crop] = plain
    if crops and not found:
        raise DataError(f"{folder}: holds no mask of these crops; expected {crops[0].stem}.png for {crops[0]}")
    return found


def _named_in_manifests(sources: Sequence[str]) -> dict[Path, Path]:
    """Read the column ``mask`` of the manifests among the sources."""
    found: dict[Path, Path] = {}
    for source in map(Path, sources):
        manifest = source / "manifest.csv" if source.is_dir() else source
        if not manifest.is_file():
            continue
        table = read_table(manifest)
        for sample, cell in zip(table.samples, table.more.get(COLUMN, ()), strict=False):
            if cell:
                file = manifest.parent / cell
                if not file.is_file():
                    raise DataError(f"{manifest}: no such mask {file} (crop {sample.path}); mend the column {COLUMN}")
                found[sample.path] = file
    return found
