"""``reid generate``: draw crops of nobody, or train the generator that draws them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reid.cli.generation_options import BatchSize, LearningRate, Steps, StepSeed, TrainFlag, run_or_stop
from reid.cli.options import AsJson, Backbone, Data, Root, samples_of
from reid.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from reid.generation.sample_scores import SampleScores
    from reid.records import Sample

commands = typer.Typer()

GENERATORS = ("batch", "self-modulation", "style")  # those of reid.generation, which imports torch
DISCRIMINATORS = ("plain", "spectral", "oni")


@commands.command(
    epilog="Example: reid generate --train --data crops/manifest.csv --out generator. Then: reid generate --weights"
    " generator/weights.safetensors --out drawn --count 200 --data crops/manifest.csv"
)
def generate(
    out: Annotated[
        Path, typer.Option(help="Folder to create or to complete: crops and a manifest, or a run with --train.")
    ],
    data: Data = None,
    root: Root = None,
    weights: Annotated[Path | None, typer.Option(help="Weights that --train wrote.")] = None,
    count: Annotated[int, typer.Option(min=1, max=10**6, help="Crops to draw.")] = 64,
    embedder: Annotated[
        Path | None,
        typer.Option(help="Weights whose embeddings compare drawn and recorded crops. Default: the shipped weights."),
    ] = None,
    backbone: Backbone = None,
    train: TrainFlag = False,
    generator: Annotated[
        str, typer.Option(metavar="|".join(GENERATORS), help="How the generator normalizes, with --train.")
    ] = "style",
    discriminator: Annotated[
        str, typer.Option(metavar="|".join(DISCRIMINATORS), help="Weights of the discriminator, with --train.")
    ] = "spectral",
    steps: Steps = 3000,
    seed: StepSeed = 0,
    learning_rate: LearningRate = 2e-4,
    batch: BatchSize = 16,
    as_json: AsJson = False,
) -> None:
    """Draw crops of nobody with a trained generator, and a sheet of them.

    The crops are marked as generated, have no identity, and belong to split train. With --data they are compared with
    recorded crops of split train, by embeddings, beside two halves of the recorded ones: Frechet distance, kernel
    distance and the AUC of a classifier. The same command continues after an interruption.
    """
    from reid.pipeline import progress_bar

    _check_usage(train, weights, data, generator, discriminator)
    samples = samples_of(data, root) if data else ()
    if samples and not train:
        check_comparable(samples, count)
    if train:
        from reid.data.manifest import check_files
        from reid.generation.generator_training import Stage, train_generator
        from reid.generation.step_training import StepPlan

        check_files(samples)
        plan = StepPlan(steps=steps, batch=batch, learning_rate=learning_rate, seed=seed)
        stage = Stage(generator, discriminator)
        typer.echo(run_or_stop(out, lambda: train_generator(samples, out, plan, stage, progress=True)))
        return
    from reid.generation.drawn_crops import SHEET, write_drawn

    with progress_bar("drawing", count) as progress:
        manifest = run_or_stop(out, lambda: write_drawn(Path(str(weights)), out, count, seed, progress))
    found = compare_with(samples, manifest, embedder, backbone) if samples else {}
    if as_json:
        scores = {name: asdict(value) for name, value in found.items()}
        typer.echo(json.dumps({"manifest": str(manifest), "sheet": str(out / SHEET), "scores": scores}, indent=2))
        return
    for name, value in found.items():
        typer.echo(
            f"{name}: Frechet {value.frechet:.4f}, KID {value.kernel:.4f} ± {value.kernel_deviation:.4f},"
            f" AUC {value.auc:.3f}",
            err=True,
        )
    typer.echo(manifest)


def _check_usage(train: bool, weights: Path | None, data: list[str] | None, generator: str, discriminator: str) -> None:
    if train == (weights is not None):
        raise typer.BadParameter("expected --weights to draw crops, or --train to train a generator, and not both")
    if train and not data:
        raise ConfigError("generate: name the crops to learn from with --data")
    for option, name, known in (
        ("--generator", generator, GENERATORS),
        ("--discriminator", discriminator, DISCRIMINATORS),
    ):
        if name not in known:
            raise ConfigError(unknown_name(option, name, known))


def check_comparable(samples: Sequence[Sample], count: int) -> None:
    """Refuse a comparison with too few crops, before any is drawn."""
    from reid.data.manifest import check_files
    from reid.data.selection import calibration_samples

    recorded = calibration_samples(samples)
    check_files(recorded)
    if len(recorded) < 8 or count < 4:
        raise ConfigError(
            f"{len(recorded)} recorded and {count} drawn crops: a comparison needs 8 and 4 or more; leave --data out to"
            " draw only"
        )


def compare_with(
    samples: Sequence[Sample], manifest: Path, embedder: Path | None, backbone: str | None
) -> dict[str, SampleScores]:
    """Compare drawn crops with recorded ones, and two halves of the recorded ones with each other.

    All crops are embedded at the size of drawn ones and as if from the same unknown camera.

    Args:
        samples: The recorded crops; those of split train count, or all where there are none.
        manifest: The manifest of the drawn crops.
        embedder: The weights that embed them; None takes the shipped ones.
        backbone: The backbone, where the file does not name it.
    """
    from reid.data.manifest import read_manifest
    from reid.data.selection import calibration_samples
    from reid.generation.drawn_crops import at_drawn_size
    from reid.generation.sample_scores import compare_samples, floor_scores
    from reid.pipeline import embed_samples, load_checkpoint, with_unseen_cameras
    from reid.records import Sample as Row

    def anonymous(rows: Sequence[Sample]) -> list[Sample]:
        return [Row(row.path, category=row.category) for row in rows]

    recorded, drawn = anonymous(calibration_samples(samples)), anonymous(read_manifest(manifest))
    checkpoint = with_unseen_cameras(load_checkpoint(embedder, backbone), [*recorded, *drawn], "prior")
    first, second = (embed_samples(checkpoint, rows, change=at_drawn_size).vectors for rows in (recorded, drawn))
    return {"drawn": compare_samples(first, second), "floor": floor_scores(first)}
