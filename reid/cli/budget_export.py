"""``reid export --budget``: measure every width, precision and program on this machine; write the best that fits."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import typer

from reid.cli.int8_export import COMPARED, CROPS, prepared_images
from reid.errors import ConfigError, DataError
from reid.records import FloatArray, domain_of

if TYPE_CHECKING:
    from reid.models.checkpoint import Checkpoint

Load = Callable[[float], "Checkpoint"]  # loads the network at a width
FEWEST = 16  # crops: half for the ranges of int8, half to compare on


def export_within(
    budget: str,
    load: Load,
    widths: Sequence[float],
    data: Sequence[str] | None,
    root: Path | None,
    out: Path,
    camera: str,
) -> None:
    """Write the best export within a budget, and a list of all that were measured beside it.

    Args:
        budget: The time for one image, such as "5 ms".
        load: Loads the network at a width.
        widths: The widths of the file, the widest first.
        data: Manifests or data sets; no labels are needed.
        root: The folder of a published data set.
        out: The model: ``.onnx`` or ``.xml``, whose program must run it.
        camera: The camera whose statistics the file gets; only its crops are used then.

    Raises:
        ConfigError: The budget cannot be read or met, there are no data, or the camera is not known.
        DataError: There are too few crops.
    """
    from reid.edge.budget import choose_export, parse_budget, time_exports
    from reid.files import write_whole
    from reid.models.export import check_camera, write_graph
    from reid.pipeline import progress_bar

    limit = parse_budget(budget)
    if not data:
        raise ConfigError("--budget: give with --data some crops of your cameras, on which networks are compared")
    networks = {width: load(width) for width in widths}
    widest = networks[widths[0]]
    check_camera(widest, camera)
    ranges, compared = _crops(widest, data, root, camera)
    with TemporaryDirectory() as folder, progress_bar("measuring exports", 4 * len(networks)) as progress:
        timed = time_exports(networks, ranges, compared, Path(folder), camera, progress)
    for one, _ in timed:
        typer.echo(one.line())
    of_program = [pair for pair in timed if pair[0].suffix == out.suffix.lower()]
    chosen = choose_export([one for one, _ in of_program], limit)
    graph = next(graph for one, graph in of_program if one == chosen)
    write_graph(networks[chosen.width], graph, out)
    rows = [{**asdict(one), "is_written": one == chosen} for one, _ in timed]
    text = json.dumps({"budget_ms": limit, "exports": rows}, indent=2) + "\n"
    write_whole(out.with_suffix(".json"), lambda part: Path(part).write_text(text, encoding="utf-8"), private=False)
    typer.echo(f"written\t{chosen.line()}")
    others = [one for one, _ in timed if one.milliseconds <= limit]
    best = choose_export(others, limit)
    if best.program != chosen.program and best.overlap > chosen.overlap:
        typer.echo(f"{best.program} would do better: give a name that ends in {best.suffix}", err=True)


def _crops(
    checkpoint: Checkpoint, data: Sequence[str], root: Path | None, camera: str
) -> tuple[FloatArray, FloatArray]:
    """Prepared crops for the ranges of int8, and others to compare on."""
    from reid.data.manifest import check_files
    from reid.data.selection import calibration_samples, keep_balanced
    from reid.pipeline import read_samples

    fields = checkpoint.domain_fields or ("camera",)
    samples = [one for one in read_samples(*data, root=root) if not camera or domain_of(one, fields) == camera]
    crops = keep_balanced(calibration_samples(samples), fields, CROPS + COMPARED) if samples else []
    if len(crops) < FEWEST:
        raise DataError(f"--budget: needs at least {FEWEST} crops in --data to compare networks on, got {len(crops)}")
    check_files(crops)
    some = keep_balanced(crops, fields, min(CROPS, len(crops) // 2))
    used = {one.path for one in some}
    rest = [one for one in crops if one.path not in used]
    return prepared_images(checkpoint, some), prepared_images(checkpoint, rest)
