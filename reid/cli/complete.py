"""``reid complete``: fill what occluders hide in crops, or train the network that does so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from reid.cli.generation_options import BatchSize, LearningRate, Steps, StepSeed, TrainFlag, run_or_stop
from reid.cli.options import AsJson, Data, Root, samples_of
from reid.errors import ConfigError, unknown_name

commands = typer.Typer()

METHODS = ("network", "smooth", "mean")  # those of reid.generation.completion, which imports torch


@commands.command(
    epilog="Example: reid complete --data crops/manifest.csv --weights completion/weights.safetensors --masks masks"
    " --out completed. The weights: reid complete --train --data crops/manifest.csv --out completion"
)
def complete(
    out: Annotated[
        Path, typer.Option(help="Folder to create or to complete: crops and a manifest, or a run with --train.")
    ],
    data: Data = None,
    root: Root = None,
    weights: Annotated[Path | None, typer.Option(help="Weights that --train wrote.")] = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="|".join(METHODS),
            help="How hidden pixels are filled: network needs --weights; smooth takes the visible pixels around, and"
            " mean the mean colour of all visible ones.",
        ),
    ] = "network",
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Folder of masks: PNG files named like the crops and as large, white where a crop is hidden. Default:"
            " the column mask of the manifest, and files NAME.mask.png beside the crops."
        ),
    ] = None,
    guess: Annotated[
        bool,
        typer.Option("--guess", help="Let the network guess what is hidden in crops without a mask."),
    ] = False,
    train: TrainFlag = False,
    steps: Steps = 3000,
    seed: StepSeed = 0,
    learning_rate: LearningRate = 5e-4,
    batch: BatchSize = 8,
    as_json: AsJson = False,
) -> None:
    """Fill what occluders hide in crops, with a network of region normalization or without a network.

    Visible pixels stay as they are. Completed crops are marked as generated and belong to split train; those of a
    query or of the gallery have no identity. Crops without a mask stay as they are, unless --guess is given. The same
    command continues after an interruption.
    """
    from reid.data.manifest import check_files
    from reid.pipeline import progress_bar

    if not data:
        raise ConfigError("complete: name the crops with --data")
    _check_usage(train, weights, method, masks, guess)
    samples = samples_of(data, root)
    check_files(samples)
    if train:
        from reid.generation.completion_training import train_completion
        from reid.generation.step_training import StepPlan

        plan = StepPlan(steps=steps, batch=batch, learning_rate=learning_rate, seed=seed)
        typer.echo(run_or_stop(out, lambda: train_completion(samples, out, plan, progress=True)))
        return
    from reid.generation.completed_folder import write_completed
    from reid.generation.mask_files import find_masks

    found = find_masks(samples, data, masks)
    with progress_bar("completing", len({sample.path for sample in samples})) as progress:
        written = run_or_stop(
            out,
            lambda: write_completed(samples, weights, out, found, method=method, guess=guess, progress=progress),
        )
    if as_json:
        counts = {"manifest": str(written.manifest), "completed": written.completed, "kept": written.kept}
        typer.echo(json.dumps(counts, indent=2))
        return
    typer.echo(f"{written.completed} crops completed, {written.kept} stay as they are", err=True)
    typer.echo(written.manifest)


def _check_usage(train: bool, weights: Path | None, method: str, masks: Path | None, guess: bool) -> None:
    if method not in METHODS:
        raise ConfigError(unknown_name("--method", method, METHODS))
    if train and (weights is not None or masks is not None or guess or method != "network"):
        raise typer.BadParameter("--weights, --masks, --guess and --method do not go with --train")
    if not train and weights is None and (guess or method == "network"):
        raise typer.BadParameter("expected --weights, which --method network and --guess need, or --train")
