"""``reid export``: write a network for another program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reid.cli.options import Backbone, ProfileFiles, Size, Weights

commands = typer.Typer()


@commands.command(epilog="Example: reid export --profiles cameras.safetensors --camera north --out north.onnx")
def export(
    out: Annotated[
        Path, typer.Option(help="File to write: .onnx, or .xml for OpenVINO. Its model card is written beside it.")
    ],
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    profiles: ProfileFiles = None,
    camera: Annotated[
        str,
        typer.Option(
            help="Camera whose statistics the file gets. Needed if the weights have statistics for each camera."
        ),
    ] = "",
) -> None:
    """Write a network for ONNX Runtime or OpenVINO, with the statistics of one camera."""
    from reid.files import check_output_file
    from reid.pipeline import check_weights, load_checkpoint

    check_weights(weights, profiles or ())
    from reid.models.export import export as write
    from reid.models.export import format_of

    check_output_file(out, "<net" if format_of(out) == "openvino" else "pytorch", [str(weights)] if weights else None)
    check_output_file(out.with_suffix(".toml"), "colours")
    write(load_checkpoint(weights, backbone, size, profiles or ()), out, camera)
    typer.echo(f"{out}\tfingerprint {load_checkpoint(out).fingerprint}")
