"""``reid embed``: write the embeddings of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reid.cli.network_options import ReadingCommand
from reid.cli.options import (
    Backbone,
    Data,
    Flip,
    ProfileFiles,
    Root,
    Size,
    Unseen,
    Weights,
    for_cameras_of,
    samples_of,
    unseen_policy,
)
from reid.cli.shared_embedding import (
    Engine,
    EngineName,
    RayWorkers,
    ShardRows,
    embed_in_shards,
    in_shards,
    remove_shards,
)
from reid.records import Split

commands = typer.Typer()


@commands.command(
    cls=ReadingCommand, epilog="Example: reid embed --data crops/manifest.csv --out embeddings.safetensors"
)
def embed(
    out: Annotated[Path, typer.Option(help="Embeddings file to write.")],
    data: Data = None,
    root: Root = None,
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    profiles: ProfileFiles = None,
    unseen: Unseen = None,
    flip: Flip = False,
    split: Annotated[Split | None, typer.Option(help="Embed this split only.")] = None,
    engine: EngineName = Engine.LOCAL,
    shard_rows: ShardRows = None,
    workers: RayWorkers = None,
) -> None:
    """Compute the embedding of every image, a vector of unit length, and write all with their labels.

    Several processes started by torchrun, and workers of Ray, share the images in shards.  An interrupted command
    continues at the shards that are missing.
    """
    from reid.data.manifest import check_files
    from reid.files import check_output_file
    from reid.pipeline import check_weights, embed_samples, load_checkpoint

    check_output_file(out, "reid-embeddings-", data)
    unseen_policy(unseen)
    check_weights(weights, profiles or ())
    samples = samples_of(data, root)
    chosen = [sample for sample in samples if split in (None, sample.split)]
    check_files(chosen)
    from reid.retrieval.embed import save_embeddings

    checkpoint = load_checkpoint(weights, backbone, size, profiles or (), flip)
    checkpoint = for_cameras_of(samples, checkpoint, unseen)
    if in_shards(engine, shard_rows, workers):
        found = embed_in_shards(checkpoint, chosen, out, engine, shard_rows, workers)
        if found is None:  # another process writes the file
            return
        embeddings = found
    else:
        embeddings = embed_samples(checkpoint, chosen)
    save_embeddings(embeddings, out)
    remove_shards(out)
    typer.echo(
        f"{out}\t{len(embeddings)} vectors of {embeddings.vectors.shape[1]}\tfingerprint {embeddings.fingerprint}"
    )
