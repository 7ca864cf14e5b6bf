"""Write the manifest of Cars-196: ``python datasets/cars196/prepare.py FOLDER``.

FOLDER holds cars_annos.mat and car_ims.  Classes 1 to 98 are for training, the others for testing.
"""

from __future__ import annotations

import sys
from pathlib import Path

from reid.data.manifest import write_manifest
from reid.data.protocols.matlab import read_mat
from reid.errors import DataError, ReidError
from reid.records import Sample, Split

LAST_TRAINING_CLASS = 98


def main(folder: Path) -> None:
    """Write ``folder``/manifest.csv."""
    source = folder / "cars_annos.mat"
    annotations = read_mat(source).get("annotations")
    if annotations is None:
        raise DataError(f"{source}: expected the variable annotations")
    samples = []
    for annotation in annotations.reshape(-1):
        number = int(annotation["class"].item())
        split = Split.TRAIN if number <= LAST_TRAINING_CLASS else Split.GALLERY
        path = folder / annotation["relative_im_path"]
        samples.append(Sample(path, f"{number:03d}", category="car", split=split))
    write_manifest(samples, folder / "manifest.csv")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except (ReidError, IndexError) as error:
        sys.exit(f"error: {error}" if isinstance(error, ReidError) else (__doc__ or "").splitlines()[0])
