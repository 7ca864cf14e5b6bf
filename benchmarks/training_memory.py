"""Measure the memory of a training with its crops in memory and with its crops mapped from a file.

    python benchmarks/training_memory.py --images 10000 100000 --json benchmarks/results/training_memory.json

Tiny images are generated. Each measurement runs in a process of its own: it reads the crops, trains on some batches,
and prints how much memory it holds beside what it held before it read them. Anonymous memory must stay in RAM; memory
that is mapped from a file is given up by the system when other programs need it.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

SIZE = (64, 32)  # height and width that crops are resized to
FILE_SIZE = (32, 16)  # of the generated images
BATCHES = 20
PER_IDENTITY = 10


def write_images(folder: Path, count: int) -> None:
    """Write images of one colour each, and a manifest."""
    height, width = FILE_SIZE
    rows = ["path,identity,camera,split"]
    for number in range(count):
        name = f"{number // 1000}/{number}.ppm"
        path = folder / name
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        colour = bytes(((number * 37) % 256, (number * 101) % 256, (number * 211) % 256))
        path.write_bytes(f"P6 {width} {height} 255\n".encode() + colour * (height * width))
        rows.append(f"{name},{number // PER_IDENTITY},c{number % 3},train")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def held_memory() -> dict[str, float]:
    """Return the MiB of anonymous memory and of mapped files that this process holds."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}


def measure(manifest: Path, cache: Path | None) -> dict[str, float]:
    """Read the crops, train on some batches and return seconds and memory."""
    import torch

    from reid.config import parse_config
    from reid.data.transforms import EvaluationTransform, TrainTransform
    from reid.training.batches import BatchSampler
    from reid.training.crop_cache import CropSource
    from reid.training.loop import TrainingLoop, make_optimizer
    from reid.training.training_data import read_training_rows, read_training_set
    from reid.training.training_run import build_learner

    torch.set_num_threads(1)
    table = {
        "data": {"manifests": [str(manifest)], "size": list(SIZE)},
        "network": {"backbone": "resnet18_x0_375"},
        "train": {"identities_per_batch": 16, "images_per_identity": 4, "visits": 1, "threads": 1},
    }
    experiment, rows = read_training_rows(parse_config(table, "benchmark"))
    recipe, transform = experiment.train, EvaluationTransform(*SIZE)
    learner = build_learner(experiment, rows)
    source = CropSource(transform, 1, folder=cache)
    before, started = held_memory(), time.perf_counter()
    data = read_training_set(rows, source)
    seconds = time.perf_counter() - started
    after_reading = held_memory()
    loop = TrainingLoop(learner, make_optimizer(learner, recipe), data, TrainTransform(), transform, recipe)
    batches = BatchSampler(rows.samples, (), recipe, 1).epoch(0)[:BATCHES]
    loop.train_epoch(0, batches, torch.Generator().manual_seed(0))
    after = held_memory()
    return {
        "seconds_to_read": round(seconds, 2),
        "anonymous_crops_mib": round(after_reading["RssAnon"] - before["RssAnon"], 1),
        "anonymous_mib": round(after["RssAnon"] - before["RssAnon"], 1),
        "mapped_mib": round(after["RssFile"] - before["RssFile"], 1),
    }


def main() -> None:
    """Run all measurements and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--child", nargs=2, metavar=("MANIFEST", "CACHE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        manifest, cache = options.child
        print(json.dumps(measure(Path(manifest), Path(cache) if cache else None)))
        return
    found = []
    for count in options.images:
        with TemporaryDirectory() as name:
            folder = Path(name)
            write_images(folder, count)
            for kind, cache in (
                ("memory", ""),
                ("cache, decoded", folder / "cache"),
                ("cache, again", folder / "cache"),
            ):
                words = [sys.executable, __file__, "--child", str(folder / "manifest.csv"), str(cache)]
                done = subprocess.run(words, capture_output=True, text=True, check=True)
                row = {"images": count, "crops": kind, **json.loads(done.stdout)}
                print(row, flush=True)
                found.append(row)
    if options.json:
        result = {
            "machine": platform.processor() or platform.machine(),
            "size": SIZE,
            "batches": BATCHES,
            "rows": found,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
