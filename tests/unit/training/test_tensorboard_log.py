"""Metrics for TensorBoard, which is not installed here: its writer is replaced."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from reid.errors import ConfigError
from reid.training.loop import EpochReport
from reid.training.tensorboard_log import tensorboard_log

REPORT = EpochReport(3, 2.5, {"identity": 2.5}, {"identity": 1.0}, 0.5, 1e-3, 1.0, 10.0, {"held_out_mAP": 0.25})


def test_every_metric_is_written_at_its_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, tuple[float, int]] = {}

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written[name] = (value, step)

        def flush(self) -> None:
            written["flushed"] = (1.0, 0)

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    tensorboard_log(tmp_path)(REPORT)
    assert written["train/loss"] == (2.5, 3)
    assert written["train/held_out_mAP"] == (0.25, 3)
    assert "train/epoch" not in written
    assert "flushed" in written


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"\[tensorboard\]"):
        tensorboard_log(tmp_path)
