"""Write the images and manifests of CUHK03, classic protocol: ``python datasets/cuhk03/prepare.py cuhk-03.mat OUT``.

The file is HDF5 (MATLAB 7.3), so this needs h5py.  For detected and for labelled boxes it holds a cell for each of five
camera pairs.  Row p of a cell holds ten images of person p, five of each camera, some of them empty.  The file also
holds twenty test sets, each a list of (camera pair, person).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reid.data.manifest import write_manifest
from reid.errors import DataError, ReidError
from reid.records import Sample, Split

BOXES = {"detected": "detected", "labelled": "labeled"}
PER_CAMERA = 5


def main(source: Path, out: Path) -> None:
    """Write ``out``/images_*/*.png and ``out``/classic_*_*.csv."""
    import h5py

    try:
        with h5py.File(source, "r") as file:
            test_sets = [_cell(file, reference).astype(int) for reference in file["testsets"][0]]
            for boxes, name in BOXES.items():
                samples = list(_write_images(file, name, out / f"images_{boxes}"))
                for number, people in enumerate(test_sets, start=1):
                    tested = {f"{pair}_{person:03d}" for pair, person in people}
                    write_manifest(_assign_splits(samples, tested), out / f"classic_{boxes}_{number}.csv")
    except (OSError, KeyError) as error:
        raise DataError(f"{source}: not the authors' cuhk-03.mat ({error})") from error


def _cell(file: Any, reference: Any) -> Any:
    """Read what a reference points to, rows first as in MATLAB."""
    return np.asarray(file[reference]).T


def _write_images(file: Any, name: str, folder: Path) -> Iterator[Sample]:
    folder.mkdir(parents=True, exist_ok=True)
    for pair, reference in enumerate(file[name][0], start=1):
        for person, row in enumerate(_cell(file, reference), start=1):
            for number, image in enumerate(row, start=1):
                pixels = _cell(file, image)
                if pixels.ndim != 3:
                    continue  # an empty cell
                view = 1 if number <= PER_CAMERA else 2
                path = folder / f"{pair}_{person:03d}_{view}_{number:02d}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(path)
                yield Sample(path, f"{pair}_{person:03d}", f"{pair}-{view}")


def _assign_splits(samples: list[Sample], tested: set[str]) -> list[Sample]:
    """Make images of the tested people queries and gallery, and all others train."""
    train = [replace(sample, split=Split.TRAIN) for sample in samples if sample.identity not in tested]
    test = [sample for sample in samples if sample.identity in tested]
    return train + [replace(sample, split=split) for split in (Split.QUERY, Split.GALLERY) for sample in test]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit((__doc__ or "").splitlines()[0])
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except ReidError as error:
        sys.exit(f"error: {error}")
