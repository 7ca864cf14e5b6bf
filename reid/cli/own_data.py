"""The choice of an experiment for somebody's own data, as ``reid train --data`` makes and shows it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from reid.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from reid.config import Experiment
    from reid.training.recipe_choice import Start

SCRATCH = "scratch"
SECONDS = 10.0  # to measure precision and speed


def choose_for_data(
    data: Sequence[str], start: str | None, backbone: str | None, sets: Sequence[str], folder: Path
) -> Experiment:
    """Choose an experiment for manifests, say why on stderr, and show it there.

    A folder that holds a run on the same manifests gives the experiment of that run, so that the same command continues
    it.

    Args:
        data: Manifests, or folders with ``manifest.csv``.
        start: The weights to start from: a file, a public name, "scratch", or None for the shipped weights.
        backbone: The network of weights that do not name it, or of a start from random numbers.
        sets: Overrides such as "train.epochs=3".
        folder: The folder of the run.

    Raises:
        ConfigError: A name is unknown, or an override is wrong.
        DataError: The manifests cannot be trained on.
        WeightsError: The weights cannot be read.
    """
    from reid.training.recipe_choice import manifest_files

    manifests = manifest_files(data)
    continued = _experiment_of_run(folder, manifests, sets)
    if continued is not None:
        typer.echo(f"continuing the run in {folder} with its experiment", err=True)
        return continued
    from reid.config import apply_sets, parse_config
    from reid.training.recipe_choice import choose_experiment, reasons, summarize
    from reid.training.training_data import training_samples

    found = parse_config({"data": {"manifests": list(manifests)}}, "--data")
    summary = summarize(training_samples(apply_sets(found, [item for item in sets if item.startswith("data.")])))
    begin = read_start(start, backbone)
    experiment = apply_sets(choose_experiment(manifests, summary, begin), sets)
    for line in reasons(summary, experiment):
        typer.echo(f"# {line}", err=True)
    return _measured(experiment, {item.partition("=")[0].strip() for item in sets})


def _measured(experiment: Experiment, given: Collection[str]) -> Experiment:
    """Choose the faster threads and precision, unless given; say what the training needs, and show the experiment."""
    from reid.config import to_toml
    from reid.training.forecast import choose_precision, choose_threads, forecast
    from reid.training.initial_weights import load_initial_weights
    from reid.training.row_choice import choose_rows
    from reid.training.training_data import read_training_rows

    resolved, rows = read_training_rows(experiment)
    rows, _, _ = choose_rows(rows, resolved)
    weights = load_initial_weights(experiment.network)
    if "train.threads" not in given and resolved.train.threads > 1:
        resolved, by_threads = choose_threads(resolved, rows, weights, SECONDS / 2)
        _show_speeds("threads", by_threads, resolved.train.threads)
    if "train.precision" not in given:
        resolved, by_precision = choose_precision(resolved, rows, weights, SECONDS / 2)
        _show_speeds("precision", by_precision, resolved.train.precision)
    experiment = experiment.model_copy(update={"train": resolved.train})
    for line in forecast(resolved, rows, weights, SECONDS / 5).lines():
        typer.echo(f"# {line}", err=True)
    typer.echo(to_toml(experiment), err=True, nl=False)
    return experiment


def _show_speeds(key: str, speeds: Mapping[Any, float], used: object) -> None:
    shown = ", ".join(f"{value} {speed:.0f}" for value, speed in speeds.items())
    typer.echo(f"# images a second by {key}, measured here: {shown}; {used} is used", err=True)


def read_start(start: str | None, backbone: str | None) -> Start:
    """Find the weights that a training starts from, and read what they are.

    Args:
        start: A file, a public name, "scratch", or None for the shipped weights.
        backbone: The network, where the weights do not name it.
    """
    from reid.pipeline import shipped_weights
    from reid.training.recipe_choice import Start

    if start == SCRATCH:
        return Start(backbone=backbone or Start().backbone)
    path, named = (shipped_weights(), None) if start is None else _find_weights(start)
    from reid.models.checkpoint import load_checkpoint

    found = load_checkpoint(path, backbone or named)
    size = (found.transform.height, found.transform.width)
    return Start(str(path), found.spec.backbone, found.spec.pooling, found.spec.neck, size)


def _find_weights(start: str) -> tuple[Path, str | None]:
    """Return the file of weights that are given as a file or by a public name, and the backbone where it is known."""
    from reid.models.weights.public_weights import find_weights, public_weights

    if Path(start).is_file():
        stem = Path(start).stem
        return Path(start), next((row.backbone for row in public_weights() if row.name == stem), None)
    if Path(start).suffix:
        raise WeightsError(f"{start}: no such weights file; give a file, a name of reid weights list, or {SCRATCH}")
    try:
        row = find_weights(start)
    except ConfigError as error:
        raise ConfigError(f"--from: {error}; or a file, or {SCRATCH}") from error
    path = row.path_in(Path("weights"))
    if not path.is_file():
        raise WeightsError(f'{path}: no such file; fetch it with "reid weights get {start}"')
    return path, row.backbone


def _experiment_of_run(folder: Path, manifests: Sequence[str], sets: Sequence[str]) -> Experiment | None:
    from reid.config import apply_sets, load_config

    path = folder / "experiment.toml"
    if not path.is_file():
        return None
    experiment = load_config(path)
    return apply_sets(experiment, sets) if experiment.data.manifests == tuple(manifests) else None
