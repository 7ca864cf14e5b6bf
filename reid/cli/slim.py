"""``reid slim``: make a network smaller on unlabelled crops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reid.cli.network_options import NetworkCommand
from reid.cli.options import AsJson, Backbone, Data, Root, Size, Weights, samples_of, stopped
from reid.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from reid.edge.pruning import SlimNetwork
    from reid.edge.slimmable import SlimmableNetwork

commands = typer.Typer()

METHODS = ("search", "slimming")  # those of reid.edge.pruning, which imports torch


@commands.command(
    cls=NetworkCommand,
    epilog="Example: reid slim --weights osnet.pth --backbone osnet_x0_25 --data crops/manifest.csv --target 0.5"
    " --out small.safetensors",
)
def slim(
    out: Annotated[Path, typer.Option(help="Weights file to write.")],
    data: Data = None,
    root: Root = None,
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    target: Annotated[
        float, typer.Option(help="Share of the multiply-adds that remains, such as 0.5 for half of them.")
    ] = 0.5,
    method: Annotated[
        str,
        typer.Option(
            help="search: compare candidates with other numbers of channels, and keep the one that ranks crops most"
            " like the whole network; slimming: train with a penalty on the scales of the norms, and remove the"
            " channels with the smallest."
        ),
    ] = "search",
    widths: Annotated[
        str,
        typer.Option(
            help="Train one network that runs at several widths instead, such as 1,0.75,0.5,0.25. Then --width chooses"
            " one of them in every command."
        ),
    ] = "",
    candidates: Annotated[int, typer.Option(min=1, max=10_000, help="Candidates that a search compares.")] = 60,
    epochs: Annotated[
        int, typer.Option(min=0, max=1000, help="Epochs in which the small network learns from the whole one.")
    ] = 8,
    crops: Annotated[
        int, typer.Option(min=1, help="Crops to use at most, as many of each camera as there are.")
    ] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random numbers.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Remove channels of an OSNet, ResNet or MobileNet, and let it learn from the whole network on unlabelled crops.

    The identities in the manifest are never looked at.  An interrupted run goes on with the same command.  Use the
    result with --weights alone; a gallery of the old weights has to be built again.
    """
    from reid.data.manifest import check_files
    from reid.data.selection import calibration_samples
    from reid.files import check_output_file
    from reid.pipeline import check_weights

    if method not in METHODS:
        raise ConfigError(unknown_name("--method", method, METHODS))
    if not data:
        raise ConfigError("--data: give some crops of your cameras, on which networks are compared; no labels")
    chosen = parse_widths(widths)
    if not 0 < target < 1:
        raise ConfigError(f"--target {target:g}: expected a share of the multiply-adds above 0 and below 1")
    check_output_file(out, "reid-weights-", [*data, *([str(weights)] if weights else [])])
    check_weights(weights)
    rows = calibration_samples(samples_of(data, root))
    check_files(rows)
    from reid.edge.pruning import SlimmingPlan, slim_network
    from reid.edge.slim_state import slim_state_file
    from reid.pipeline import load_checkpoint, progress_bar, workers

    checkpoint, state = load_checkpoint(weights, backbone, size), slim_state_file(out)
    plan = SlimmingPlan(target, method, candidates, epochs, crops, seed)
    found: SlimNetwork | SlimmableNetwork
    try:
        if chosen:
            from reid.edge.slimmable import train_widths

            found = train_widths(checkpoint, rows, chosen, plan, progress_bar, workers=workers(), state=state)
        else:
            found = slim_network(checkpoint, rows, plan, progress_bar, workers=workers(), state=state)
        found.save(out)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command continues where it stopped", err=True)
        raise typer.Exit(130) from None
    except OSError as error:
        raise ConfigError(stopped(out, error)) from error
    state.unlink(missing_ok=True)
    show(found, out, as_json)


def show(found: SlimNetwork | SlimmableNetwork, out: Path, as_json: bool) -> None:
    """Print what came out."""
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
        return
    for line in found.lines():
        typer.echo(f"{out}\t{found.checkpoint.fingerprint}\t{line}")


def parse_widths(text: str) -> list[float]:
    """Read the numbers of ``--widths``.

    Example:
        >>> parse_widths("1,0.5")
        [1.0, 0.5]
    """
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise ConfigError(f"--widths {text}: expected numbers such as 1,0.75,0.5,0.25") from None
