"""Embed shards on a Ray cluster, with Ray Data, which comes with the extra "ray".

Each worker keeps one copy of the network and writes whole shards into a folder that all machines share. Ray starts a
worker that dies again and repeats its shard.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from reid.data.loading import Progress
from reid.errors import ConfigError, ReidError
from reid.models.checkpoint import Checkpoint
from reid.retrieval.embedding_shards import EmbeddingShards

MISSING = '--engine ray: Ray is not installed: pip install "reid-multidomain[ray]"'


class ShardWorker:
    """A worker of Ray: it embeds the shards whose numbers it gets.

    Args:
        shards: The shards.
        checkpoint: The network, or a reference to it in Ray's store.
        threads: The number of threads, as in the program that asked.
    """

    def __init__(self, shards: EmbeddingShards, checkpoint: Any, threads: int) -> None:
        import ray
        import torch

        torch.set_num_threads(threads)
        self._shards = shards
        self._checkpoint: Checkpoint = ray.get(checkpoint) if isinstance(checkpoint, ray.ObjectRef) else checkpoint

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Embed the shards with the numbers ``batch["shard"]``, and return how many images each has."""
        counts = []
        for number in batch["shard"].tolist():
            if self._shards.missing(self._checkpoint.fingerprint, [number]):
                self._shards.write(number, self._checkpoint)
            counts.append(len(self._shards.part(number)))
        return {"images": np.array(counts, dtype=np.int64)}


def embed_with_ray(
    shards: EmbeddingShards, checkpoint: Checkpoint, numbers: Sequence[int], progress: Progress, workers: int = 1
) -> None:
    """Embed shards on the Ray cluster that RAY_ADDRESS names, or on one that is started on this machine.

    Args:
        shards: The shards; their folder and the images are at the same paths on all machines.
        checkpoint: The network.
        numbers: Which shards to embed.
        progress: Is called with the number of images of each finished shard.
        workers: How many workers embed at the same time.

    Raises:
        ConfigError: Ray is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError(MISSING) from error
    import torch

    started = not ray.is_initialized()
    if started:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, logging_level="error")
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        items = [{"shard": number} for number in numbers]
        settings = {"shards": shards, "checkpoint": ray.put(checkpoint), "threads": torch.get_num_threads()}
        answers = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            ShardWorker, fn_constructor_kwargs=settings, batch_size=1, concurrency=workers, num_cpus=1
        )
        for row in answers.iter_rows():
            progress(int(row["images"]))
    except ray.exceptions.RayError as error:
        raise _own_error(error) from error
    finally:
        if started:
            ray.shutdown()


def _own_error(error: BaseException) -> ReidError:
    """Find the error of this package that made a worker fail, or describe Ray's in one line."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ReidError):
            return inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ConfigError(f"--engine ray: {lines[-1]}; the same command continues at the shards that are missing")
