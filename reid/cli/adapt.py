"""``reid adapt``: adapt a network to a site from unlabelled crops."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reid.cli.network_options import NetworkCommand
from reid.cli.options import AsJson, Backbone, Data, Root, Size, Weights, samples_of, stopped
from reid.errors import ConfigError, unknown_name
from reid.records import Sample, Split

if TYPE_CHECKING:
    from reid.adaptation.contrast_rounds import EpochFigures

commands = typer.Typer()

METHODS = ("cluster", "statistics", "entropy", "matching")  # those of reid.adaptation, which imports torch


@commands.command(
    cls=NetworkCommand,
    epilog="Example: reid adapt --data crops/manifest.csv --weights osnet.pth --backbone osnet_x0_25"
    " --out site.safetensors",
)
def adapt(
    out: Annotated[Path, typer.Option(help="Weights file to write. It holds the statistics of the site's cameras.")],
    data: Data = None,
    root: Root = None,
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    method: Annotated[
        str,
        typer.Option(
            help="cluster: train on clusters of the crops; statistics: calibrate only; entropy: fit scales and shifts"
            " to the neighbours of each crop; matching: fit the first layers to the statistics that the weights know."
        ),
    ] = "cluster",
    labelled: Annotated[
        list[str] | None,
        typer.Option(help="Manifest of another site whose identities are known; cluster learns from both."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, max=1000, help="Epochs of training at most.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random numbers.")] = 0,
    split: Annotated[
        Split | None, typer.Option(help="Split to adapt to. Default: train if it has crops, else all crops.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="HTML page to write: what changed, and sample clusters.")] = None,
    as_json: AsJson = False,
) -> None:
    """Adapt a network to a site from unlabelled crops, and write the new weights.

    The identities in the manifest are never looked at.  Where the crops do not allow the method, the command says why
    and writes the calibrated network.  An interrupted run goes on with the same command.  Use the result with
    --weights alone; a gallery of the old weights has to be built again.
    """
    from reid.data.manifest import check_files
    from reid.data.selection import calibration_samples
    from reid.files import check_output_file
    from reid.pipeline import check_weights

    if method not in METHODS:
        raise ConfigError(unknown_name("--method", method, METHODS))
    if report is not None:
        check_report_file(report, out, data)
    check_output_file(out, "reid-weights-", [*(data or ()), *([str(weights)] if weights else [])])
    check_weights(weights)
    rows = calibration_samples(samples_of(data, root), split)
    check_files(rows)
    known = read_labelled(labelled)
    from reid.adaptation.adaptation_state import state_file
    from reid.adaptation.site_adaptation import adapt as run
    from reid.pipeline import load_checkpoint, workers

    checkpoint, path = load_checkpoint(weights, backbone, size), state_file(out)
    try:
        with AdaptationBar() as bar:
            found = run(
                checkpoint, rows, method, epochs=epochs, seed=seed, labelled=known, workers=workers(), state=path,
                on_start=bar.start, progress=bar.update, on_epoch=bar.show,
            )  # fmt: skip
        found.checkpoint.save(out)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command continues after the last complete epoch", err=True)
        raise typer.Exit(130) from None
    except OSError as error:
        raise ConfigError(stopped(out, error)) from error
    path.unlink(missing_ok=True)
    if report is not None:
        from reid.adaptation.adaptation_report import write_report

        write_report(report, found, checkpoint, rows)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        typer.echo(f"{out}\t{found.checkpoint.fingerprint}\t{found.verdict}")


def check_report_file(report: Path, out: Path, data: list[str] | None) -> None:
    """Refuse to write the page over something else."""
    from reid.files import check_output_file

    if report.resolve() == out.resolve():
        raise ConfigError("--report and --out name the same file; give the page another name")
    check_output_file(report, 'content="reid adapt"', data)


def read_labelled(labelled: list[str] | None) -> list[Sample]:
    """Read the samples of ``--labelled``: those of split train, or all where there are none."""
    from reid.data.manifest import check_files
    from reid.data.selection import calibration_samples
    from reid.pipeline import read_samples

    if not labelled:
        return []
    rows = calibration_samples(read_samples(*labelled))
    check_files(rows)
    return rows


class AdaptationBar:
    """A progress bar on stderr with the epoch, the clusters, and the time left."""

    def __enter__(self) -> AdaptationBar:
        from tqdm import tqdm

        layout = "{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        self._bar = tqdm(desc="reading", total=1, dynamic_ncols=True, file=sys.stderr, bar_format=layout)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def start(self, units: int) -> None:
        """Begin to count so many units of work."""
        self._bar.set_description("epoch 0")
        self._bar.reset(total=units)

    def update(self, units: int) -> None:
        """Count units of work that are done."""
        self._bar.update(units)

    def show(self, figures: EpochFigures) -> None:
        """Show what the clusters of an epoch look like."""
        parts = [
            f"{group.group}: {group.clusters} clusters, {group.clustered:.0%} clustered, {group.spanning:.0%} span"
            " cameras"
            for group in figures.groups
        ]
        self._bar.set_description(f"epoch {figures.epoch}")
        self._bar.set_postfix_str("; ".join(parts))
