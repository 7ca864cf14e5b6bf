"""``reid cameras probe``: what a linear function can read from every stage of a network."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from reid.cli.cameras import cameras
from reid.cli.network_options import NetworkCommand
from reid.cli.options import (
    AsJson,
    Backbone,
    Data,
    Normalize,
    ProfileFiles,
    Root,
    Size,
    Unseen,
    Weights,
    for_cameras_of,
    normalization_request,
    normalized_for,
    samples_of,
)
from reid.records import Split

commands = typer.Typer()  # the command is one of the group "cameras"


@cameras.command(
    cls=NetworkCommand, epilog="Example: reid cameras probe --data crops/manifest.csv --weights site.safetensors"
)
def probe(
    data: Data = None,
    root: Root = None,
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    profiles: ProfileFiles = None,
    normalize: Normalize = None,
    unseen: Unseen = None,
    split: Annotated[
        Split | None, typer.Option(help="Split to ask. Default: query and gallery if they have crops, else all crops.")
    ] = None,
    norms: Annotated[
        bool, typer.Option("--norms", help="Ask before and after every layer that normalizes, not every stage.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure how well a linear function of every stage of a network tells the camera and the identity of a crop.

    The camera is asked of identities that the function has not seen, the identity in a camera that it has not seen.
    A network that does not see the camera is near chance in the first and far above it in the second.  The crops need
    labels.

    With --norms, the features are the mean and the deviation of each channel over the image, which an instance norm
    makes equal for all images and a normalization by camera for all cameras.
    """
    from reid.data.manifest import check_files
    from reid.pipeline import check_weights, load_checkpoint, progress_bar, workers

    normalization_request(normalize, profiles)
    check_weights(weights, profiles or ())
    samples = samples_of(data, root)
    images = {s.path: s for s in samples if (s.split is split if split is not None else s.split is not Split.TRAIN)}
    asked = list(images.values()) or list(samples)
    check_files(asked)
    checkpoint = normalized_for(samples, load_checkpoint(weights, backbone, size, profiles or ()), normalize, profiles)
    checkpoint = for_cameras_of(samples, checkpoint, unseen)
    from reid.evaluation.analysis.probes import probe_network

    with progress_bar("probing", len(asked)) as progress:
        found = probe_network(checkpoint, asked, workers=workers(), progress=progress, norms=norms)
    if as_json:
        typer.echo(json.dumps([one.to_json() for one in found], indent=2))
        return
    typer.echo("crops\tstage\tchannels\tcamera\tby chance\tidentity\tby chance")
    for one in found:
        shares = "\t".join(
            f"{100 * share:.1f}" for share in (one.camera, one.camera_chance, one.identity, one.identity_chance)
        )
        typer.echo(f"{one.group}\t{one.stage}\t{one.channels}\t{shares}")
