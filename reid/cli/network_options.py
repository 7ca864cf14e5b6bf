"""The options of every command that runs a network: ``--device``, ``--precision``, ``--runtime`` and others.

A command gets them by its class, :class:`NetworkCommand`.  They hold for every network that it loads.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from reid.cli.rerank_options import join_numbers
from reid.data.near_duplicates import KEEP, NEAR_POLICIES, NearDuplicates, duplicates_handled_by
from reid.data.unreadable import LIST, POLICIES, STOP, Unreadable, handled_by
from reid.errors import ConfigError, unknown_name
from reid.models.execution import (
    AUTO,
    DECODERS,
    PRECISIONS,
    RUNTIME_NAMES,
    Execution,
    executed_as,
    find_device,
    loaded_at,
)

BAD_IMAGES, NEAR_DUPLICATES = "bad_images", "near_duplicates"
_sheet = typer.Typer(add_completion=False)


@_sheet.command()
def _options(
    device: Annotated[
        str,
        typer.Option(
            metavar="auto|cpu|cuda|cuda:N|mps",
            help="Where the network runs. auto takes the best device there is, and says which if it is asked for.",
        ),
    ] = AUTO,
    precision: Annotated[
        str,
        typer.Option(
            metavar="|".join(PRECISIONS),
            help="What it computes in. Embeddings in bfloat16 or float16 have a fingerprint of their own.",
        ),
    ] = PRECISIONS[0],
    runtime: Annotated[
        str,
        typer.Option(
            metavar="|".join(RUNTIME_NAMES),
            help="What runs it: PyTorch layer by layer (eager) or with its norms folded into the convolutions (folded),"
            " ONNX Runtime or OpenVINO. auto measures for two seconds and takes the fastest. Each is checked to equal"
            " eager.",
        ),
    ] = RUNTIME_NAMES[0],
    decoder: Annotated[
        str,
        typer.Option(
            metavar="|".join(DECODERS),
            help="What decodes JPEG files. simplejpeg gives the same pixels as pillow. draft decodes large files at a"
            " fraction of their size.",
        ),
    ] = DECODERS[0],
    width: Annotated[
        float | None,
        typer.Option(help='Width of a network that "reid slim --widths" made, such as 0.5. Default: the widest.'),
    ] = None,
    bad_images: Annotated[
        str,
        typer.Option(
            metavar="|".join(POLICIES),
            help="What to do with images that are missing or damaged: stop at the first, or leave them out, list them"
            " and count them.",
        ),
    ] = STOP,
    near_duplicates: Annotated[
        str,
        typer.Option(
            metavar="|".join(NEAR_POLICIES),
            help="What to do with images that are nearly the same as others: keep them, keep, list and count them, or"
            " stop at the first.",
        ),
    ] = KEEP,
) -> None:
    """Hold the options that the classes below give to commands."""


OPTIONS = ("device", "precision", "runtime", "decoder")
WIDTH = "width"
DEFAULTS = {"device": AUTO, "precision": PRECISIONS[0], "runtime": RUNTIME_NAMES[0], "decoder": DECODERS[0]}


def execution_words(execution: Execution) -> tuple[str, ...]:
    """Return the options of a command that ask for an execution; those that have their default are left out.

    Example:
        >>> execution_words(Execution("cpu", runtime="folded"))
        ('--device', 'cpu', '--runtime', 'folded')
    """
    pairs = ((name, getattr(execution, name)) for name in OPTIONS)
    return tuple(word for name, value in pairs if value != DEFAULTS[name] for word in (f"--{name}", value))


class NetworkCommand(TyperCommand):
    """A command that runs a network, with the options of :data:`OPTIONS` and ``--width``."""

    option_names: tuple[str, ...] = (*OPTIONS, WIDTH)

    def __init__(self, *args: Any, params: Any = None, **settings: Any) -> None:
        sheet: Any = typer.main.get_command(_sheet)
        options = [option for option in sheet.params if option.name in self.option_names]
        super().__init__(*args, params=[*(params or []), *options], **settings)

    def invoke(self, ctx: Any) -> Any:
        """Run the command with every network executed as its options say."""
        asks_for_auto = ctx.get_parameter_source("device").name == "COMMANDLINE" and ctx.params["device"] == AUTO
        execution = Execution(**{name: ctx.params.pop(name) for name in OPTIONS})
        if asks_for_auto:
            typer.echo(f"device: {find_device(execution).device}", err=True)
        width = ctx.params.pop(WIDTH)
        with executed_as(execution), loaded_at(width):
            return super().invoke(ctx)


class ReadingCommand(NetworkCommand):
    """A command that runs a network on many images, with ``--bad-images`` and ``--near-duplicates`` too."""

    option_names = (*OPTIONS, WIDTH, BAD_IMAGES, NEAR_DUPLICATES)

    def invoke(self, ctx: Any) -> Any:
        """Run the command, then list the images that it left out, and those that are nearly the same as others."""
        policy, near_policy = ctx.params.pop(BAD_IMAGES), ctx.params.pop(NEAR_DUPLICATES)
        if policy not in POLICIES:
            raise ConfigError(unknown_name("policy of --bad-images", policy, POLICIES))
        if near_policy not in NEAR_POLICIES:
            raise ConfigError(unknown_name("policy of --near-duplicates", near_policy, NEAR_POLICIES))
        unreadable = Unreadable() if policy == LIST else None
        near = None if near_policy == KEEP else NearDuplicates(stops=near_policy == STOP)
        with handled_by(unreadable), duplicates_handled_by(near):
            result = super().invoke(ctx)
        for found in (unreadable, near):
            for line in found.lines() if found is not None else ():
                typer.echo(line, err=True)
        return result


class RerankingReadingCommand(ReadingCommand):
    """A reading command with the option ``--rerank camera`` or ``--rerank K1 K2 LAMBDA``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of the command line after the numbers of ``--rerank`` are one word."""
        return super().parse_args(ctx, join_numbers(args))
