"""Files -> vectors: how long the embedding of image files takes, beside the loop that others use.

    python benchmarks/extraction.py FOLDER [--weights FILE --backbone NAME | --untrained NAME] [--images 128]
    [--manifest FILE] [--json FILE]

The other loop is that of torchreid's FeatureExtractor: each image is opened, resized, made a tensor and normalised
by itself, and the plain network of PyTorch computes batches of 32 in float32.  All ways stand in one process and take
turns, several rounds; the table has the median of the CPU seconds of each, and the median of how many times faster it
was than the usual loop of the same round.  Graphs are exported and compiled before.  Compare ways of one run: the
absolute times belong to the machine they were taken on.  With a manifest of queries and a gallery the mAP of each way
is measured too.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image, features
from torch.nn import functional
from torchvision import __version__ as torchvision_version
from torchvision import transforms

from reid.data.images import IMAGE_SUFFIXES
from reid.data.manifest import read_manifest
from reid.data.transforms import EvaluationTransform
from reid.errors import ReidError
from reid.evaluation import evaluate
from reid.models.checkpoint import Checkpoint, save_checkpoint
from reid.models.embedder import Embedder, NetworkSpec
from reid.models.execution import Execution
from reid.models.runners import describe_execution
from reid.norm.condition import Condition, given
from reid.pipeline import load_checkpoint
from reid.records import FloatArray, Sample, Split
from reid.retrieval.embed import embed

PEER = "usual loop"
PEER_BATCH = 32
WARM = 16  # images that are embedded before the clock starts
WAYS: dict[str, Execution | None] = {
    PEER: None,
    "eager": Execution(),
    "eager, bfloat16": Execution(precision="bfloat16"),
    "folded": Execution(runtime="folded"),
    "folded, bfloat16": Execution(runtime="folded", precision="bfloat16"),
    "onnx": Execution(runtime="onnx"),
    "onnx, simplejpeg": Execution(runtime="onnx", decoder="simplejpeg"),
    "onnx, draft": Execution(runtime="onnx", decoder="draft"),
    "openvino": Execution(runtime="openvino"),
    "openvino, bfloat16": Execution(runtime="openvino", precision="bfloat16"),
    "openvino, bfloat16, simplejpeg": Execution(runtime="openvino", precision="bfloat16", decoder="simplejpeg"),
    "openvino, bfloat16, draft": Execution(runtime="openvino", precision="bfloat16", decoder="draft"),
}
Run = Callable[[Sequence[Sample]], FloatArray]


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    checkpoint = (
        untrained(options.untrained) if options.untrained else load_checkpoint(options.weights, options.backbone)
    )
    print(json.dumps(machine(options), indent=2))
    paths = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    chosen = [
        Sample(path, camera=options.camera) for path in paths[:: max(1, len(paths) // options.images)][: options.images]
    ]
    ways = dict(ready_ways(checkpoint, chosen[:WARM], options.ways))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, run in ways.items():
            started = time.process_time()
            run(chosen)
            seconds[name].append(time.process_time() - started)
    rows = [row(name, run, seconds, chosen, ways["eager"]) for name, run in ways.items()]
    for one in rows:
        if options.manifest:
            one["mAP"] = mean_ap(checkpoint, options.manifest, ways[one["way"]])
        one["how"] = "Pillow, torchvision and PyTorch, one by one" if one["way"] == PEER else HOW[one["way"]]()
        print("{way:32}{ms:8.2f} ms an image{ratio:7.2f}x  cosine {cosine:.6f}".format(**one), one.get("mAP", ""))
    if options.json:
        found = json.loads(options.json.read_text()) if options.json.exists() else {}
        found[options.name] = {"machine": machine(options), "rows": rows}
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--backbone")
    parser.add_argument("--untrained", metavar="NAME", help="a backbone with random weights, 256 x 128")
    parser.add_argument("--camera", default="", help="for weights with cameras: that of all images")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--manifest", type=Path)
    parser.add_argument("--name", default="extraction", help="of this run in the JSON file, which holds several")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def untrained(backbone: str) -> Checkpoint:
    """A network with random weights, for the time alone."""
    spec = NetworkSpec(backbone)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "untrained.safetensors"
        save_checkpoint(path, Embedder(spec).eval(), spec, EvaluationTransform(), (), (), {})
        return load_checkpoint(path)


HOW: dict[str, Callable[[], str]] = {}


def ready_ways(checkpoint: Checkpoint, warm: Sequence[Sample], names: Sequence[str]) -> list[tuple[str, Run]]:
    """The ways that work here, each after it has embedded some images."""
    ready: list[tuple[str, Run]] = []
    for name, execution in WAYS.items():
        if name not in {*names, PEER, "eager"}:
            continue
        run: Run = lambda part: usual_loop(checkpoint, part)  # noqa: E731
        if execution is not None:
            moved = checkpoint.with_execution(execution)
            run = lambda part, moved=moved: embed(moved, part).vectors  # type: ignore[misc]  # noqa: E731
            HOW[name] = lambda moved=moved: describe_execution(moved)  # type: ignore[misc]
        try:
            run(warm)
        except ReidError as error:
            print(f"{name}: left out ({error})", flush=True)
            continue
        ready.append((name, run))
    return ready


def row(name: str, run: Run, seconds: dict[str, list[float]], samples: Sequence[Sample], eager: Run) -> dict[str, Any]:
    """The median of one way, how many times faster than the usual loop it is, and how near to the eager network."""
    cosines = functional.cosine_similarity(torch.from_numpy(run(samples)), torch.from_numpy(eager(samples)))
    return {
        "way": name,
        "ms": 1000 * median(seconds[name]) / len(samples),
        "all_ms": [1000 * one / len(samples) for one in seconds[name]],
        "ratio": times_faster(seconds[PEER], seconds[name]),
        "times_eager": times_faster(seconds["eager"], seconds[name]),
        "cosine": float(cosines.min()),
        "mean_cosine": float(cosines.mean()),
    }


def times_faster(others: Sequence[float], own: Sequence[float]) -> float:
    """The median of the ratios of the rounds."""
    return median(other / one for other, one in zip(others, own, strict=True))


def mean_ap(checkpoint: Checkpoint, manifest: Path, run: Run) -> float:
    """The mAP of a way on the queries and the gallery of a manifest."""
    samples = [one for one in read_manifest(manifest) if one.split is not Split.TRAIN]
    embeddings = embed(checkpoint, samples[:1])
    found = type(embeddings)(tuple(samples), run(samples), embeddings.fingerprint)
    return evaluate(found).results[0].metrics.mAP


def usual_loop(checkpoint: Checkpoint, samples: Sequence[Sample]) -> FloatArray:
    """Embed images as torchreid's FeatureExtractor does."""
    transform, network = checkpoint.transform, checkpoint.network
    domain = 0 if checkpoint.domains else None  # all images are of one camera
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
        with torch.no_grad(), given(Condition(domain)):
            pooled = network.pooling(network.backbone(torch.stack(images)))  # type: ignore[operator]
            vectors.append(functional.normalize(network.neck(pooled)).numpy())  # type: ignore[operator]
    return np.concatenate(vectors)


def machine(options: argparse.Namespace) -> dict[str, object]:
    """What the times depend on."""
    kernels = [line.strip() for line in torch.__config__.show().splitlines() if "CPU capability" in line]
    return {
        "processor": platform.processor() or platform.machine(),
        "kernels": f"{', '.join(kernels)}; oneDNN {torch._C._has_mkldnn}",
        "threads": options.threads,
        "images": options.images,
        "weights": options.weights.name if options.weights else options.untrained or "shipped",
        "torch": torch.__version__,
        "torchvision": torchvision_version,
        "pillow": Image.__version__,
        "libjpeg-turbo": str(features.version("libjpeg_turbo")),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
