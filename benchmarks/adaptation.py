"""What adapting a network to a site by cluster contrast costs on one core: 8 epochs of 20 steps.

    python benchmarks/adaptation.py MANIFEST --weights FILE --backbone osnet_x0_25 [--epochs 8] [--json FILE]

Prints processor seconds (those of a free core) of the pieces of an epoch and of the whole adaptation, beside the wall
time.  1,200 crops of 256 x 128 pixels are meant to take at most 9 minutes with OSNet x0.25.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from reid.adaptation.clusters import cluster_site
from reid.adaptation.contrast_rounds import EpochFigures
from reid.adaptation.site_adaptation import adapt
from reid.adaptation.site_crops import choose_domain_fields, read_site
from reid.adaptation.site_network import SiteNetwork
from reid.data.manifest import read_manifest
from reid.data.selection import calibration_samples
from reid.pipeline import load_checkpoint

Result = TypeVar("Result")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--backbone")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []

    def stage(name: str, work: Callable[[], Result]) -> Result:
        wall, used = time.perf_counter(), time.process_time()
        result = work()
        row = {"stage": name, "cpu_seconds": time.process_time() - used, "seconds": time.perf_counter() - wall}
        rows.append(row)
        print(f"{name:40}{row['cpu_seconds']:10.1f} s of CPU{row['seconds']:10.1f} s", flush=True)
        return result

    samples = calibration_samples(read_manifest(options.manifest))
    checkpoint = load_checkpoint(options.weights, options.backbone)
    fields = checkpoint.domain_fields or choose_domain_fields(samples)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {len(samples):,} crops")
    crops = stage("read and resize", lambda: read_site(samples, checkpoint.transform, fields))
    site = SiteNetwork(checkpoint, crops)
    stage("measure statistics", site.measure)
    vectors = stage("embed", site.embed)
    stage("cluster", lambda: cluster_site(vectors, crops, np.unique(crops.groups).tolist()))
    marks = [time.process_time()]

    def show(figures: EpochFigures) -> None:
        marks.append(time.process_time())
        print(
            f"  epoch {figures.epoch}: quality {figures.quality:.3f}, {marks[-1] - marks[-2]:.1f} s of CPU", flush=True
        )

    found = stage("all epochs", lambda: adapt(checkpoint, samples, epochs=options.epochs, on_epoch=show))
    print(found.verdict)
    if options.json:
        options.json.write_text(json.dumps({"crops": len(samples), "stages": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
