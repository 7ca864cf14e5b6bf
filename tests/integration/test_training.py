"""Whole trainings on tiny data: what they save, and that interruptions change no bit of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from reid.cli import main
from reid.config import Experiment, load_config, parse_config
from reid.data.loading import domain_indices, load_crops
from reid.data.manifest import read_manifest
from reid.errors import ConfigError, DataError
from reid.models.checkpoint import load_checkpoint
from reid.models.weights.tensor_tables import read_table
from reid.norm import DomainBatchNorm, Given, system_of
from reid.training.training_run import train

ROOT = Path(__file__).parents[2]
CAMERAS = (("a1", "visible"), ("a2", "visible"), ("a5", "infrared"))
IDENTITIES = 4
EPOCHS = 30  # of a run that is to be killed: enough that the signal arrives before it ends
SIZE = (32, 16)


class Interrupted(BaseException):
    """Stands for whatever may stop a process."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """People and vehicles: a coarse colour pattern each, seen by two visible and one infrared camera."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    rows = ["path,identity,camera,modality,domain,split"]
    for domain in ("person", "vehicle"):
        for identity in range(IDENTITIES):
            pattern = np.kron(rng.integers(0, 255, (4, 2, 3)), np.ones((8, 8, 1)))
            for camera, modality in CAMERAS:
                for shot in range(3):
                    pixels = np.clip(pattern + rng.normal(0, 15, (*SIZE, 3)), 0, 255).astype(np.uint8)
                    pixels = pixels[:, :, :1].repeat(3, 2) if modality == "infrared" else pixels
                    name = f"{domain}_{identity}_{camera}_{shot}.png"
                    Image.fromarray(pixels).save(root / name)
                    rows.append(f"{name},{identity},{camera},{modality},{domain},train")
    path = root / "manifest.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def experiment(manifest: Path, kind: str = "camera", **recipe: Any) -> Experiment:
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
        "norm": {"axis": kind},
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
    """The metrics without what depends on the clock."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines(out)]


def content(path: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """Metadata and the bytes of every tensor (safetensors writes its metadata in any order)."""
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


def test_after_bfloat16_the_kernels_take_half_the_room_and_the_same_values(manifest: Path, tmp_path: Path) -> None:
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
    epochs: list[int] = []
    train(experiment(manifest), tmp_path, on_epoch=lambda report: epochs.append(report.epoch))
    assert epochs == list(range(after + 1, 4))
    assert numbers(tmp_path) == numbers(finished)
    assert content(tmp_path / "weights.safetensors") == content(finished / "weights.safetensors")


def test_bfloat16_and_a_plain_network_resume_to_the_same_bits(manifest: Path, tmp_path: Path) -> None:
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
        ({"system": "dail"}, {}, 'unknown norm system "dail"; did you mean "dial"'),
        ({"system": "dial"}, {}, '"dial" needs at least 2 domains, got 0'),
        ({"system": "wbn", "axis": "camera"}, {}, "guesses its domains"),
    ],
)
def test_systems_that_do_not_fit_are_one_line(
    manifest: Path, tmp_path: Path, norm: dict[str, str], recipe: dict[str, float], line: str
) -> None:
    base = experiment(manifest, "batch", **recipe)
    with pytest.raises(ConfigError, match=line):
        train(base.model_copy(update={"norm": base.norm.model_copy(update=norm)}), tmp_path)


def test_a_finished_run_is_left_alone(manifest: Path, finished: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in finished.iterdir()}
    epochs: list[Any] = []
    assert train(experiment(manifest), finished, on_epoch=epochs.append) == finished / "weights.safetensors"
    assert train(load_config(finished / "experiment.toml"), finished, on_epoch=epochs.append)
    assert epochs == []
    assert {path.name: path.stat().st_mtime_ns for path in finished.iterdir()} == before


def test_starting_over_gives_the_same_bits_and_another_seed_others(
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
    with pytest.raises(ConfigError, match=r"another experiment \(train\.epochs: 3, now 4\)"):
        train(experiment(copy, epochs=4), tmp_path)
    copy.write_text(rows.replace("person_0_a1_0.png,0,", "person_0_a1_0.png,1,"), encoding="utf-8")
    with pytest.raises(DataError, match="training rows are not those this run began with"):
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


@pytest.fixture(scope="module")
def file(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experiments") / "tiny.toml"
    path.write_text(
        f'[data]\nmanifests = ["{manifest.as_posix()}"]\nsize = [32, 16]\n[norm]\naxis = "camera"\n'
        f"[train]\nepochs = {EPOCHS}\nidentities_per_batch = {IDENTITIES}\nvisits = 1\nthreads = 1\n",
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def whole(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(load_config(file), tmp_path_factory.mktemp("whole"))


def script(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / "train.py"), *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_continues_to_the_same_bits(
    file: Path, whole: Path, tmp_path: Path, how: signal.Signals
) -> None:
    process = subprocess.Popen(
        script(file, "--out", tmp_path),
        stderr=subprocess.PIPE,
        env=environment(),
        text=True,
        # a shell starts background jobs with interrupts ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 (sets a signal, no more)
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert 1 <= len(lines(tmp_path)) < EPOCHS
    assert not (tmp_path / "weights.safetensors").exists()
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert errors.splitlines()[-1].startswith("interrupted; the same command continues")
        assert "Traceback" not in errors
    assert content(train(load_config(file), tmp_path)) == content(whole)


def test_the_script_trains_and_says_where(file: Path, tmp_path: Path) -> None:
    command = script(file, "--set", "train.epochs=1", "--set", "network.pooling=gem")
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path, check=True)
    assert done.stdout.splitlines() == [str(Path("runs/tiny/weights.safetensors"))]
    assert "training: 100%" in done.stderr
    assert load_checkpoint(tmp_path / "runs/tiny/weights.safetensors").spec.pooling == "gem"


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("train.epoch=3", 'unknown key "train.epoch"; did you mean "train.epochs"?'),
        ("network.backbone=osnet", 'unknown backbone "osnet"'),
        ("data.manifests=['none.csv']", "none.csv"),
        ("train.identities_per_batch=50", "lower identities_per_batch"),
    ],
)
def test_the_command_refuses_in_one_line(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], item: str, expected: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", str(file), "--out", str(tmp_path / "run"), "--set", item])
    output = capsys.readouterr()
    assert caught.value.code == 1
    assert output.out == ""
    last = output.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert expected in last


def test_wrong_usage_is_exit_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: Missing argument 'experiment'; see reid train --help\n"
