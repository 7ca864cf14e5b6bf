"""Files -> vectors: how long the embedding of image files takes, beside the loop that others use.

    python benchmarks/extraction.py FOLDER [--weights FILE --backbone NAME] [--images 512] [--threads 1] [--json FILE]

The other loop is that of torchreid's FeatureExtractor: each image is opened, resized, made a tensor and normalised
by itself, and the plain network of PyTorch computes batches of 32 in float32.  Every way runs in a process of its own,
one after the other, several rounds; the table has the median of the CPU seconds.  Compare ways of one run: the absolute
times belong to the machine they were taken on.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, features
from torch.nn import functional
from torchvision import __version__ as torchvision_version
from torchvision import transforms

from reid.data.images import IMAGE_SUFFIXES
from reid.models.checkpoint import Checkpoint
from reid.models.execution import Execution
from reid.models.runners import describe_execution
from reid.pipeline import load_checkpoint
from reid.records import FloatArray, Sample
from reid.retrieval.embed import embed

PEER = "usual loop"
PEER_BATCH = 32
WARM = 64  # images that are embedded before the clock starts
WAYS: dict[str, Execution | None] = {
    PEER: None,
    "eager": Execution(),
    "folded": Execution(runtime="folded"),
    "folded, simplejpeg": Execution(runtime="folded", decoder="simplejpeg"),
    "folded, bfloat16": Execution(runtime="folded", precision="bfloat16"),
    "onnx": Execution(runtime="onnx"),
    "openvino": Execution(runtime="openvino"),
    "openvino, bfloat16": Execution(runtime="openvino", precision="bfloat16"),
    "openvino, bfloat16, simplejpeg": Execution(runtime="openvino", precision="bfloat16", decoder="simplejpeg"),
}


def main() -> None:
    options = arguments()
    if options.only:
        print(json.dumps(measure(options)))
        return
    print(json.dumps(machine(options), indent=2))
    found: dict[str, list[dict[str, object]]] = {name: [] for name in WAYS}
    for _ in range(options.rounds):
        for name in WAYS:
            words = [sys.executable, __file__, *sys.argv[1:], "--only", name]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{name}: left out ({done.stderr.strip().splitlines()[-1]})", flush=True)
                continue
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{name}: {found[name][-1]['ms']:.2f} ms of CPU an image", flush=True)
    rows = [row(name, runs, found[PEER]) for name, runs in found.items() if runs]
    for one in rows:
        print("{way:32}{ms:8.2f} ms an image{ratio:7.2f}x  cosine {cosine:.6f}  {memory:6.0f} MiB  {how}".format(**one))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(options), "rows": rows}, indent=2) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--backbone")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Embed the images in one way; the cosine is that to the eager network, on the images that warm up."""
    torch.set_num_threads(options.threads)
    checkpoint = load_checkpoint(options.weights, options.backbone)
    paths = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    step = max(1, len(paths) // options.images)
    chosen = [Sample(path) for path in paths[::step][: options.images]]
    execution = WAYS[options.only]
    moved = checkpoint if execution is None else checkpoint.with_execution(execution)
    run: Callable[[list[Sample]], FloatArray] = lambda part: (  # noqa: E731
        usual_loop(checkpoint, part) if execution is None else embed(moved, part).vectors
    )
    first = run(chosen[:WARM])
    cosine = float((first * embed(checkpoint, chosen[:WARM]).vectors).sum(1).min())
    wall, started = time.perf_counter(), time.process_time()
    run(chosen)
    return {
        "ms": 1000 * (time.process_time() - started) / len(chosen),
        "wall_ms": 1000 * (time.perf_counter() - wall) / len(chosen),
        "cosine": cosine,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "how": "PIL, torchvision and PyTorch, one by one" if execution is None else describe_execution(moved),
    }


def usual_loop(checkpoint: Checkpoint, samples: list[Sample]) -> FloatArray:
    """Embed images as torchreid's FeatureExtractor does."""
    transform, network = checkpoint.transform, checkpoint.network
    prepare = transforms.Compose(
        [
            transforms.Resize((transform.height, transform.width)),
            transforms.ToTensor(),
            transforms.Normalize(transform.mean, transform.std),
        ]
    )
    vectors = []
    for start in range(0, len(samples), PEER_BATCH):
        images = [prepare(Image.open(one.path).convert("RGB")) for one in samples[start : start + PEER_BATCH]]
        with torch.no_grad():
            pooled = network.pooling(network.backbone(torch.stack(images)))  # type: ignore[operator]
            vectors.append(functional.normalize(network.neck(pooled)).numpy())  # type: ignore[operator]
    return np.concatenate(vectors)


def row(name: str, runs: list[dict[str, object]], peer: list[dict[str, object]]) -> dict[str, object]:
    """The medians of one way, and how many times faster than the usual loop it is."""
    median = {key: statistics.median(float(str(run[key])) for run in runs) for key in ("ms", "wall_ms", "memory")}
    usual = statistics.median(float(str(run["ms"])) for run in peer)
    cosine = min(float(str(run["cosine"])) for run in runs)
    return {"way": name, **median, "ratio": usual / median["ms"], "cosine": cosine, "how": runs[-1]["how"]}


def machine(options: argparse.Namespace) -> dict[str, object]:
    """What the times depend on."""
    kernels = [line.strip() for line in torch.__config__.show().splitlines() if "CPU capability" in line]
    return {
        "processor": platform.processor() or platform.machine(),
        "kernels": f"{', '.join(kernels)}; oneDNN {torch._C._has_mkldnn}",
        "threads": options.threads,
        "images": options.images,
        "weights": str(options.weights.name if options.weights else "shipped"),
        "torch": torch.__version__,
        "torchvision": torchvision_version,
        "pillow": Image.__version__,
        "libjpeg-turbo": str(features.version("libjpeg_turbo")),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
