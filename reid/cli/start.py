"""``reid start``: from a folder of crops or videos to a gallery with persons and a page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reid.cli.network_options import NetworkCommand, execution_words
from reid.cli.options import Backbone, finite
from reid.cli.start_manifest import FPS, PERSON, Questions, Wishes, manifest_of, manifest_steps
from reid.cli.start_steps import StartNetwork, StartRecord, Step, hold_start, run_steps
from reid.errors import ConfigError, DataError, WeightsError
from reid.models.execution import current_execution
from reid.records import Sample, Split

if TYPE_CHECKING:
    from reid.data.site_folder import SiteFolder

commands = typer.Typer()
MOST_TO_ADAPT = 3000  # crops; above this number the adaptation, which takes hours, is not chosen by itself
FEWEST_TO_ADAPT = 32  # crops; see reid.adaptation.stop_rule
OFFERED = "osnet_x0_25_msmt17"  # public weights that are named where nothing else is known
SHIPPED = "shipped"  # the answer that stands for the weights that come with the program


@commands.command(cls=NetworkCommand, epilog="Example: reid start crops --weights osnet.pth --backbone osnet_x0_25")
def start(
    folder: Annotated[
        Path, typer.Argument(help="Folder of crops, as camera/identity/*.jpg, or of videos, as camera.mp4.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for all that is made. Default: FOLDER-reid, beside the folder.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help='Weights file, or a name of "reid weights list", which is then fetched. Default: the shipped weights.'
        ),
    ] = None,
    backbone: Backbone = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            help='What the folders and file names of crops mean, as in "reid init". Default: found out; folders that'
            " can be cameras or identities are taken for cameras where nothing is asked."
        ),
    ] = None,
    category: Annotated[
        str | None, typer.Option(help=f"What the crops show: person, vehicle, ... Default: {PERSON}.")
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            callback=finite,
            help=f"Frames of each second of a video in which people are searched. Default: {FPS:g}.",
        ),
    ] = None,
    adapt: Annotated[
        bool | None,
        typer.Option(
            "--adapt/--no-adapt",
            help="Train the network on the crops, without labels, and keep it if the crops show that this helps."
            f" Default: where there are {FEWEST_TO_ADAPT} to {MOST_TO_ADAPT} crops.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing, and take the default of every question.")] = False,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Serve the page at the end.")] = True,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page. 0 takes any free one.")] = 7860,
) -> None:
    """Turn a folder of crops or videos into a gallery with persons, and serve it as a page.

    The steps are manifest, check, weights, calibration or adaptation, gallery, persons and page.  Each is printed as
    the command that does it alone.  In a terminal at most three questions are asked.  The same command goes on after
    an interruption and skips what is done.  Nothing is fetched unless --weights or an answer names it.
    """
    from reid.data.site_folder import find_in_folder

    found = find_in_folder(folder)
    folder_name = folder.resolve().name or "site"
    beside = folder.parent if folder.name not in ("", "..") else folder.resolve().parent
    out = out or beside / f"{folder_name}-reid"
    if out.resolve() == folder.resolve() or folder.resolve() in out.resolve().parents:
        raise ConfigError(f"--out {out}: lies in {folder}, whose images it would mix with; choose a folder beside it")
    asks = not yes and sys.stdin.isatty() and sys.stdout.isatty()
    execution = execution_words(current_execution())
    wishes = Wishes(out, weights or "", backbone, category, fps, adapt, Questions(asks), pattern, execution)
    try:
        with hold_start(out):
            gallery = _make_gallery(found, wishes, StartRecord(out))
    except BlockingIOError:
        raise ConfigError(f"{out}: another start is at work there; wait for it, or give another --out") from None
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on where it stopped", err=True)
        raise typer.Exit(130) from None
    serve = Step("page", ("serve", "--gallery", str(gallery), "--port", str(port), *execution))
    typer.echo(serve.command)
    if page:
        from reid.cli import all_commands

        raise typer.Exit(all_commands()(list(serve.words), prog_name="reid", standalone_mode=False) or 0)


def _make_gallery(found: SiteFolder, wishes: Wishes, record: StartRecord) -> Path:
    """Run all steps up to the persons, and return the folder of the gallery."""
    steps = manifest_steps(found, wishes, record)
    data = manifest_of(found, steps)
    network, fetch = _choose_weights(wishes, record)
    steps += [Step("check", ("validate", "--data", str(data)), reads=(data,), may_fail=True), *fetch]
    run_steps(record, steps)
    samples = _tell_crops(found, data)
    normalized = _normalize(samples, data, network, wishes, record)
    gallery = wishes.out / "gallery"
    unseen = ("--unseen-camera", "nearest") if normalized.load().domain_fields else ()
    words = (*normalized.words, *unseen, "--out", str(gallery), *wishes.execution)
    build = ("index", "build", "--data", str(data), *words)
    reads = (data, *normalized.files)
    last = [
        Step("gallery", build, gallery, reads),
        Step("persons", ("identify", "--gallery", str(gallery)), reads=reads),
    ]
    run_steps(record, last)
    return gallery


def _choose_weights(wishes: Wishes, record: StartRecord) -> tuple[StartNetwork, list[Step]]:
    """Return the network, and the step that fetches them where they were asked for by name."""
    from reid.models.weights.public_weights import find_weights, public_weights

    chosen = wishes.weights or record.answers.get("weights", "")
    if not chosen:
        typer.echo(
            "hint: the shipped weights know drawn people and vehicles; for real people, name public weights of"
            f' "reid weights list", such as {OFFERED}, which are then fetched',
            err=True,
        )
        chosen = wishes.questions.ask(
            lambda: str(typer.prompt("Weights: a file, a name, or shipped", default=SHIPPED)).strip(), SHIPPED
        )
    if chosen in ("", SHIPPED) or Path(chosen).is_file():
        network = StartNetwork(None if chosen in ("", SHIPPED) else Path(chosen), wishes.backbone)
        network.load()  # weights that cannot be read are no answer to remember
        record.remember("weights", chosen or SHIPPED)
        return network, []
    if chosen not in {entry.name for entry in public_weights()}:
        raise WeightsError(f'{chosen}: no such file, and no name of "reid weights list"')
    record.remember("weights", chosen)
    entry, folder = find_weights(chosen), wishes.out / "weights"
    path = entry.path_in(folder)
    fetch = Step("weights", ("weights", "get", chosen, "--out", str(folder)), path)
    return StartNetwork(path, wishes.backbone or entry.backbone, entry.size), [fetch]


def _tell_crops(found: SiteFolder, data: Path) -> tuple[Sample, ...]:
    """Read the manifest, and say what it holds."""
    from reid.data.manifest import read_manifest

    samples = read_manifest(data)
    if not samples:
        raise DataError(f"{data}: lists no crop; nobody was found, or the manifest is empty")
    images = {sample.path: sample for sample in samples}.values()
    cameras = sorted({sample.camera for sample in images if sample.camera})
    identities = {(sample.category, sample.identity) for sample in images if sample.identity}
    lights = sorted({str(sample.modality) for sample in images})
    listed = {path.resolve() for path in (sample.path for sample in images)}
    new = sum(path.resolve() not in listed for path in found.images)
    if new and data.parent == found.folder:
        typer.echo(f'hint: {new} images are not in {data}; "reid init --force" lists them', err=True)
    typer.echo(
        f"found {len(images)} crops in {len(cameras) or 'unknown'} cameras"
        f"{_listed(cameras)}, light {' and '.join(lights)},"
        f" {len(identities) or 'no'} identities",
        err=True,
    )
    return samples


def _listed(cameras: Sequence[str]) -> str:
    """List the first cameras in brackets.

    Example:
        >>> _listed(["door", "yard"])
        ' (door, yard)'
    """
    return f" ({', '.join(cameras[:8])}{', ...' if len(cameras) > 8 else ''})" if cameras else ""


def _normalize(
    samples: Sequence[Sample], data: Path, network: StartNetwork, wishes: Wishes, record: StartRecord
) -> StartNetwork:
    """Calibrate, or adapt where the crops show that this helps.

    Returns:
        The network with which the gallery is built.
    """
    profiles, adapted = wishes.out / "profiles.safetensors", wishes.out / "site.safetensors"
    reads = (data, *network.files)
    common = ("--data", str(data), *network.words, *wishes.execution)
    found = network
    if all(sample.camera for sample in samples):
        calibrate = ("calibrate", *common, "--normalize", "auto", "--out", str(profiles))
        step = Step("calibration", calibrate, profiles, reads, is_optional=True)
        run_steps(record, [step])
        found = replace(network, profiles=profiles) if record.is_done(step) else network
    else:
        typer.echo("hint: some crops do not name their camera, so cameras are not calibrated", err=True)
    crops = len({sample.path for sample in samples if sample.split is not Split.QUERY})
    if _is_to_be_adapted(crops, wishes, record):
        step = Step("adaptation", ("adapt", *common, "--out", str(adapted)), adapted, reads, is_optional=True)
        run_steps(record, [step])
        if record.is_done(step) and _was_adapted(adapted):
            found = StartNetwork(adapted)
    return found


def _is_to_be_adapted(crops: int, wishes: Wishes, record: StartRecord) -> bool:
    """Decide whether to try an adaptation; it is kept only where the crops show that it helps."""
    answer = wishes.adapt if wishes.adapt is not None else record.answers.get("adapt")
    if answer is None:
        answer = FEWEST_TO_ADAPT <= crops <= MOST_TO_ADAPT
        if crops >= FEWEST_TO_ADAPT:
            minutes, default = max(1, round(crops / 100)), bool(answer)
            question = f"Train the network on these {crops} crops too (about {minutes} minutes, kept only if it helps)"
            answer = wishes.questions.ask(lambda: typer.confirm(question, default=default), default)
    record.remember("adapt", bool(answer))
    return bool(answer)


def _was_adapted(path: Path) -> bool:
    """Return whether the label-free rule of the adaptation kept the trained network."""
    from reid.adaptation.site_adaptation import RECIPE
    from reid.pipeline import load_checkpoint
    from reid.structured_text import parse_json

    recipe = load_checkpoint(path).extra.get(RECIPE)
    return bool(recipe and parse_json(recipe).get("adapted"))
