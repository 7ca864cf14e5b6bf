"""The folder of a run: it holds one experiment, and its files are replaced as a whole."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from reid.config import Experiment, load_config, parse_config
from reid.errors import ConfigError, DataError, WeightsError
from reid.training.run_folder import RunFolder, replace_file

ONE = parse_config({"data": {"manifests": ["m.csv"]}}, "one")


def other() -> Experiment:
    return parse_config({"data": {"manifests": ["m.csv"]}, "train": {"epochs": 3, "seed": 9}}, "other")


def test_the_resolved_experiment_is_saved_and_the_same_one_may_come_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "a")
    folder.open(ONE)
    folder.open(ONE)
    assert load_config(folder.experiment) == ONE


def test_another_experiment_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.open(ONE)
    folder.save_metrics([{"epoch": 1, "loss": 0.5}])
    with pytest.raises(ConfigError, match=r"train\.seed: 0, now 9 and 1 more") as caught:
        folder.open(other())
    assert "--out" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert load_config(folder.experiment) == ONE


def test_a_folder_without_a_finished_epoch_makes_room_for_another_experiment(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.open(ONE)
    folder.open(other())
    assert load_config(folder.experiment) == other()


@pytest.mark.parametrize("name", ["state.pt", "metrics.jsonl", "weights.safetensors"])
def test_a_folder_with_any_result_makes_no_room(tmp_path: Path, name: str) -> None:
    folder = RunFolder(tmp_path)
    folder.open(ONE)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConfigError, match=r"train\.seed"):
        folder.open(other())


def test_an_experiment_that_somebody_wrote_by_hand_is_never_replaced(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    text = '# my own\n[data]\nmanifests = ["m.csv"]\n'
    folder.experiment.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"train\.seed"):
        folder.open(other())
    assert folder.experiment.read_text(encoding="utf-8") == text


def test_a_folder_that_cannot_be_made_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"file.run: "):
        RunFolder(tmp_path / "file" / "run").open(ONE)


def test_clear_removes_the_files_of_the_run_and_no_others(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.open(ONE)
    folder.save_state({"history": []})
    folder.save_metrics([])
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    folder.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_state_and_metrics_are_read_as_they_were_saved(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.load_state() is None
    folder.save_state({"weights": torch.arange(3.0), "history": [{"epoch": 1}]})
    state = folder.load_state()
    assert state is not None
    assert torch.equal(state["weights"], torch.arange(3.0))
    folder.save_metrics([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}])
    lines = folder.metrics.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [0.5, 0.25]


def test_metrics_that_are_not_those_of_the_checkpoint_are_damaged(tmp_path: Path) -> None:
    folder, history = RunFolder(tmp_path), [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]
    folder.save_metrics(history)
    assert folder.read_metrics() == history, "of a run that keeps no checkpoint"
    folder.save_state({"history": history})
    assert folder.read_metrics() == history
    whole = folder.metrics.read_bytes()
    for changed in (whole.replace(b"0.25", b"0.35"), whole[:-20], whole.replace(b'"loss"', b'"lost"'), b"\xff"):
        folder.metrics.write_bytes(changed)
        with pytest.raises(WeightsError, match=r"metrics\.jsonl"):
            folder.read_metrics()
    folder.metrics.unlink()
    assert folder.read_metrics() == history
    assert folder.metrics.read_bytes() == whole
    folder.state.unlink()
    for damaged in ("[1]\n", '{"loss": "a"}\n', "[" * 5000 + "\n", '{"loss": 0.5'):
        folder.metrics.write_text(damaged)
        with pytest.raises(WeightsError, match=r"metrics\.jsonl"):
            folder.read_metrics()


def test_a_damaged_checkpoint_is_an_error_with_its_path(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save_state({"weights": torch.zeros(1000)})
    folder.state.write_bytes(folder.state.read_bytes()[:500])
    with pytest.raises(WeightsError, match=r"state\.pt"):
        folder.load_state()


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old", encoding="utf-8")

    def fail(part: Path) -> None:
        part.write_text("half", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(path, fail)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_second_training_in_the_same_folder_is_refused_at_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "a")
    with folder.held():
        folder.save_state({"history": []})
        with pytest.raises(ConfigError, match="another training") as caught, RunFolder(folder.path).held():
            pass
        assert "\n" not in str(caught.value)
    with folder.held():
        assert folder.load_state() == {"history": []}


def test_a_training_that_writes_nothing_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError), RunFolder(tmp_path / "runs" / "a").held():
        raise WeightsError("no such file")
    assert not list(tmp_path.iterdir())


def test_a_flipped_bit_in_the_state_is_noticed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save_state({"weights": torch.arange(1000.0), "history": []})
    content = bytearray(folder.state.read_bytes())
    content[len(content) // 2] ^= 1
    folder.state.write_bytes(content)
    with pytest.raises(WeightsError, match=r"state\.pt"):
        folder.load_state()


@pytest.mark.parametrize("name", ["state.pt", "metrics.jsonl", "weights.safetensors"])
def test_a_pipe_with_the_name_of_a_file_of_a_run_is_an_error_and_no_wait(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=name):
        RunFolder(tmp_path).open(ONE)
    assert [path.name for path in tmp_path.iterdir()] == [name]
