"""Write the metrics of a training for TensorBoard, which comes with the extra "tensorboard"."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from reid.errors import ConfigError
from reid.training.loop import EpochReport

MISSING = 'TensorBoard is not installed: pip install "reid-multidomain[tensorboard]"'


def tensorboard_log(folder: Path) -> Callable[[EpochReport], None]:
    """Make a function that writes the metrics of an epoch into a folder.

    Args:
        folder: The folder that ``tensorboard --logdir`` gets.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(f"--tensorboard: {MISSING}") from error
    writer: Any = SummaryWriter(str(folder))

    def write(report: EpochReport) -> None:
        for name, value in report.to_json().items():
            if name != "epoch":
                writer.add_scalar(f"train/{name}", value, report.epoch)
        writer.flush()

    return write
