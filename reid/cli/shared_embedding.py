"""The part of ``reid embed`` that shares the images among processes, or workers of Ray, in shards."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reid.errors import ConfigError
from reid.records import Embeddings, Sample

if TYPE_CHECKING:
    from reid.models.checkpoint import Checkpoint
    from reid.retrieval.embedding_shards import EmbeddingShards

SHARD_ROWS = 4096


class Engine(StrEnum):
    """What embeds the shards."""

    LOCAL = "local"
    RAY = "ray"


EngineName = Annotated[
    Engine,
    typer.Option(
        "--engine",
        help="What embeds: local is this machine, or all processes that torchrun started; ray is a Ray cluster and"
        " needs the extra ray.",
    ),
]
ShardRows = Annotated[
    int | None,
    typer.Option(
        min=64,
        help="Keep the embeddings of each SHARD_ROWS images in a file of their own beside OUT until all are there, so"
        " that an interrupted command continues. A multiple of 64. Default: 4096 with torchrun or Ray, else no shards.",
    ),
]
RayWorkers = Annotated[
    int | None, typer.Option("--workers", min=1, help="With --engine ray: how many workers embed. Default: 1.")
]


def in_shards(engine: Engine, shard_rows: int | None, workers: int | None) -> bool:
    """Return whether the work is shared or kept in shards; ConfigError where ``workers`` would change nothing."""
    if workers is not None and engine is not Engine.RAY:
        raise ConfigError("--workers: changes nothing without --engine ray")
    return engine is Engine.RAY or shard_rows is not None or os.environ.get("WORLD_SIZE", "1") != "1"


def embed_in_shards(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    out: Path,
    engine: Engine,
    shard_rows: int | None,
    workers: int | None,
) -> Embeddings | None:
    """Embed samples in shards; return all embeddings, or None in a process that only writes shards.

    Args:
        checkpoint: The network.
        samples: The samples.
        out: The file of all embeddings; the folder of the shards has its name and ".shards".
        engine: What embeds.
        shard_rows: The number of images of a shard.
        workers: The number of workers of Ray.
    """
    from reid.data.loading import domain_indices
    from reid.retrieval.embed import distinct_images
    from reid.retrieval.embedding_shards import EmbeddingShards
    from reid.training.processes import SilentExit, joined_processes

    distinct, rows = distinct_images(checkpoint, samples)
    domain_indices(distinct, checkpoint.domain_fields, checkpoint.domains, checkpoint.unknown_domain)  # all are known
    shards = EmbeddingShards(_folder_of(out), tuple(distinct), shard_rows or SHARD_ROWS)
    try:
        with joined_processes(f"the same command continues {shards.folder} at the shards that are missing") as group:
            if group.is_writer:
                shards.open(checkpoint.fingerprint)
            group.collect(None)  # the folder is there
            numbers = shards.missing(checkpoint.fingerprint, range(group.rank, shards.count, group.count))
            _embed(shards, checkpoint, numbers, engine, workers, group.is_writer)
            group.collect(None)  # all shards are there
            merged = shards.merge(checkpoint.fingerprint) if group.is_writer else None
    except SilentExit:
        raise typer.Exit(1) from None
    if merged is None or len(distinct) == len(samples):
        return merged
    return Embeddings(tuple(samples), merged.vectors[rows], merged.fingerprint)


def remove_shards(out: Path) -> None:
    """Remove the shards of a file of embeddings that is complete."""
    folder = _folder_of(out)
    if folder.is_dir():
        from reid.retrieval.embedding_shards import remove_shard_files

        remove_shard_files(folder)


def _embed(
    shards: EmbeddingShards,
    checkpoint: Checkpoint,
    numbers: Sequence[int],
    engine: Engine,
    workers: int | None,
    is_writer: bool,
) -> None:
    from reid.pipeline import progress_bar
    from reid.pipeline import workers as readers

    images = sum(len(shards.part(number)) for number in numbers)
    if not is_writer:
        _embed_here(shards, checkpoint, numbers, readers(), lambda _: None)
        return
    with progress_bar("embedding", images) as progress:
        if engine is Engine.RAY and numbers:
            from reid.retrieval.ray_engine import embed_with_ray

            embed_with_ray(shards, checkpoint, numbers, progress, workers or 1)
        else:
            _embed_here(shards, checkpoint, numbers, readers(), progress)


def _embed_here(
    shards: EmbeddingShards,
    checkpoint: Checkpoint,
    numbers: Sequence[int],
    readers: int,
    progress: Callable[[int], object],
) -> None:
    for number in numbers:
        shards.write(number, checkpoint, workers=readers, progress=progress)


def _folder_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.shards")
