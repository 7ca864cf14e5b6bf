"""What a network costs and what it is worth: float32 and int8, ONNX Runtime and OpenVINO, whole and pruned.

    python benchmarks/edge.py --network NAME=FILE[:BACKBONE] ... --crops MANIFEST --scored MANIFEST [--json FILE]
    [--report FILE]

Each network is exported in float32 and in int8, whose ranges are measured on the crops of split train of ``--crops``.
``--scored`` has labelled queries and a gallery.  All programs stand in one process, run on one thread and take turns,
several rounds, and the clock counts CPU seconds of the process; a figure of speed is the ratio to the first network in
float32 in the same program, median over rounds.  Compare figures of one run.  Networks without cameras only.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from reid.cli.int8_export import prepared_images
from reid.data.selection import calibration_samples, keep_balanced
from reid.evaluation import evaluate
from reid.models.checkpoint import Checkpoint
from reid.models.export import graph_of_camera, write_graph
from reid.models.networks.multiply_adds import count_multiply_adds
from reid.models.quantization import quantize_graph
from reid.pipeline import embed_samples, load_checkpoint, read_samples
from reid.records import Sample

PROGRAMS = {"ONNX Runtime": ".onnx", "OpenVINO": ".xml"}
BATCHES = {1: 20, 32: 2}  # images at a time -> how often they run in a round
ROUNDS = 7
CROPS = 256


def exported(name: str, checkpoint: Checkpoint, crops: Sequence[Sample], folder: Path) -> dict[tuple[str, str], Any]:
    """The four files of a network, loaded, by precision and program, and their sizes in bytes."""
    used = keep_balanced(calibration_samples(crops), ("camera",), CROPS)
    graph = graph_of_camera(checkpoint, folder / "x.onnx")
    graphs = {"float32": graph, "int8": quantize_graph(graph, prepared_images(checkpoint, used), checkpoint.source)}
    found = {}
    for precision, written in graphs.items():
        for program, suffix in PROGRAMS.items():
            path = folder / f"{name}-{precision}{suffix}"
            write_graph(checkpoint, written, path)
            found[precision, program] = (load_checkpoint(path), len(written))
    return found


def times(networks: dict[Any, Checkpoint], images: torch.Tensor) -> dict[Any, dict[int, list[float]]]:
    """CPU seconds of each network for each size of batch, round by round, in turns."""
    found: dict[Any, dict[int, list[float]]] = {key: {batch: [] for batch in BATCHES} for key in networks}
    for network in networks.values():
        network.embed(images)
    for _ in range(ROUNDS):
        for batch, often in BATCHES.items():
            for key, network in networks.items():
                start = time.process_time()
                for _ in range(often):
                    network.embed(images[:batch])
                found[key][batch].append((time.process_time() - start) / often)
    return found


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures of all networks."""
    crops, scored = read_samples(*arguments.crops), read_samples(*arguments.scored)
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as name:
        loaded: dict[Any, Checkpoint] = {}
        for given in arguments.network:
            title, _, file = given.partition("=")
            path, _, backbone = file.partition(":")
            whole = load_checkpoint(path, backbone or None)
            work = count_multiply_adds(whole.network, whole.transform.height, whole.transform.width)
            exact: Any = None
            for (precision, program), (checkpoint, size) in exported(title, whole, crops, Path(name)).items():
                loaded[title, precision, program] = checkpoint
                found = embed_samples(checkpoint, scored)
                exact = found if exact is None else exact
                plain = [one for one in evaluate(found).results if one.is_plain]
                cosines = (found.vectors * exact.vectors).sum(1)
                row = {"network": title, "precision": precision, "program": program, "bytes": size}
                row |= {"multiply_adds": work, "mAP": float(np.mean([100 * one.metrics.mAP for one in plain]))}
                row |= {"rank1": float(np.mean([100 * one.metrics.cmc[0] for one in plain]))}
                rows.append(row | {"cosine": float(cosines.mean()), "cosine_p1": float(np.quantile(cosines, 0.01))})
        images = torch.from_numpy(prepared_images(whole, list(scored)[: max(BATCHES)]))
        clocks = times(loaded, images)
    first = rows[0]["network"]
    for row in rows:
        own = clocks[row["network"], row["precision"], row["program"]]
        base = clocks[first, "float32", row["program"]]
        row |= {f"speed_{batch}": float(np.median(np.array(base[batch]) / own[batch])) for batch in BATCHES}
    queries = sum(str(sample.split) == "query" for sample in scored)
    return {"machine": platform.processor() or platform.machine(), "queries": queries, "rows": rows}


def report_text(found: dict[str, Any]) -> str:
    """The table of a page."""
    lines = [
        f"| network | multiply-adds | file | mAP of {found['queries']:,} queries | rank-1 | cosine, mean"
        " | 1st percentile | size | speed, 1 image | speed, 32 images |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        lines.append(
            f"| {row['network']} | {row['multiply_adds'] / 1e6:.1f} M | {row['precision']}, {row['program']} |"
            f" {row['mAP']:.2f} % | {row['rank1']:.2f} % | {row['cosine']:.4f} | {row['cosine_p1']:.4f} |"
            f" {row['bytes'] / 1e6:.2f} MB | {row['speed_1']:.2f} | {row['speed_32']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", action="append", required=True, metavar="NAME=FILE[:BACKBONE]")
    parser.add_argument("--crops", action="append", required=True)
    parser.add_argument("--scored", action="append", required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    if arguments.report:
        arguments.report.write_text(report_text(found))
    print(report_text(found))


if __name__ == "__main__":
    main()
