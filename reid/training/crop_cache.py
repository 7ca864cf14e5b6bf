"""The crops of a training: in memory, or decoded once into a file that is mapped into memory.

A mapped file holds the same bytes, so a training gives the same numbers. The system keeps what fits of the file in free
memory and gives it up for others, so the memory that the training itself needs does not grow with the crops.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from reid.data.loading import Progress, load_crops
from reid.data.transforms import EvaluationTransform
from reid.errors import DataError
from reid.files import write_whole
from reid.records import Sample

BLOCK = 1024  # crops that are decoded before they are written
LARGEST_SHARE = 0.5  # of the free memory that the crops of a training may take


@dataclass(frozen=True)
class CropSource:
    """How a training reads its crops.

    Attributes:
        transform: How crops are resized.
        threads: How many threads read files.
        progress: Whether to draw a bar on stderr.
        folder: Where decoded crops are kept; None keeps them in memory.
    """

    transform: EvaluationTransform
    threads: int
    progress: bool = False
    folder: Path | None = None

    def load(self, samples: Sequence[Sample], title: str = "reading crops") -> Tensor:
        """Return the crops (N, 3, H, W) uint8 of N samples, resized but not normalised.

        Raises:
            DataError: An image cannot be read, or the file of decoded crops cannot be written.
        """
        with tqdm(desc=title, total=len(samples), unit="img", disable=not self.progress) as bar:
            if self.folder is None:
                return load_crops(samples, self.transform, workers=self.threads, progress=bar.update)
            path = self.folder / f"crops-{crops_digest(samples, self.transform)}.npy"
            if path.is_file():
                bar.update(len(samples))
            else:
                self._decode(samples, path, bar.update)
            return map_crops(path)

    def _decode(self, samples: Sequence[Sample], path: Path, progress: Progress) -> None:
        try:
            write_whole(path, lambda part: self._write(samples, part, progress))
        except OSError as error:
            raise DataError(
                f"{path}: the decoded crops, {crop_bytes(len(samples), self.transform) / 2**30:.1f} GiB, cannot be"
                f" written ({error.strerror or error}); choose another folder with --cache, or free some space"
            ) from error

    def _write(self, samples: Sequence[Sample], path: Path, progress: Progress) -> None:
        """Decode block by block into a file in numpy's format; only one block is in memory."""
        shape = (len(samples), 3, self.transform.height, self.transform.width)
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, len(samples), BLOCK):
                block = samples[start : start + BLOCK]
                load_crops(block, self.transform, workers=self.threads, progress=progress).numpy().tofile(file)


def map_crops(path: Path) -> Tensor:
    """Map a file of decoded crops into memory; nothing that is written to the tensor reaches the file.

    Raises:
        DataError: The file is damaged.
    """
    try:
        return torch.from_numpy(np.load(path, mmap_mode="c"))
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: the decoded crops are damaged or cut off ({error}); delete the file") from error


def remove_crops(folder: Path) -> None:
    """Remove the files of decoded crops from a folder."""
    for path in folder.glob("crops-*.npy"):
        path.unlink()


def crops_digest(samples: Sequence[Sample], transform: EvaluationTransform) -> str:
    """Hash what decoded crops depend on: the files, their sizes and times, and how they are resized."""
    digest = hashlib.sha256(json.dumps([transform.height, transform.width, transform.interpolation]).encode())
    for sample in samples:
        try:
            status = sample.path.stat()
        except OSError:
            raise DataError(f"{sample.path}: no such image") from None
        digest.update(f"{sample.path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def crop_bytes(count: int, transform: EvaluationTransform) -> int:
    """Return how many bytes decoded crops take."""
    return count * 3 * transform.height * transform.width


def cached_if_large(source: CropSource, count: int, folder: Path) -> CropSource:
    """Keep the crops in a folder instead of memory where they would take more than half of what is free.

    Args:
        source: Reads the crops.
        count: The number of crops.
        folder: Where to keep them, unless ``source`` names a folder.
    """
    free = free_memory()
    if source.folder is not None or free is None or crop_bytes(count, source.transform) <= LARGEST_SHARE * free:
        return source
    return replace(source, folder=folder)


def free_memory() -> int | None:
    """Return the bytes of memory that programs can still have; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError):
            return None
