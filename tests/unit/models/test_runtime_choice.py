"""The runtime "auto" measures what is installed, and takes the fastest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from helpers.small_checkpoints import plain_network, save_network
from reid.errors import ConfigError, DataError
from reid.models import runtime_choice
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.models.execution import Execution
from reid.models.runners import describe_execution
from reid.models.runtime_choice import FEWEST, choose_runtime
from reid.records import Sample
from reid.retrieval.embed import embed

SPEEDS = {"eager": 100.0, "folded": 150.0, "onnx": 250.0, "openvino": 200.0}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return load_checkpoint(save_network(tmp_path, plain_network())).with_execution(Execution(runtime="auto"))


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        Image.new("RGB", (20, 40), (60 * number, 255 - 60 * number, 80)).save(path)
    return [Sample(paths[number % 4]) for number in range(FEWEST)]


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runtimes that are measured; a clock stands in for their speed."""
    names: list[str] = []

    def speed(candidate: Checkpoint, _batch: object) -> float:
        names.append(candidate.execution.runtime)
        return SPEEDS[candidate.execution.runtime]

    monkeypatch.setattr(runtime_choice, "_images_per_second", speed)
    return names


def test_few_samples_are_not_worth_a_measurement(
    checkpoint: Checkpoint, samples: list[Sample], tried: list[str]
) -> None:
    assert choose_runtime(checkpoint, samples[:-1]) is checkpoint
    assert tried == []


def test_an_export_is_tried_for_many_samples_only(
    checkpoint: Checkpoint, samples: list[Sample], tried: list[str]
) -> None:
    assert choose_runtime(checkpoint, samples).execution.runtime == "folded"
    assert tried == ["eager", "folded"]


def test_the_fastest_is_taken_once(checkpoint: Checkpoint, samples: list[Sample], tried: list[str]) -> None:
    chosen = choose_runtime(checkpoint, samples * 40)
    assert chosen.execution.runtime == max(SPEEDS, key=lambda name: SPEEDS[name])
    assert choose_runtime(checkpoint, samples * 40) is chosen
    assert sorted(tried) == sorted(SPEEDS)
    assert "auto chose onnx (images a second: eager 100, folded 150, onnx 250, openvino 200)" in describe_execution(
        checkpoint
    )


def test_a_missing_package_and_a_network_that_cannot_be_folded_leave_the_others(
    checkpoint: Checkpoint, samples: list[Sample], tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_for_folded(candidate: Checkpoint, _batch: object) -> float:
        tried.append(candidate.execution.runtime)
        if candidate.execution.runtime == "folded":
            raise ConfigError("cannot be traced")
        return SPEEDS[candidate.execution.runtime]

    monkeypatch.setattr(runtime_choice, "_images_per_second", fails_for_folded)
    monkeypatch.setattr(runtime_choice, "find_spec", lambda name: None if name == "onnxruntime" else True)
    assert choose_runtime(checkpoint, samples * 40).execution.runtime == "openvino"
    assert tried == ["eager", "folded", "openvino"]


def test_a_real_measurement_embeds_equally(checkpoint: Checkpoint, samples: list[Sample]) -> None:
    found = embed(checkpoint, samples)
    expected = embed(checkpoint.with_execution(Execution()), samples)
    assert torch.allclose(torch.from_numpy(found.vectors), torch.from_numpy(expected.vectors), atol=2e-5)
    assert found.fingerprint == expected.fingerprint


def test_nothing_to_measure_with(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        choose_runtime(checkpoint, [Sample(tmp_path / f"none-{number}.png") for number in range(FEWEST)])
