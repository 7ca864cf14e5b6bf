"""Commands that bring others' data and weights in, and weights out: init, weights list, weights get, export."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from reid.cli.options import Backbone, ProfileFiles, Size, Weights

commands = typer.Typer()
weights = typer.Typer(help="Public weights by name: list them, fetch one.", no_args_is_help=True)
commands.add_typer(weights, name="weights")


@commands.command(epilog='Example: reid init crops --pattern "{camera}/{identity}_{time}.jpg"')
def init(
    folder: Annotated[Path, typer.Argument(help="folder of crops, as camera/identity/*.jpg or identity/*.jpg")],
    pattern: Annotated[
        str | None,
        typer.Option(help="how paths are made: {camera} {identity} {time} {modality} {domain} {split}, * is anything"),
    ] = None,
    domain: Annotated[str, typer.Option(help="what the crops show: person, vehicle, ...")] = "person",
    protocol: Annotated[
        str | None, typer.Option(help="the folder is a published data set: market1501, regdb:trial=3, ...")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="write a manifest anew that is there already")] = False,
) -> None:
    """Write a manifest for a folder of crops, or for a published data set, and say what was found."""
    from reid.data.crop_folder import init_manifest, init_protocol

    if protocol and pattern:
        raise typer.BadParameter("a published data set is read by its protocol; leave --pattern out")
    if protocol:
        found = init_protocol(folder, protocol, overwrite=force)
    else:
        found = init_manifest(folder, pattern, category=domain, overwrite=force)
    for line in found.lines():
        typer.echo(line)


@commands.command(epilog="Example: reid export --profiles cameras.safetensors --camera north --out north.onnx")
def export(
    out: Annotated[Path, typer.Option(help="file to write: .onnx, or .xml for OpenVINO; its card goes beside it")],
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    profiles: ProfileFiles = None,
    camera: Annotated[str, typer.Option(help="camera whose statistics it gets, where the weights know any")] = "",
) -> None:
    """Write a network for ONNX Runtime or OpenVINO, with the statistics of one camera."""
    from reid.models.export import export as write
    from reid.models.export import format_of
    from reid.pipeline import claim_output, load_checkpoint_for

    claim_output(out, "<net" if format_of(out) == "openvino" else "pytorch", [str(weights)] if weights else None)
    claim_output(out.with_suffix(".toml"), "colours")
    checkpoint = load_checkpoint_for(weights, backbone, size, profiles or ())
    write(checkpoint, out, camera)
    typer.echo(f"{out}\tfingerprint {load_checkpoint_for(out).fingerprint}")


@weights.command("list", epilog="Example: reid weights list")
def weights_list(as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Public weights this program can load: name, backbone, training data, licence."""
    from reid.models.weights.public_weights import public_weights

    if as_json:
        typer.echo(json.dumps([asdict(line) for line in public_weights()], indent=2))
        return
    for line in public_weights():
        way = "" if line.url else f"\tby hand from {line.page}"
        typer.echo(f"{line.name}\t{line.backbone}\t{line.trained_on}\t{line.licence}{way}")


@weights.command("get", epilog="Example: reid weights get osnet_x0_25_msmt17 --out weights")
def weights_get(
    name: Annotated[str, typer.Argument(help="a name that reid weights list prints")],
    out: Annotated[Path, typer.Option(help="folder for the file")] = Path("weights"),
) -> None:
    """Download public weights, check them, and say how to use them."""
    from tqdm import tqdm

    from reid.models.weights.public_weights import fetch, find_weights
    from reid.pipeline import claim_folder

    line = find_weights(name)
    claim_folder(out)
    with tqdm(desc=name, unit="B", unit_scale=True, dynamic_ncols=True, file=sys.stderr, leave=False) as bar:

        def show(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        fetched = fetch(line, out, progress=show)
    typer.echo(f"{fetched.path}\t{fetched.verdict}")
    size = f" --size {line.size[0]} {line.size[1]}" if line.size else ""
    typer.echo(f"use it with --weights {fetched.path} --backbone {line.backbone}{size}")
    typer.echo(f"trained on {line.trained_on}; licence {line.licence}; {line.page}")
