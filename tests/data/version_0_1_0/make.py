"""Make the files of this folder.  Run with version 0.1.0, in a checkout of it (commit 0fa1304):

OMP_NUM_THREADS=1 PYTHONPATH=.:tests python /path/to/make.py OUT

writes them to OUT/version_0_1_0.  Everything is drawn or random but seeded.  Of the files only ``state.pt.xz`` is not
just as the program left it: its kernels are rounded to float16 and the optimizer's moments are zero, so that it packs
well.
"""

# The imports are those of 0.1.0, which the sorter cannot find in a later checkout.
# isort: skip_file
from __future__ import annotations

import contextlib
import csv
import io
import json
import lzma
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file
from tiny_models import Tiny
from walking_people import TWO, picture

import reid
from reid.cli import main
from reid.config import load_config
from reid.data.manifest import read_manifest, write_manifest
from reid.data.synthetic.street import StreetPlan, generate
from reid.data.transforms import EvaluationTransform
from reid.evaluation import market_metrics
from reid.models.calibration import calibrate_checkpoint
from reid.models.checkpoint import load_checkpoint, save_checkpoint
from reid.models.embedder import Embedder, NetworkSpec
from reid.norm import camera_batchnorm, convert_norm
from reid.records import Sample, Split
from reid.training.run import round_kernels, train

COLUMNS = ("path", "identity", "camera", "modality", "domain", "split", "time", "track")
PLAN = StreetPlan(identities=3, train_identities=2, vehicles=2, train_vehicles=2, crops=2, sites=("street-a",))
CAMERAS = {"person": ("a1", "a2", "a5", "a6"), "vehicle": ("a1", "a2", "a5")}
RUN = Path("runs/domain-bn-0")
EMBED = ("--data", "manifest.csv", "--weights", "camera.safetensors")
PROFILED = (*EMBED, "--profiles", "profiles.safetensors")
INGEST = (
    "ingest",
    "film",
    "--camera",
    "north",
    "--source-fps",
    5,
    "--start",
    "2026-03-02T08:00",
    "--max-crops-per-track",
    2,
)
ASKED = "images/a-person-0001_a5_0.jpg"

EVERY_KEY = """
[data]
manifests = ["manifest.csv", "manifest.parquet"]
unlabelled = ["manifest.csv"]
domains = ["person"]
size = [64, 32]

[network]
backbone = "resnet18+ibn"
pooling = "gem"
neck = "none"
weights = "start.pth"

[norm]
kind = "modality"
system = "dwt+mec"
by = ["domain", "modality"]
affine = "domain"

[train]
seed = 7
epochs = 3
identities_per_batch = 8
images_per_identity = 4
visits = 2
balance = "camera"
learning_rate = 1e-3
final_learning_rate = 0.05
warmup_epochs = 0.5
weight_decay = 1e-4
gradient_clip = 2.5
label_smoothing = 0.2
triplet_margin = "soft"
triplet_weight = 0.5
triplet_start = 1.5
triplet_ramp = 2.5
contrast_weight = 0.25
positives = "cross_modality"
precision = "bfloat16"
threads = 1

[augment]
flip = 0.4
pad = 3
brightness = 0.3
contrast = 0.25
saturation = 0.35
gain = 0.15
grey = 0.1
erase = 0.6
"""

DOMAIN = """
[data]
manifests = ["manifest.csv"]
size = [64, 32]

[network]
weights = "camera.safetensors"

[norm]
kind = "domain"
affine = "domain"

[train]
epochs = 2
identities_per_batch = 2
images_per_identity = 3
visits = 1
learning_rate = 1e-5
warmup_epochs = 0
triplet_start = 0
triplet_ramp = 1
precision = "bfloat16"
threads = 1
"""

COMPARISON = """
title = "Domains and cameras"
about = "A shortened comparison."
seeds = 1
directions = ["visible->visible", "infrared->visible"]
statistics = ["kept"]

[experiment.data]
manifests = ["manifest.csv"]
size = [64, 32]

[experiment.network]
weights = "camera.safetensors"

[experiment.train]
epochs = 2
identities_per_batch = 2
images_per_identity = 3
visits = 1
learning_rate = 1e-5
warmup_epochs = 0
triplet_start = 0
triplet_ramp = 1
precision = "bfloat16"
threads = 1

[[evaluation]]
name = "street-a (seen)"
manifest = "manifest.csv"

[[variation]]
name = "Domain BN"
norm.kind = "domain"
norm.affine = "domain"

[[variation]]
name = "Camera BN"
norm.kind = "camera"
statistics = ["kept", "measured", "mixture", "ensemble"]

[[variation]]
name = "people"
data.domains = ["person"]

[[variation]]
name = "vehicles beside people"
apart = { base = "people", adapters = "series", compress = false }
data.domains = ["vehicle"]
norm = { kind = "domain", affine = "domain" }
"""

# Rules of SYSU-MM01 on the rows of the manifest: a5 stands where a1 stands.
PROTOCOL = """
name = "own"
title = "Own data"
source = "drawn"
licence = "Apache-2.0"
obtain = "draw it again"
manifest = "{rows}.csv"
infrared_cameras = ["a5", "a6"]

[rule]
ignore = "place"
cmc = "identity"
gallery = "random"
shots = "{shots}"
trials = 3

[places]
a5 = "a1"

[counts]
gallery = { images = 17 }

[variants.rows]
default = "manifest"
choices = { manifest = {} }

[variants.shots]
default = "one"
choices = { one = { shots = "1" }, two = { shots = "2" } }
"""


def run(*arguments: object) -> str:
    """Run a command; what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"{arguments}: exit code {end.code}") from end
            raise
    return printed.getvalue()


def make_data() -> None:
    """Crops and the manifest of them, as CSV and as Parquet; some rows are queries and answers."""
    with tempfile.TemporaryDirectory() as folder:
        (source,) = generate(Path(folder) / "street", PLAN, workers=1)
        with source.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["camera"] in CAMERAS[row["domain"]]]
        kept: list[dict[str, str]] = []
        Path("images").mkdir()
        for row in rows:
            name = Path(row["path"]).name
            shot = name[-5]
            twice = row["camera"] in ("a1", "a5") and not (row["domain"] == "person" and row["camera"] == "a1")
            if shot == "1" and (row["split"] == "train" or twice):
                continue
            if shot == "0" and row["split"] == "query" and row["camera"] in ("a2", "a6"):
                continue
            row = {**row, "path": f"images/{name}", "track": f"{row['identity']}-{row['camera']}"}
            kept.append(row)
            if twice and row["split"] == "query":
                kept.append({**row, "split": "gallery"})
            shutil.copyfile(source.parent / next(r["path"] for r in rows if r["path"].endswith(name)), row["path"])
    kept[-1]["identity"] = ""  # somebody whom nobody knows
    with Path("manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
    write_manifest(read_manifest(Path("manifest.csv")), Path("manifest.parquet"))


def make_weights() -> None:
    """OSNet x0.25 that keeps statistics for each kind of object and camera."""
    torch.manual_seed(0)
    spec, transform = NetworkSpec("osnet_x0_25", "average", "bnneck"), EvaluationTransform(64, 32)
    embedder = Embedder(spec)
    round_kernels(embedder)
    names = [f"{domain}/{camera}" for domain, cameras in CAMERAS.items() for camera in cameras]
    network, path = convert_norm(embedder, camera_batchnorm(names)).eval(), Path("camera.safetensors")
    save_checkpoint(path, network, spec, transform, ("domain", "camera"), names, {})
    checkpoint = load_checkpoint(path)
    rows = [sample for sample in read_manifest(Path("manifest.csv")) if sample.split is Split.TRAIN]
    network = checkpoint.with_profiles(calibrate_checkpoint(checkpoint, rows, prior=8)).network
    save_checkpoint(path, network, spec, transform, ("domain", "camera"), names, {"about": "random but seeded"})


def make_run() -> None:
    """A finished run and, packed, its state after the first of two epochs, from which it was finished."""

    class Stopped(BaseException):
        pass

    def stop(_report: object) -> None:
        raise Stopped

    with contextlib.suppress(Stopped):
        train(load_config(Path("domain.toml")), RUN, on_epoch=stop)
    path = RUN / "state.pt"
    state: dict[str, Any] = torch.load(path, weights_only=True)
    for tensor in state["learner"].values():
        if isinstance(tensor, torch.Tensor) and tensor.ndim > 1 and tensor.dtype == torch.float32:
            tensor.copy_(tensor.half())
    for moments in state["optimizer"]["state"].values():
        moments["exp_avg"].zero_()
        moments["exp_avg_sq"].zero_()
    torch.save(state, path)
    content = path.read_bytes()
    run("train", "domain.toml", "--out", RUN)
    path.unlink()
    path.with_suffix(".pt.xz").write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))


def make_film() -> None:
    """A folder of frames with two people, and what ``reid ingest`` left of it."""
    Path("film").mkdir()
    for number in range(8, 14, 2):
        Image.fromarray(picture(TWO, number)).save(f"film/{number:02d}.jpg", quality=60)
    run(*INGEST, "--out", "ingest")


def flat(path: str) -> dict[str, Any]:
    """The values of an experiment by dotted name."""
    table = load_config(Path(path)).model_dump(mode="json")
    return {f"{section}.{key}": value for section, leaves in table.items() for key, value in leaves.items()}


def tables(path: str) -> dict[str, Any]:
    """The sum and the sum of squares of all numbers of a safetensors file."""
    values = [table.astype(np.float64) for table in load_file(path).values()]
    return {"sum": sum(float(v.sum()) for v in values), "squares": sum(float((v**2).sum()) for v in values)}


def search(*changes: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run("search", ASKED, "--gallery", "gallery", "--json", *changes))
    return found


def vectors(path: str) -> list[list[float]]:
    """Rows 0, 20 and the last one of an embeddings file, first 12 numbers of each."""
    return [[float(number) for number in load_file(path)["vectors"][row, :12]] for row in (0, 20, -1)]


def mixed(samples: Sequence[Sample]) -> list[float]:
    """mAP, mINP and rank-1 of the people in the embeddings file, infrared and visible in one gallery."""
    found = load_file("embeddings.safetensors")["vectors"]
    queries, gallery = (
        [row for row, s in enumerate(samples) if (s.domain, s.split) == ("person", split)]
        for split in (Split.QUERY, Split.GALLERY)
    )
    metrics = market_metrics(
        found[queries],
        found[gallery],
        query_identities=[samples[row].identity for row in queries],
        gallery_identities=[samples[row].identity for row in gallery],
        query_cameras=[samples[row].camera for row in queries],
        gallery_cameras=[samples[row].camera for row in gallery],
    )
    return [metrics.mAP, metrics.mINP, metrics.rank(1)]


def make_all() -> dict[str, Any]:
    """Every file, in the working directory; returns what ``expected.json`` holds."""
    make_data()
    texts = {"every-key": EVERY_KEY, "domain": DOMAIN, "comparison": COMPARISON, "protocol": PROTOCOL}
    for name, text in texts.items():
        Path(f"{name}.toml").write_text(text.lstrip(), encoding="utf-8")
    make_weights()
    only = [word for name in ("person/a1", "person/a5", "vehicle/a2") for word in ("--only", name)]
    calibrated = run(
        "calibrate", *EMBED, "--split", "gallery", "--prior", 4, "--prior-from", "network", *only,
        "--out", "profiles.safetensors",
    )  # fmt: skip
    printed: dict[str, str] = {
        "calibrate": calibrated,
        "embed": run("embed", *EMBED, "--out", "embeddings.safetensors"),
        "center": run("cameras", "center", "embeddings.safetensors", "--out", "centered.safetensors"),
        "embed --profiles": run("embed", *PROFILED, "--out", "profiled.safetensors"),
        "index build": run("index", "build", *PROFILED, "--unseen-camera", "mixture", "--out", "gallery"),
    }
    evaluations: dict[str, tuple[object, ...]] = {
        "scores.json": ("--data", "manifest.csv", "--rerank", 4, 2, 0.3, "--flip"),
        "rules.json": ("--data", "manifest.parquet", "--rule", "ignore=place", "--rule", "precision=trapezoid"),
        "protocol.json": ("--data", "protocol.toml"),
    }
    for name, words in evaluations.items():
        run("evaluate", *words, "--weights", "camera.safetensors", "--json", name)
    make_run()
    compared = json.loads(run("compare", "comparison.toml", "--out", "runs", "--only", "Domain BN", "--json"))
    make_film()
    Tiny().write(Path("tiny.onnx"))
    printed["embed tiny.onnx"] = run("embed", "--data", "manifest.csv", "--weights", "tiny.onnx", "--out", "tiny.st")
    weights: Callable[[str], Any] = lambda path: load_checkpoint(Path(path))  # noqa: E731
    names = {path: weights(path) for path in ("camera.safetensors", f"{RUN}/weights.safetensors")}
    samples = read_manifest(Path("manifest.csv"))
    expected = {
        "version": reid.__version__,
        "rows": [
            [str(s.path), s.identity, s.camera, str(s.modality), s.domain, str(s.split), str(s.time), s.track]
            for s in samples
        ],
        "experiments": {p: flat(p) for p in ("every-key.toml", "domain.toml", f"{RUN}/experiment.toml")},
        "fingerprints": {path: found.fingerprint for path, found in names.items()},
        "domains": {path: list(found.names) for path, found in names.items()},
        "printed": printed,
        "profiles": tables("profiles.safetensors"),
        "vectors": {
            name: vectors(f"{name}.safetensors") for name in ("embeddings", "centered", "profiled")
        } | {"tiny": vectors("tiny.st")},
        "searches": {
            "known": search("--camera", "a5", "--modality", "infrared", "--k", 5, "--cross-camera"),
            "unseen": search("--camera", "never-seen", "--k", 20),
        },
        "compared": compared,
        "mixed": mixed(samples),
        "evaluations": {name: [str(word) for word in words] for name, words in evaluations.items()},
        "asked": ASKED,
        "ingest": [str(word) for word in INGEST],
    }  # fmt: skip
    for file in ("profiled.safetensors", "tiny.st", f"{RUN}/.lock", "ingest/.manifest.csv.lock"):
        Path(file).unlink()
    return expected


if __name__ == "__main__":
    if reid.__version__ != "0.1.0":
        sys.exit(f"these are files of version 0.1.0, this is {reid.__version__}")
    torch.set_num_threads(1)
    out = Path(sys.argv[1]) / "version_0_1_0"  # results call a manifest by the name of its folder
    out.mkdir(parents=True)
    os.chdir(out)
    found = make_all()
    Path("expected.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
