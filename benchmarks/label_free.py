"""What a site without labels can gain, all methods together: docs/results/label-free.md.

    python benchmarks/label_free.py --street street-b=FOLDER --street seed-1=FOLDER --vehicles FOLDER \\
        --characters FOLDER --weights FOLDER

A street is a folder with ``manifest.csv``, drawn by ``reid synth``; FOLDER of ``--weights`` holds OSNet x0.25
checkpoints of torchreid.  What is not given is left out.  Networks adapt to crops without labels, and other people are
scored.  Adapted networks and vectors are kept in ``--kept`` and figures under benchmarks/results, so a second run
continues where the first one was stopped.  ``--only`` measures the jobs whose names hold a text.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from label_free_measure import EPOCHS, PLAIN, Job, Measurement, all_jobs
from label_free_places import all_places
from label_free_probes import PROBES, measure_probe
from label_free_report import page
from label_free_trained import measure_trained, trained_jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--street", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--vehicles", type=Path)
    parser.add_argument("--characters", type=Path)
    parser.add_argument("--weights", type=Path, help="folder of .pth files")
    parser.add_argument("--trained", type=Path, help="folder of the runs of scripts/experiments/trained-alike.toml")
    parser.add_argument("--trained-json", type=Path, default=Path("benchmarks/results/label_free_trained.json"))
    parser.add_argument("--only", default="", help="measure the jobs whose names hold this text")
    parser.add_argument("--made", action="store_true", help="measure no adaptation whose network is not there yet")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/label_free.json"))
    parser.add_argument("--report", type=Path, default=Path("docs/results/label-free.md"))
    parser.add_argument(
        "--kept", type=Path, default=Path("data/label-free"), help="where networks and vectors are kept"
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of adaptations")
    options = parser.parse_args()
    torch.set_num_threads(1)
    streets = {name: Path(folder) for name, _, folder in (one.partition("=") for one in options.street)}
    places = all_places(streets, options.vehicles, options.characters)
    names = (
        sorted(file.stem.removeprefix("osnet_x0_25_") for file in options.weights.glob("*.pth"))
        if options.weights
        else []
    )
    measurement = Measurement(places, options.weights, options.kept)
    for job in all_jobs(places, names):
        job = replace(job, epochs=options.epochs)
        if options.only not in job.name or job.name in read(options.json):
            continue
        if options.made and job.is_adaptation and not measurement.file_of(job).is_file():
            continue
        found = measurement.measure(job)
        add(options.json, job.name, found)
        print(job.name, found["scores"][PLAIN], flush=True)
    for network, level in PROBES if streets else ():
        job = Job(next(iter(streets)) + " visible", network, level)
        name = f"probe|{network}|{level}|{job.seed}"
        if options.only in name and name not in read(options.json):
            found = measure_probe(measurement, job)
            if found:
                add(options.json, name, found)
                print(name, found[-1], flush=True)
    for name, weights, level in trained_jobs(options.trained) if options.trained and streets else ():
        if options.only in f"trained|{name}" and name not in read(options.trained_json):
            found = measure_trained(measurement, next(iter(streets)), name, weights, level)
            add(options.trained_json, name, found)
            print(name, flush=True)
    options.report.write_text(page(read(options.json), read(options.trained_json)), encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def add(path: Path, name: str, found: Any) -> None:
    """Add figures to a file that another run may add to at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps({**read(path), name: found}, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    main()
