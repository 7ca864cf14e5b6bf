"""Whole trainings on tiny data: what they save, and that an interruption does not change a bit of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from reid.config import Experiment, load_config, parse_config
from reid.data.loading import domain_indices, load_crops
from reid.data.manifest import read_manifest
from reid.errors import ConfigError, DataError
from reid.models.checkpoint import load_checkpoint
from reid.models.weights.tensor_tables import read_table
from reid.norm import DomainBatchNorm, Given, system_of
from reid.training.training_run import train

CAMERAS = (("a1", "visible"), ("a2", "visible"), ("a5", "infrared"))
IDENTITIES = 4
SIZE = (32, 16)


class Interrupted(BaseException):
    """Stands for anything that may stop a process."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make crops of people and vehicles in two visible cameras and an infrared one.

    Each identity has a coarse colour pattern of its own.
    """
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    rows = ["path,identity,camera,modality,domain,split"]
    for category in ("person", "vehicle"):
        for identity in range(IDENTITIES):
            pattern = np.kron(rng.integers(0, 255, (4, 2, 3)), np.ones((8, 8, 1)))
            for camera, modality in CAMERAS:
                for shot in range(3):
                    pixels = np.clip(pattern + rng.normal(0, 15, (*SIZE, 3)), 0, 255).astype(np.uint8)
                    pixels = pixels[:, :, :1].repeat(3, 2) if modality == "infrared" else pixels
                    name = f"{category}_{identity}_{camera}_{shot}.png"
                    Image.fromarray(pixels).save(root / name)
                    rows.append(f"{name},{identity},{camera},{modality},{category},train")
    path = root / "manifest.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def experiment(manifest: Path, axis: str = "camera", **recipe: Any) -> Experiment:
    settings = {
        "epochs": 3,
        "identities_per_batch": IDENTITIES,
        "images_per_identity": 6,
        "visits": 1,
        "warmup_epochs": 1,
        "triplet_start": 1,
        "triplet_ramp": 1,
        "threads": 1,
    }
    table = {
        "data": {"manifests": [str(manifest)], "size": SIZE},
        "norm": {"axis": axis},
        "train": {**settings, **recipe},
    }
    return parse_config(table, "test")


@pytest.fixture(scope="module")
def finished(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run of ``experiment(manifest)``."""
    out = tmp_path_factory.mktemp("run")
    assert train(experiment(manifest), out) == out / "weights.safetensors"
    return out


def lines(out: Path) -> list[dict[str, float]]:
    text = (out / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def numbers(out: Path) -> list[dict[str, float]]:
    """Return the metrics without the times."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines(out)]


def content(path: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """Return the metadata and the bytes of every tensor; safetensors writes its metadata in any order."""
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key).numpy().tobytes() for key in file.keys()}  # noqa: SIM118
        return file.metadata(), tensors


def test_a_run_saves_weights_metrics_and_its_experiment(manifest: Path, finished: Path) -> None:
    checkpoint = load_checkpoint(finished / "weights.safetensors")
    assert checkpoint.domain_fields == ("category", "camera")
    assert checkpoint.domains == tuple(f"{d}/{c}" for d in ("person", "vehicle") for c, _ in CAMERAS)
    assert (checkpoint.transform.height, checkpoint.transform.width) == SIZE
    assert checkpoint.spec.backbone == "osnet_x0_25"
    assert [line["epoch"] for line in lines(finished)] == [1, 2, 3]
    assert [line["triplet_weight"] for line in lines(finished)] == pytest.approx([0.0, 0.5, 1.0])
    assert all(line["images_per_second"] > 0 for line in lines(finished))
    saved = load_config(finished / "experiment.toml")
    assert saved.norm.domain_fields == ("category", "camera")
    assert saved.train == experiment(manifest).train


def test_after_bfloat16_kernels_are_saved_in_float16_without_a_change(manifest: Path, tmp_path: Path) -> None:
    path = train(experiment(manifest, epochs=1, precision="bfloat16"), tmp_path / "run")
    stored, _ = read_table(path)
    network = load_checkpoint(path).network.state_dict()
    kernels = [key for key, tensor in stored.items() if tensor.dtype == torch.float16]
    assert len(kernels) == sum(isinstance(tensor, torch.Tensor) and tensor.ndim == 4 for tensor in network.values())
    for key in kernels:
        assert network[key].dtype == torch.float32
        assert torch.equal(network[key], stored[key].float())


def test_the_statistics_of_a_domain_are_those_of_all_its_crops(manifest: Path, finished: Path) -> None:
    checkpoint = load_checkpoint(finished / "weights.safetensors")
    samples = read_manifest(manifest)
    images = checkpoint.transform.normalise(load_crops(samples, checkpoint.transform))
    labels = domain_indices(samples, checkpoint.domain_fields, checkpoint.domains)
    inputs: list[torch.Tensor] = []
    first = next(m for m in checkpoint.network.modules() if isinstance(m, DomainBatchNorm))
    first.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    with torch.no_grad():
        for domain in range(len(checkpoint.domains)):
            rows = labels == domain
            Given(checkpoint.network)(images[rows], domain)
            x = inputs.pop()  # (B, C, H, W)
            torch.testing.assert_close(first.running_mean[domain], x.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
            spread = x.var((0, 2, 3), correction=0)
            torch.testing.assert_close(first.running_var[domain], spread, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("after", [1, 2, 3])
def test_an_interrupted_run_continues_to_the_same_bits(
    manifest: Path, finished: Path, tmp_path: Path, after: int
) -> None:
    def interrupt(report: Any) -> None:
        if report.epoch == after:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(experiment(manifest), tmp_path, on_epoch=interrupt)
    assert len(lines(tmp_path)) == after
    assert not (tmp_path / "weights.safetensors").exists()
    (tmp_path / "curves.svg").unlink()  # as after an end between the checkpoint and the drawing
    epochs: list[int] = []
    train(experiment(manifest), tmp_path, on_epoch=lambda report: epochs.append(report.epoch))
    assert epochs == list(range(after + 1, 4))
    assert numbers(tmp_path) == numbers(finished)
    assert content(tmp_path / "weights.safetensors") == content(finished / "weights.safetensors")
    assert (tmp_path / "curves.svg").read_text() == (finished / "curves.svg").read_text()


def test_a_plain_network_in_bfloat16_resumes_to_the_same_bits(manifest: Path, tmp_path: Path) -> None:
    given = experiment(
        manifest, "batch", epochs=2, precision="bfloat16", positives="cross_modality", contrast_weight=1.0
    )

    def interrupt(_: Any) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        train(given, tmp_path / "a", on_epoch=interrupt)
    weights = [train(given, tmp_path / name) for name in ("a", "b")]
    assert content(weights[0]) == content(weights[1])
    checkpoint = load_checkpoint(weights[0])
    assert (checkpoint.domain_fields, checkpoint.domains) == ((), ())
    assert not any(isinstance(module, DomainBatchNorm) for module in checkpoint.network.modules())


@pytest.mark.parametrize(
    ("norm", "recipe"),
    [
        ({"system": "isw"}, {}),
        ({"system": "wbn"}, {}),
        ({"axis": "modality", "system": "dial"}, {}),
        ({"axis": "modality", "system": "dwt"}, {}),
        ({"axis": "camera", "system": "dson"}, {}),
        ({"axis": "modality", "system": "gated"}, {}),
    ],
    ids=["isw", "wbn", "dial", "dwt", "dson", "gated"],
)
def test_other_systems_train_resume_and_load(
    manifest: Path, tmp_path: Path, norm: dict[str, str], recipe: dict[str, float]
) -> None:
    base = experiment(manifest, "batch", epochs=2, **recipe)
    given = base.model_copy(update={"norm": base.norm.model_copy(update=norm)})

    def interrupt(_: Any) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        train(given, tmp_path / "a", on_epoch=interrupt)
    weights = [train(given, tmp_path / name) for name in ("a", "b")]
    assert content(weights[0]) == content(weights[1])
    checkpoint = load_checkpoint(weights[0])
    assert system_of(checkpoint.network) == norm["system"]
    labels = torch.zeros(4, dtype=torch.int64) if checkpoint.domain_fields else None
    assert checkpoint.embed(torch.randn(4, 3, *SIZE), labels).isfinite().all()


@pytest.mark.parametrize(
    ("norm", "recipe", "line"),
    [
        ({"system": "dail"}, {}, '"dail".*"dial"'),
        ({"system": "dial"}, {}, '"dial".*2 domains, got 0'),
        ({"system": "wbn", "axis": "camera"}, {}, '"wbn".*"batch"'),
    ],
)
def test_systems_that_do_not_fit_are_refused(
    manifest: Path, tmp_path: Path, norm: dict[str, str], recipe: dict[str, float], line: str
) -> None:
    base = experiment(manifest, "batch", **recipe)
    with pytest.raises(ConfigError, match=line):
        train(base.model_copy(update={"norm": base.norm.model_copy(update=norm)}), tmp_path)


def test_a_finished_run_is_left_as_it_is(manifest: Path, finished: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in finished.iterdir()}
    epochs: list[Any] = []
    assert train(experiment(manifest), finished, on_epoch=epochs.append) == finished / "weights.safetensors"
    assert train(load_config(finished / "experiment.toml"), finished, on_epoch=epochs.append)
    assert epochs == []
    assert {path.name: path.stat().st_mtime_ns for path in finished.iterdir()} == before


def test_a_run_that_starts_over_gives_the_same_bits_and_another_seed_others(
    manifest: Path, finished: Path, tmp_path: Path
) -> None:
    first = content(train(experiment(manifest, epochs=1), tmp_path))
    again = content(train(experiment(manifest), tmp_path, resume=False))
    assert again == content(finished / "weights.safetensors") != first
    other = load_checkpoint(train(experiment(manifest, seed=1), tmp_path, resume=False))
    assert other.fingerprint != load_checkpoint(finished / "weights.safetensors").fingerprint


def test_a_changed_experiment_or_changed_data_is_refused(manifest: Path, tmp_path: Path) -> None:
    def interrupt(_: Any) -> None:
        raise Interrupted

    copy = manifest.with_name("copy.csv")
    rows = manifest.read_text(encoding="utf-8")
    copy.write_text(rows, encoding="utf-8")
    with pytest.raises(Interrupted):
        train(experiment(copy), tmp_path, on_epoch=interrupt)
    with pytest.raises(ConfigError, match=r"train\.epochs: 3, now 4"):
        train(experiment(copy, epochs=4), tmp_path)
    copy.write_text(rows.replace("person_0_a1_0.png,0,", "person_0_a1_0.png,1,"), encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        train(experiment(copy), tmp_path)
    assert len(lines(tmp_path)) == 1


def test_training_leaves_torch_as_it_was(manifest: Path, tmp_path: Path) -> None:
    torch.set_num_threads(2)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(experiment(manifest, "modality", epochs=1), tmp_path)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == 2
