"""Trainings in two processes are compared with one process: the same losses to rounding, and clean ends.

The wrong variants that these tests catch: batches that differ by process, losses over a process's own pairs only,
statistics of a process's own rows, gradients that are averaged twice, and a process that waits for one that ended.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import process_group
from helpers.training_worker import first_batches
from reid.config import load_config
from reid.models.checkpoint import load_checkpoint
from reid.training.processes import ONE_PROCESS
from reid.training.training_run import train

IDENTITIES = 5  # which two processes cannot share evenly
TIMES = ("seconds", "images_per_second")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, random, rows = tmp_path_factory.mktemp("data"), np.random.default_rng(0), ["path,identity,camera,split"]
    for identity in range(IDENTITIES + 3):
        pattern = np.kron(random.integers(0, 255, (4, 2, 3)), np.ones((8, 8, 1)))
        for camera in ("a1", "a2"):
            for shot in range(2):
                name = f"{identity}_{camera}_{shot}.png"
                pixels = np.clip(pattern + random.normal(0, 15, (32, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / name)
                rows.append(f"{name},{identity},{camera},train")
    path = root / "manifest.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def write_experiment(folder: Path, manifest: Path, norm: str, epochs: int = 2) -> Path:
    path = folder / "tiny.toml"
    path.write_text(
        f'[data]\nmanifests = ["{manifest.as_posix()}"]\nsize = [64, 32]\nheld_out = 0.3\n'
        f'[network]\nbackbone = "resnet18_x0_375"\n{norm}\n'
        f"[train]\nepochs = {epochs}\nidentities_per_batch = {IDENTITIES}\nimages_per_identity = 4\nvisits = 2\n"
        "threads = 1\nlearning_rate = 1e-4\nwarmup_epochs = 1\ntriplet_start = 0\ntriplet_ramp = 0\n"
        'contrast_weight = 1.0\nvalidate_every = 1\nkeep = "best"\n',
        encoding="utf-8",
    )
    return path


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


NORMS = {"camera": '[norm]\naxis = "camera"', "plain": ""}
WORKER = Path(process_group.ROOT) / "tests" / "helpers" / "training_worker.py"


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_and_losses_are_those_of_the_whole_batch(manifest: Path, tmp_path: Path, norm: str) -> None:
    file = write_experiment(tmp_path, manifest, NORMS[norm])
    whole = first_batches(load_config(file), ONE_PROCESS)
    ends = process_group.finish(process_group.start([file, tmp_path], 2, tmp_path, program=[WORKER]))
    assert [code for code, _, _ in ends] == [0, 0], ends
    for rank in range(2):
        part = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        print(part["losses"], whole["losses"])
        for name in ("gradients", "buffers"):
            assert part[name].keys() == whole[name].keys()
            for key, value in whole[name].items():
                if not torch.allclose(part[name][key], value, rtol=1e-3, atol=1e-3 * float(value.abs().max())):
                    print(name, key, (part[name][key] - value).abs().max(), value.abs().max())
        assert part["losses"] == pytest.approx(whole["losses"], rel=1e-3)


def test_the_losses_of_a_run_are_those_of_one_process(manifest: Path, tmp_path: Path) -> None:
    file = write_experiment(tmp_path, manifest, NORMS["camera"])
    one = train(load_config(file), tmp_path / "one")
    running = process_group.start(["train", file, "--out", tmp_path / "two"], 2, tmp_path)
    (first, second) = process_group.finish(running)
    assert (first[0], second[0]) == (0, 0), (first, second)
    assert first[1].splitlines() == [str(tmp_path / "two" / "weights.safetensors")]
    assert second[1] == ""
    assert not [line for line in second[2] if "held out" in line]
    found, expected = metrics(tmp_path / "two"), metrics(tmp_path / "one")
    assert len(found) == len(expected) == 2
    for line, wanted in zip(found, expected, strict=True):
        losses = [key for key in wanted if "loss" in key or "rate" in key]
        assert [line[key] for key in losses] == pytest.approx([wanted[key] for key in losses], rel=2e-3)
        assert line["held_out_mAP"] == pytest.approx(wanted["held_out_mAP"], abs=0.05)
    assert load_checkpoint(tmp_path / "two" / "weights.safetensors").domains == load_checkpoint(one).domains


def test_a_killed_process_ends_the_other_with_one_line_and_the_run_continues(manifest: Path, tmp_path: Path) -> None:
    file = write_experiment(tmp_path, manifest, "", epochs=300)
    out = tmp_path / "run"
    running = process_group.start(["train", file, "--out", out], 2, tmp_path)
    while not (out / "metrics.jsonl").exists() and running[0].poll() is None:
        time.sleep(0.1)
    running[1].kill()
    (first, _) = process_group.finish(running)
    assert first[0] == 1, first
    errors = [line for line in first[2] if line.startswith("error: ")]
    assert len(errors) == 1
    assert "processes ended" in errors[0]
    assert not [line for line in first[2] if "Traceback" in line]
    done = len(metrics(out))
    assert 1 <= done < 300
    assert not (out / "weights.safetensors").exists()
    again = load_config(file, [f"train.epochs={300}"])
    epochs: list[int] = []

    def stop(report: object) -> None:
        epochs.append(report.epoch)  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(again, out, on_epoch=stop)
    assert epochs == [done + 1]


def test_an_error_of_all_processes_is_told_once(manifest: Path, tmp_path: Path) -> None:
    file = write_experiment(tmp_path, manifest, '[norm]\nsystem = "dail"')
    found = process_group.finish(process_group.start(["train", file, "--out", tmp_path / "run"], 2, tmp_path))
    assert [code for code, _, _ in found] == [1, 1]
    assert len([line for _, _, lines in found for line in lines if line.startswith("error: ")]) == 1
