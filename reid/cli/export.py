"""``reid export``: write a network for another program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reid.cli.options import Backbone, Data, ProfileFiles, Root, Size, Weights

if TYPE_CHECKING:
    from reid.models.checkpoint import Checkpoint

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
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            help="Quantize the convolutions to int8, with ranges measured on the crops of --data. Prints the cosine to"
            " float32, and the mAP before and after where these have queries and a gallery.",
        ),
    ] = False,
    data: Data = None,
    root: Root = None,
    budget: Annotated[
        str,
        typer.Option(
            help='Time for one image on this machine, such as "5 ms". Measures all widths of the file in float32 and'
            " int8, compares them on the crops of --data, and writes the best that fits. A list stands beside it."
        ),
    ] = "",
    width: Annotated[
        float | None, typer.Option(help='Width of a network that "reid slim --widths" made. Default: the widest.')
    ] = None,
) -> None:
    """Write a network for ONNX Runtime or OpenVINO, with the statistics of one camera."""
    from reid.errors import ConfigError
    from reid.files import check_output_file
    from reid.pipeline import check_weights, load_checkpoint

    if data and not (int8 or budget):
        raise ConfigError("--data: measures the ranges of --int8 or the exports of --budget; pass both or none")
    if budget and (int8 or width is not None):
        raise ConfigError("--budget: chooses width and precision itself; leave --int8 and --width out")
    check_weights(weights, profiles or ())
    from reid.models.export import export as write
    from reid.models.export import format_of

    check_output_file(out, "<net" if format_of(out) == "openvino" else "pytorch", [str(weights)] if weights else None)
    check_output_file(out.with_suffix(".toml"), "colours")
    from reid.models.execution import loaded_at

    def load(at: float | None) -> Checkpoint:
        with loaded_at(at):
            return load_checkpoint(weights, backbone, size, profiles or ())

    if budget:
        from reid.cli.budget_export import export_within
        from reid.models.checkpoint_files import widths_in_file
        from reid.pipeline import shipped_weights

        check_output_file(out.with_suffix(".json"), "budget_ms")
        export_within(budget, load, widths_in_file(weights or shipped_weights()), data, root, out, camera)
        typer.echo(f"{out}\tfingerprint {load_checkpoint(out).fingerprint}")
        return
    checkpoint = load(width)
    if int8:
        from reid.cli.int8_export import export_int8

        export_int8(checkpoint, data, root, out, camera)
    else:
        write(checkpoint, out, camera)
    typer.echo(f"{out}\tfingerprint {load_checkpoint(out).fingerprint}")
