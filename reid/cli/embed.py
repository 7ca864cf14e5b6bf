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
) -> None:
    """Compute the embedding of every image, a vector of unit length, and write all with their labels."""
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
    embeddings = embed_samples(for_cameras_of(samples, checkpoint, unseen), chosen)
    save_embeddings(embeddings, out)
    typer.echo(
        f"{out}\t{len(embeddings)} vectors of {embeddings.vectors.shape[1]}\tfingerprint {embeddings.fingerprint}"
    )
