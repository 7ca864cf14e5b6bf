"""Embeddings of many images in parts: one file for each shard, so that work is shared and an interruption loses little.

Shards begin at whole batches, so every image stands in the batch in which one process would embed it, and the vectors
are the same, bit for bit, with the same number of threads.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reid.data.loading import Progress
from reid.errors import ConfigError, DataError
from reid.files import write_whole
from reid.models.checkpoint import Checkpoint
from reid.records import Embeddings, Sample
from reid.retrieval.embed import embed, load_embeddings, save_embeddings
from reid.structured_text import read_json

BATCH = 64  # as in embed
PLAN = "plan.json"
_SHARD = re.compile(r"\d{6,}\.safetensors")


@dataclass(frozen=True)
class EmbeddingShards:
    """A folder with one file of embeddings for each shard of some samples.

    Attributes:
        folder: The folder; processes on several machines share it.
        samples: All samples, each image once.
        rows: The number of samples of a shard, a multiple of 64; the last one may have fewer.
    """

    folder: Path
    samples: tuple[Sample, ...]
    rows: int

    def __post_init__(self) -> None:
        if self.rows < BATCH or self.rows % BATCH:
            raise ConfigError(f"--shard-rows {self.rows}: expected a multiple of {BATCH}, the size of a batch")

    @property
    def count(self) -> int:
        """The number of shards."""
        return -(-len(self.samples) // self.rows)

    def path(self, number: int) -> Path:
        """Return the file of a shard."""
        return self.folder / f"{number:06d}.safetensors"

    def part(self, number: int) -> tuple[Sample, ...]:
        """Return the samples of a shard."""
        return self.samples[number * self.rows : (number + 1) * self.rows]

    def open(self, fingerprint: str) -> None:
        """Make the folder, or check that its shards are of the same samples and the same network.

        Raises:
            ConfigError: They are not.
            DataError: The plan in the folder is damaged.
        """
        plan = {"samples": self._digest(), "rows": self.rows, "fingerprint": fingerprint}
        path = self.folder / PLAN
        if not path.exists():
            write_whole(path, lambda part: part.write_text(json.dumps(plan), encoding="utf-8"))
            return
        try:
            found = dict(read_json(path))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path}: damaged ({error}); delete the folder to embed again") from error
        if found != plan:
            changed = ", ".join(key for key in plan if found.get(key) != plan[key])
            raise ConfigError(f"{self.folder}: holds shards of other work ({changed}); delete it to embed again")

    def missing(self, fingerprint: str, numbers: Sequence[int] | None = None) -> list[int]:
        """Return the shards, of these numbers or of all, whose file is missing or damaged."""
        chosen = range(self.count) if numbers is None else numbers
        return [number for number in chosen if self._read(number, fingerprint) is None]

    def write(self, number: int, checkpoint: Checkpoint, *, workers: int = 0, progress: Progress | None = None) -> None:
        """Embed the samples of a shard and write its file, whole or not at all."""
        found = embed(checkpoint, self.part(number), workers=workers, progress=progress)
        save_embeddings(found, self.path(number))

    def merge(self, fingerprint: str) -> Embeddings:
        """Join the shards in their order.

        Raises:
            DataError: A shard is missing or damaged.
        """
        parts = []
        for number in range(self.count):
            part = self._read(number, fingerprint)
            if part is None:
                raise DataError(f"{self.path(number)}: missing or damaged; the same command embeds it again")
            parts.append(part.vectors)
        return Embeddings(self.samples, np.concatenate(parts), fingerprint)

    def _read(self, number: int, fingerprint: str) -> Embeddings | None:
        """Read a shard; None where it is missing, damaged or of another network."""
        if not self.path(number).is_file():
            return None
        try:
            found = load_embeddings(self.path(number))
        except DataError:
            return None
        fits = found.fingerprint == fingerprint and len(found.vectors) == len(self.part(number))
        return found if fits else None

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(f"{sample.path}\0{sample.camera}\0{sample.modality}\0{sample.category}\n".encode())
        return digest.hexdigest()[:16]


def remove_shard_files(folder: Path) -> None:
    """Remove the files of shards and their plan, and the folder unless it holds other files."""
    if not (folder / PLAN).is_file():
        return
    for path in folder.iterdir():
        if _SHARD.fullmatch(path.name):
            path.unlink()
    (folder / PLAN).unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
