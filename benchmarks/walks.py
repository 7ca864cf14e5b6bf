"""How many modules a reader passes to follow a value through the program.

    python benchmarks/walks.py [--json FILE] [--modules]

Runs five walks on a few drawn crops with a tiny random network. Counts for each walk the modules of ``reid`` whose
functions are called, and the moves from one module to another: the different ones, and all with their repetitions.
Fewer are easier to follow. The numbers belong to the code, so they are the same on every machine.
``docs/decisions/0007-words-and-layout.md`` compares them with those of version 0.1.0.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from PIL import Image

from reid.data.loading import load_batches
from reid.data.transforms import EvaluationTransform
from reid.evaluation import evaluate, report_table
from reid.models.calibration import calibrate_checkpoint
from reid.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from reid.models.embedder import Embedder, NetworkSpec
from reid.norm import Given, camera_batchnorm, convert_norm
from reid.records import Embeddings, Modality, Sample, Split
from reid.retrieval.embed import embed
from reid.retrieval.gallery import Gallery
from reid.retrieval.search import search_image

CAMERAS = ("door", "yard")
PEOPLE = ("anna", "ben")
HEIGHT, WIDTH = 64, 32


@dataclass
class Walk:
    """What a walk passed: the modules in the order of their first call, and every move from one to another."""

    modules: list[str] = field(default_factory=list)
    moves: list[tuple[str, str]] = field(default_factory=list)


@contextmanager
def walking() -> Iterator[Walk]:
    """Count the modules of ``reid`` that are entered in the ``with`` block; imports are not counted."""
    walk, last = Walk(), ""

    def on_event(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal last
        module = frame.f_globals.get("__name__", "")
        if event != "call" or frame.f_code.co_name == "<module>" or module.split(".")[0] != "reid":
            return
        if module not in walk.modules:
            walk.modules.append(module)
        if last and module != last:
            walk.moves.append((last, module))
        last = module

    sys.setprofile(on_event)
    try:
        yield walk
    finally:
        sys.setprofile(None)


def draw_samples(folder: Path) -> list[Sample]:
    """Draw a query and two gallery crops of each person in each camera."""
    random = np.random.default_rng(0)
    samples = []
    for person in PEOPLE:
        for camera in CAMERAS:
            for number, split in enumerate((Split.QUERY, Split.GALLERY, Split.GALLERY)):
                path = folder / f"{person}-{camera}-{number}.png"
                Image.fromarray(random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(path)
                samples.append(Sample(path, person, camera, Modality.VISIBLE, "person", split))
    return samples


def tiny_checkpoint(folder: Path) -> Checkpoint:
    """Save a random network with statistics for each camera, and load it."""
    torch.manual_seed(0)
    spec = NetworkSpec("osnet_x0_25", "average", "bnneck")  # its layers are code of reid in every version
    network = convert_norm(Embedder(spec), camera_batchnorm(CAMERAS)).eval()
    transform = EvaluationTransform(height=HEIGHT, width=WIDTH)
    save_checkpoint(folder / "tiny.safetensors", network, spec, transform, ("camera",), CAMERAS, {})
    return load_checkpoint(folder / "tiny.safetensors")


def images_to_report(checkpoint: Checkpoint, samples: list[Sample]) -> None:
    """Embed crops, score them and print the report."""
    report_table(evaluate(embed(checkpoint, samples)))


def embeddings_to_report(embeddings: Embeddings) -> None:
    """Score embeddings and print the report: the part of the walk above that belongs to the evaluation."""
    report_table(evaluate(embeddings))


def camera_to_layer(checkpoint: Checkpoint, samples: list[Sample]) -> None:
    """From the camera of each sample to the statistics that a layer normalizes its crop with."""
    layer = convert_norm(torch.nn.Sequential(torch.nn.BatchNorm2d(3)), camera_batchnorm(checkpoint.domains)).eval()
    batches = load_batches(
        samples, checkpoint.transform, domain_fields=checkpoint.domain_fields, domains=checkpoint.domains
    )
    for batch in batches:
        Given(layer)(batch.images, batch.domain)


def query_to_answers(checkpoint: Checkpoint, samples: list[Sample], gallery: Gallery) -> None:
    """From an image and its camera to ranked answers."""
    search_image(checkpoint, gallery, samples[0].path, camera=samples[0].camera, k=3, cross_camera=True)


def crops_to_profiles(checkpoint: Checkpoint, samples: list[Sample]) -> None:
    """From unlabelled crops to the statistics of their cameras."""
    calibrate_checkpoint(checkpoint, samples)


def all_walks() -> dict[str, Walk]:
    """Take every walk; what it needs is prepared before it starts."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        samples, checkpoint = draw_samples(Path(name)), tiny_checkpoint(Path(name))
        embeddings = embed(checkpoint, samples)
        gallery = Gallery.build(embeddings)
        steps: dict[str, Callable[[], None]] = {
            "images → report": lambda: images_to_report(checkpoint, samples),
            "embeddings → report": lambda: embeddings_to_report(embeddings),
            "camera label → layer": lambda: camera_to_layer(checkpoint, samples),
            "query image → ranked answers": lambda: query_to_answers(checkpoint, samples, gallery),
            "unlabelled crops → profiles": lambda: crops_to_profiles(checkpoint, samples),
        }
        walks = {}
        for title, step in steps.items():
            step()  # the first time imports what the walk needs
            with walking() as walks[title]:
                step()
        return walks


def main() -> None:
    """Print one line a walk, and write the numbers if a file is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers and the modules to this file")
    parser.add_argument("--modules", action="store_true", help="name the modules of each walk")
    arguments = parser.parse_args()
    walks = all_walks()
    for title, walk in walks.items():
        moves = f"{len(set(walk.moves))} different moves, {len(walk.moves)} in all"
        print(f"{title}: {len(walk.modules)} modules, {moves}")
        if arguments.modules:
            print("    " + ", ".join(walk.modules))
    if arguments.json is not None:
        table = {title: {"modules": walk.modules, "moves": walk.moves} for title, walk in walks.items()}
        arguments.json.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
