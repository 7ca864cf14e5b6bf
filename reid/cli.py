"""The command line: ``reid COMMAND``, the same as ``python -m reid.cli COMMAND``.

Results go to stdout, progress and complaints to stderr.  Exit code 0: done; 1: the data or the run is
wrong, told in one line (``--debug`` shows the traceback); 2: the command was not understood.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from reid.errors import ConfigError, DataError, ReidError
from reid.records import Modality, Sample, Split

app = typer.Typer(
    help="Person re-identification with camera-, modality- and domain-specific normalization.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="--debug with any command shows the traceback of an error.",
)
index_app = typer.Typer(help="Build a gallery, or erase a person from one.", no_args_is_help=True)
app.add_typer(index_app, name="index")

Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data", help="manifest (CSV, Parquet), a folder with manifest.csv, or a data set's name; repeatable"
    ),
]
Root = Annotated[Path | None, typer.Option(help="folder of a data set given by name, such as market1501")]
Weights = Annotated[Path | None, typer.Option(help="weights file; default: the shipped weights")]
Backbone = Annotated[str | None, typer.Option(help="network of weights that do not say it, such as osnet_x0_25")]
Size = Annotated[
    tuple[int, int] | None,
    typer.Option(help="height and width in pixels, such as 256 128, instead of the weights' own"),
]
ProfileFiles = Annotated[
    list[Path] | None, typer.Option("--profiles", help='camera profiles of "reid calibrate"; repeatable')
]
Unseen = Annotated[
    str | None,
    typer.Option(
        "--unseen-camera", help="camera the weights do not know: error (default), calibrate on split train, or prior"
    ),
]
UNSEEN = ("error", "calibrate", "prior")


@app.command(epilog="Example: reid synth data/street --seed 0 --identities 120")
def synth(
    out: Annotated[Path, typer.Argument(help="folder to make, or to complete")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
    identities: Annotated[int, typer.Option(min=0, help="test people at each site")] = 120,
    train_identities: Annotated[int | None, typer.Option(min=0, help="people of split train at each site")] = None,
    vehicles: Annotated[int | None, typer.Option(min=0, help="test vehicles at each site")] = None,
    train_vehicles: Annotated[int | None, typer.Option(min=0, help="vehicles of split train at each site")] = None,
    crops: Annotated[int, typer.Option(min=2, help="images of each identity in each camera")] = 4,
    site: Annotated[list[str] | None, typer.Option(help="street-a, street-b; repeatable; default: both")] = None,
    workers: Annotated[int, typer.Option(min=0, help="processes; 0: all cores")] = 0,
) -> None:
    """Make the synthetic street: people and vehicles seen by visible and infrared cameras."""
    from reid.data.synthetic.street import StreetPlan
    from reid.pipeline import make_street

    given = {"train_identities": train_identities, "vehicles": vehicles, "train_vehicles": train_vehicles}
    plan = StreetPlan.of(
        identities,
        seed=seed,
        crops=crops,
        **{name: number for name, number in given.items() if number is not None},
        **({"sites": tuple(site)} if site else {}),
    )
    for manifest in make_street(out, plan, workers):
        typer.echo(manifest)


@app.command(epilog="Example: reid train scripts/experiments/street.toml --set train.epochs=3")
def train(
    experiment: Annotated[Path, typer.Argument(help="a TOML file, see scripts/experiments/")],
    out: Annotated[Path | None, typer.Option(help="folder of the run; default: runs/<name of the file>")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override; repeatable")] = None,
) -> None:
    """Train an experiment, or continue it after an interruption; prints the weights file."""
    from reid.config import load_config
    from reid.training import train as run

    folder = out or Path("runs") / experiment.stem
    try:
        typer.echo(run(load_config(experiment, sets or ()), folder, progress=True))
    except KeyboardInterrupt:
        typer.echo(f"interrupted; the same command continues {folder} after its last complete epoch", err=True)
        raise typer.Exit(130) from None


@app.command(epilog="Example: reid calibrate --data crops/manifest.csv --out profiles.safetensors")
def calibrate(
    out: Annotated[Path, typer.Option(help="profiles file to write")],
    data: Data = None,
    root: Root = None,
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    by: Annotated[
        str, typer.Option(help='fields that name a domain, such as "domain/camera"; default: the weights\' own')
    ] = "",
    split: Annotated[
        Split | None, typer.Option(help="rows to measure; default: train if there are any, else all")
    ] = None,
) -> None:
    """Measure the statistics of every camera from unlabelled crops."""
    from reid.data.manifest import check_files
    from reid.models.calibration import calibrate_checkpoint
    from reid.pipeline import claim_output, load_checkpoint_for, progress_bar, workers

    claim_output(out, "reid-profiles-", data)
    samples = _read(data, root)
    rows = [s for s in samples if s.split is (split or Split.TRAIN)] or ([] if split else list(samples))
    check_files(rows)
    checkpoint = load_checkpoint_for(weights, backbone, size)
    with progress_bar("calibrating", len(rows)) as progress:
        profiles = calibrate_checkpoint(checkpoint, rows, by=_fields(by), workers=workers(), progress=progress)
    profiles.save(out)
    for name, images in zip(profiles.names, profiles.images, strict=True):
        typer.echo(f"{name}\t{images} images")


@app.command(epilog="Example: reid embed --data crops/manifest.csv --out embeddings.safetensors")
def embed(
    out: Annotated[Path, typer.Option(help="embeddings file to write")],
    data: Data = None,
    root: Root = None,
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    profiles: ProfileFiles = None,
    unseen: Unseen = None,
    split: Annotated[Split | None, typer.Option(help="only these rows")] = None,
) -> None:
    """Turn images into unit vectors."""
    from reid.pipeline import claim_output, embed_samples, load_checkpoint_for, meet_cameras
    from reid.retrieval.embed import save_embeddings

    claim_output(out, "reid-embeddings-", data)
    samples = _read(data, root)
    checkpoint = meet_cameras(load_checkpoint_for(weights, backbone, size, profiles or ()), samples, _unseen(unseen))
    embeddings = embed_samples(checkpoint, [s for s in samples if split in (None, s.split)])
    save_embeddings(embeddings, out)
    typer.echo(
        f"{out}\t{len(embeddings)} vectors of {embeddings.vectors.shape[1]}\tfingerprint {embeddings.fingerprint}"
    )


@index_app.command("build", epilog="Example: reid index build --data crops/manifest.csv --out galleries/crops")
def index_build(
    out: Annotated[Path | None, typer.Option(help="folder of the gallery; default: galleries/street")] = None,
    data: Data = None,
    root: Root = None,
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    profiles: ProfileFiles = None,
    unseen: Unseen = None,
) -> None:
    """Embed the rows of split gallery and index them.  Without --data: the synthetic street, both sites."""
    from reid.pipeline import DEFAULT_GALLERY, build_gallery, load_checkpoint_for, meet_cameras

    samples = _read(data, root)
    policy = _unseen(unseen, "error" if data else "calibrate")
    checkpoint = meet_cameras(load_checkpoint_for(weights, backbone, size, profiles or ()), samples, policy)
    gallery = build_gallery(checkpoint, samples, out or DEFAULT_GALLERY)
    _echo_gallery(out or DEFAULT_GALLERY, gallery.samples)


@index_app.command("erase", epilog="Example: reid index erase galleries/crops anna")
def index_erase(
    folder: Annotated[Path, typer.Argument(help="folder of the gallery")],
    identity: Annotated[str, typer.Argument(help="whose rows to remove")],
) -> None:
    """Remove every row of an identity from a gallery: vectors and records."""
    from reid.retrieval.gallery import Gallery

    gone = Gallery.open(folder).erase(identity)
    if not gone:
        raise DataError(f'{folder}: no row of identity "{identity}"')
    typer.echo(f"{folder}\terased {gone} rows of {identity}")


@app.command(epilog="Example: reid search query.jpg --camera a1 --cross-camera")
def search(
    image: Annotated[Path, typer.Argument(help="picture to ask with")],
    gallery: Annotated[Path | None, typer.Option(help="folder of the gallery; default: galleries/street")] = None,
    camera: Annotated[str, typer.Option(help="camera that took the picture")] = "",
    modality: Annotated[Modality, typer.Option(help="its modality")] = Modality.VISIBLE,
    domain: Annotated[str, typer.Option(help="what it shows: person, vehicle, ...")] = "person",
    k: Annotated[int, typer.Option(min=1, help="answers")] = 10,
    cross_camera: Annotated[bool, typer.Option("--cross-camera", help="leave out answers of the same camera")] = False,
    answers: Annotated[
        list[Modality] | None, typer.Option(help="modality of the answers; repeatable; default: any")
    ] = None,
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    profiles: ProfileFiles = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Rank a gallery by likeness to one picture.  By default with the network that the gallery was built with."""
    from reid.pipeline import DEFAULT_GALLERY, gallery_checkpoint, load_checkpoint_for
    from reid.retrieval.gallery import Gallery
    from reid.retrieval.search import search_image

    folder = gallery or DEFAULT_GALLERY
    opened = Gallery.open(folder)
    named = weights or profiles
    checkpoint = load_checkpoint_for(weights, backbone, size, profiles or ()) if named else gallery_checkpoint(folder)
    found = search_image(
        checkpoint,
        opened,
        image,
        camera=camera,
        modality=modality,
        domain=domain,
        k=k,
        cross_camera=cross_camera,
        modalities=answers or None,
        domains=[domain],
    )
    rows = [_answer(place, answer.sample, answer.score) for place, answer in enumerate(found, 1)]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        typer.echo("{rank}\t{score:.4f}\t{identity}\t{camera}\t{modality}\t{path}".format(**row))


@app.command(epilog="Example: reid evaluate --data crops/manifest.csv --json scores.json")
def evaluate(
    data: Data = None,
    root: Root = None,
    weights: Weights = None,
    backbone: Backbone = None,
    size: Size = None,
    profiles: ProfileFiles = None,
    unseen: Unseen = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the results to this file too")] = None,
) -> None:
    """Score weights by the Market rule: mAP, mINP, CMC.

    Without --data: both sites of the synthetic street in data/street, made there if missing.
    """
    from reid.evaluation.report import report_table, write_reports
    from reid.pipeline import claim_output, evaluate_samples, load_checkpoint_for, meet_cameras

    if json_file is not None:
        claim_output(json_file, '"results"', data)
    loaded = load_checkpoint_for(weights, backbone, size, profiles or ())
    policy = _unseen(unseen, "error" if data else "calibrate")
    reports = []
    for spec in _specs(data):
        samples = _read([spec], root)
        report = evaluate_samples(meet_cameras(loaded, samples, policy), samples, protocol=_protocol_name(spec))
        reports.append(report)
        typer.echo(f"{spec}\n{report_table(report)}")
    if json_file is not None:
        write_reports(reports, json_file)


def _specs(data: list[str] | None) -> list[str]:
    """What to read: ``data``, or the sites of the default street, made now if it is not there."""
    if data:
        if len(set(data)) != len(data):
            raise ConfigError(f"--data: the same data is named twice: {', '.join(data)}")
        return data
    from reid.data.synthetic.street import StreetPlan
    from reid.pipeline import DEFAULT_DATA, make_street

    return [str(path) for path in make_street(DEFAULT_DATA, StreetPlan())]


def _read(data: list[str] | None, root: Path | None) -> tuple[Sample, ...]:
    from reid.pipeline import read_all

    return read_all(_specs(data), root)


def _protocol_name(spec: str) -> str:
    """How results name their data: a data set's name, or the folder of a manifest."""
    path = Path(spec)
    return spec if not path.exists() else (path.parent if path.is_file() else path).resolve().name


def _unseen(value: str | None, default: str = "error") -> Any:
    from reid.errors import unknown_name

    if value is not None and value not in UNSEEN:
        raise ConfigError(unknown_name("--unseen-camera", value, UNSEEN))
    return value or default


def _fields(by: str) -> tuple[str, ...]:
    from reid.errors import unknown_name

    fields = tuple(part for part in by.split("/") if part)
    for name in fields:
        if name not in ("camera", "modality", "domain"):
            raise ConfigError(unknown_name("field of --by", name, ("camera", "modality", "domain")))
    return fields


def _answer(place: int, sample: Sample, score: float) -> dict[str, Any]:
    return {
        "rank": place,
        "score": score,
        "identity": sample.identity,
        "camera": sample.camera,
        "modality": str(sample.modality),
        "domain": sample.domain,
        "path": str(sample.path),
    }


def _echo_gallery(folder: Path, samples: tuple[Sample, ...]) -> None:
    identities = len({(s.domain, s.identity) for s in samples})
    cameras = len({s.camera for s in samples})
    typer.echo(f"{folder}\t{len(samples)} images of {identities} identities in {cameras} cameras")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        app([argument for argument in given if argument != "--debug"], prog_name="reid")
    except (ReidError, OSError) as error:
        if debug:
            raise
        where = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        typer.echo(f"error: {' '.join(where.split())}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
