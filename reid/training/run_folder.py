"""The folder of a run: its resolved experiment, its metrics, its last checkpoint, its weights.

Every file is replaced as a whole, so a run that is killed at any moment leaves the state after its
last complete epoch.  Nothing here knows what the tensors in a checkpoint mean.
"""

from __future__ import annotations

import errno
import hashlib
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reid.config import Experiment, differences, load_config, to_toml
from reid.errors import ConfigError, WeightsError
from reid.models.checkpoint import load_checkpoint
from reid.records import Sample


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def experiment(self) -> Path:
        """The resolved experiment; training from this file restarts the run."""
        return self.path / "experiment.toml"

    @property
    def metrics(self) -> Path:
        """One JSON object an epoch, a line each; the fields of ``EpochReport``."""
        return self.path / "metrics.jsonl"

    @property
    def state(self) -> Path:
        """The checkpoint of the last complete epoch."""
        return self.path / "state.pt"

    @property
    def weights(self) -> Path:
        """The trained network with the statistics of its domains; there once the run is finished."""
        return self.path / "weights.safetensors"

    def open(self, experiment: Experiment) -> None:
        """Create the folder for ``experiment``; ConfigError when it belongs to another one."""
        if self.experiment.exists():
            changed = differences(load_config(self.experiment), experiment)
            if changed:
                more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
                raise ConfigError(
                    f"{self.path} holds a run of another experiment ({changed[0]}{more});"
                    " choose another folder with --out, or delete this one"
                )
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot make the run folder: {error.strerror}") from error
        replace_file(self.experiment, lambda path: path.write_text(to_toml(experiment), encoding="utf-8"))

    def check_weights(self) -> None:
        """WeightsError where those of a finished run were damaged since."""
        try:
            load_checkpoint(self.weights)
        except WeightsError as error:
            way = "from the last epoch, without training" if self.state.exists() else "by training from the start"
            raise WeightsError(
                f"{self.weights}: the run is finished, but this file is damaged or cut off; delete it, and the same"
                f" command makes it again {way}"
            ) from error

    def clear(self) -> None:
        """Forget the run: remove the files that a run writes, and no others."""
        for file in (self.weights, self.state, self.metrics, self.experiment):
            file.unlink(missing_ok=True)

    def save_state(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint; ``state`` holds tensors and plain values."""
        replace_file(self.state, lambda path: torch.save(state, path))

    def load_state(self) -> dict[str, Any] | None:
        """The last checkpoint, or None when there is none yet; WeightsError when it is damaged."""
        if not self.state.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.state, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise WeightsError(
                f"{self.state}: the checkpoint cannot be read ({type(error).__name__}); delete it to start over"
            ) from error
        return state

    def save_metrics(self, history: Sequence[dict[str, float]]) -> None:
        """Write all epochs so far, so that the file never disagrees with the checkpoint."""
        text = "".join(json.dumps(line) + "\n" for line in history)
        replace_file(self.metrics, lambda path: path.write_text(text, encoding="utf-8"))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file beside ``path`` and move it there in one step."""
    beside = path.with_name(f".{path.name}.part")
    try:
        write(beside)
        beside.replace(path)
    except RuntimeError as error:  # how torch tells of a full disk
        raise OSError(errno.EIO, f"cannot be written, the disk may be full ({error})", str(path)) from error
    finally:
        beside.unlink(missing_ok=True)


def samples_digest(samples: Sequence[Sample]) -> str:
    """Short hash of the rows trained on, in order: a resumed run must see the same ones.

    Of a path only its name counts, so a data set may move between folders.
    """
    digest = hashlib.sha256()
    for sample in samples:
        row = (sample.path.name, sample.identity, sample.camera, sample.modality.value, sample.category)
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()[:16]
