"""``reid train`` and scripts/train.py as processes: signals, output and exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from reid.cli import main
from reid.config import load_config
from reid.models.checkpoint import load_checkpoint
from reid.training.training_run import train

ROOT = Path(__file__).parents[2]
IDENTITIES = 4
EPOCHS = 20  # of a run that is killed: enough that the signal arrives before it ends


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def content(path: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """Return the metadata and the bytes of every tensor; safetensors writes its metadata in any order."""
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key).numpy().tobytes() for key in file.keys()}  # noqa: SIM118
        return file.metadata(), tensors


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment on crops of four people in two cameras."""
    root, random, rows = tmp_path_factory.mktemp("data"), np.random.default_rng(0), ["path,identity,camera,split"]
    for identity in range(IDENTITIES):
        for camera in ("a1", "a2"):
            for shot in range(3):
                name = f"{identity}_{camera}_{shot}.png"
                pixels = random.integers(60 * identity, 60 * identity + 50, (32, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name)
                rows.append(f"{name},{identity},{camera},train")
    manifest = root / "manifest.csv"
    manifest.write_text("\n".join(rows) + "\n", encoding="utf-8")
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


def subprocess_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_continues_to_the_same_bits(
    file: Path, whole: Path, tmp_path: Path, how: signal.Signals
) -> None:
    process = subprocess.Popen(
        script(file, "--out", tmp_path),
        stderr=subprocess.PIPE,
        env=subprocess_environment(),
        text=True,
        # A shell starts background jobs with interrupts ignored, and children inherit this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 (it only sets a signal)
    )
    assert process.stderr is not None
    progress = ""
    while "epoch 1/" not in progress and (character := process.stderr.read(1)):
        progress += character
    process.send_signal(how)
    errors = process.stderr.read()
    process.wait()
    process.stderr.close()
    assert 1 <= len((tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) < EPOCHS
    assert not (tmp_path / "weights.safetensors").exists()
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert errors.splitlines()[-1].startswith("interrupted; the same command continues")
        assert "Traceback" not in errors
    assert content(train(load_config(file), tmp_path)) == content(whole)


def test_the_script_trains_and_prints_the_path_of_the_weights(file: Path, tmp_path: Path) -> None:
    command = script(file, "--set", "train.epochs=1", "--set", "network.pooling=gem")
    done = subprocess.run(
        command, capture_output=True, text=True, env=subprocess_environment(), cwd=tmp_path, check=True
    )
    assert done.stdout.splitlines() == [str(Path("runs/tiny/weights.safetensors"))]
    assert "training: 100%" in done.stderr
    assert load_checkpoint(tmp_path / "runs/tiny/weights.safetensors").spec.pooling == "gem"


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("train.epoch=3", '"train.epochs"'),
        ("network.backbone=osnet", '"osnet"'),
        ("data.manifests=['none.csv']", "none.csv"),
        ("train.identities_per_batch=50", "identities_per_batch"),
    ],
)
def test_the_command_refuses_a_wrong_setting_in_one_line(
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


def test_wrong_usage_has_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train"])
    assert caught.value.code == 2
    assert "'experiment'" in capsys.readouterr().err
