"""Write the manifests of an animal data set: ``python datasets/wildlife/prepare.py METADATA.csv OUT``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from reid.data.manifest import write_manifest
from reid.data.protocols.wildlife import open_split, read_metadata, time_split
from reid.errors import ReidError


def main(metadata: Path, out: Path, images: Path | None = None, unknown: float = 0.1) -> None:
    """Write ``out``/time.csv and ``out``/open.csv."""
    samples = read_metadata(metadata, images)
    write_manifest(time_split(samples), out / "time.csv")
    write_manifest(open_split(samples, unknown), out / "open.csv")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("metadata", type=Path, help="CSV with the columns path, identity and date")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument(
        "--images", "--pictures", type=Path, help="folder that the paths are relative to; default: the CSV's"
    )
    parser.add_argument(
        "--unknown", type=float, default=0.1, help="share of the individuals that are not in the gallery"
    )
    given = parser.parse_args()
    try:
        main(given.metadata, given.out, given.images, given.unknown)
    except ReidError as error:
        sys.exit(f"error: {error}")
