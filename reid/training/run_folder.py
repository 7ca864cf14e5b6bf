"""The folder of a run: its resolved experiment, its metrics, its last checkpoint and its weights.

Every file is replaced as a whole, so a run that is killed at any moment leaves the state after its last complete epoch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import pickle
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reid.config import Experiment, differences, load_config, to_toml
from reid.errors import ConfigError, WeightsError
from reid.files import locked, remove_partial_files, require_regular_file, write_whole
from reid.models.checkpoint import load_checkpoint
from reid.records import Sample
from reid.structured_text import parse_json, shorten

_DAMAGE = (
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, which lie in the folder ``path``."""

    path: Path

    @property
    def experiment(self) -> Path:
        """The resolved experiment; training from this file repeats the run."""
        return self.path / "experiment.toml"

    @property
    def metrics(self) -> Path:
        """One JSON object for each epoch, on a line of its own: ``EpochReport.to_json``."""
        return self.path / "metrics.jsonl"

    @property
    def state(self) -> Path:
        """The checkpoint of the last complete epoch."""
        return self.path / "state.pt"

    @property
    def weights(self) -> Path:
        """The trained network with the statistics of its domains; the file exists once the run is finished."""
        return self.path / "weights.safetensors"

    @property
    def curves(self) -> Path:
        """A drawing of the metrics, as an SVG file."""
        return self.path / "curves.svg"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Reserve the folder for one training while the ``with`` block runs; a new folder is made.

        Raises:
            ConfigError: Another training is at work in the folder, or it cannot be made.
        """
        new = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot make the run folder: {error.strerror}") from error
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path, wait=False))
            except BlockingIOError:
                raise ConfigError(
                    f"{self.path}: another training is at work in it; wait for it, or choose another folder with --out"
                ) from None
            remove_partial_files(self.path)
            try:
                yield
            finally:
                for folder in new:  # which this training made and did not use
                    if any(folder.iterdir()):
                        break
                    folder.rmdir()

    def open(self, experiment: Experiment) -> None:
        """Create the folder for an experiment, or check that it holds a run of this experiment.

        A run of another experiment that has not finished an epoch, because it failed before, makes room.

        Raises:
            ConfigError: The folder holds a run of another experiment, or it cannot be made.
            DataError: A pipe, socket or device has the name of a file of the run.
        """
        for file in (self.state, self.metrics, self.weights, self.curves):
            require_regular_file(file, "file of a run")
        if self.experiment.exists():
            changed = differences(load_config(self.experiment), experiment)
            if changed and not self.has_results and self._wrote_experiment():
                self._write_experiment(experiment)
            elif changed:
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
        self._write_experiment(experiment)

    @property
    def has_results(self) -> bool:
        """Whether a run has finished an epoch in this folder."""
        return any(path.exists() for path in (self.state, self.metrics, self.weights))

    def _wrote_experiment(self) -> bool:
        """Whether the experiment is exactly as a run writes it, so that nobody's own file is replaced."""
        return self.experiment.read_text(encoding="utf-8") == to_toml(load_config(self.experiment))

    def _write_experiment(self, experiment: Experiment) -> None:
        replace_file(self.experiment, lambda path: path.write_text(to_toml(experiment), encoding="utf-8"))

    def check_weights(self) -> None:
        """Check that the weights of a finished run can be read.

        Raises:
            WeightsError: The file is damaged.
        """
        try:
            load_checkpoint(self.weights)
        except WeightsError as error:
            way = "from the last epoch, without training" if self.state.exists() else "by training from the start"
            raise WeightsError(
                f"{self.weights}: the run is finished, but this file is damaged or cut off; delete it, and the same"
                f" command makes it again {way}"
            ) from error

    def clear(self) -> None:
        """Remove the files that a run writes, and no others."""
        for file in (self.weights, self.state, self.metrics, self.curves, self.experiment):
            file.unlink(missing_ok=True)

    def save_state(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint; ``state`` holds tensors and plain values."""
        replace_file(self.state, lambda path: torch.save(state, path))

    def load_state(self) -> dict[str, Any] | None:
        """Load the last checkpoint, or None if there is none yet.

        Raises:
            WeightsError: The checkpoint is damaged.
        """
        if not self.state.exists():
            return None
        try:
            with zipfile.ZipFile(self.state) as archive:  # torch.load does not look at the checksums
                if archive.testzip() is not None:
                    raise zipfile.BadZipFile
            state: dict[str, Any] = torch.load(self.state, map_location="cpu", weights_only=True)
        except (*_DAMAGE, OSError) as error:
            raise WeightsError(
                f"{self.state}: the checkpoint cannot be read ({type(error).__name__}); delete it to start over"
            ) from error
        return state

    def save_metrics(self, history: Sequence[dict[str, float]]) -> None:
        """Write the metrics of all epochs so far, so that the file never disagrees with the checkpoint."""
        text = "".join(json.dumps(line) + "\n" for line in history)
        replace_file(self.metrics, lambda path: path.write_text(text, encoding="utf-8"))

    def save_curves(self, drawing: str) -> None:
        """Replace the drawing of the metrics."""
        replace_file(self.curves, lambda path: path.write_text(drawing, encoding="utf-8"))

    def read_metrics(self) -> list[dict[str, float]]:
        """Read the metrics of a finished run, and compare them with those that its checkpoint keeps.

        The checkpoint has a checksum, so a damaged or changed number is noticed where there is a checkpoint.  Missing
        metrics are written again from the checkpoint.

        Raises:
            WeightsError: The metrics or the checkpoint are damaged.
        """
        state = self.load_state()
        kept = None if state is None else list(state["history"])
        if kept is not None and not self.metrics.exists():
            self.save_metrics(kept)
        try:
            text = self.metrics.read_bytes().decode("utf-8")
            found = [_numbers(parse_json(line)) for line in text.splitlines()]
            if kept is not None and found != [_numbers(line) for line in kept]:
                raise ValueError("not what the training wrote")
        except (OSError, ValueError) as error:
            way = "; delete it, and the same command writes it again" if kept is not None else ""
            raise WeightsError(f"{self.metrics}: damaged or changed ({error}){way}") from error
        return found


def _numbers(line: object) -> dict[str, float]:
    """Check that a line of the metrics gives numbers by name; ValueError otherwise."""
    if not isinstance(line, dict) or any(type(value) not in (int, float) for value in line.values()):
        raise ValueError(f"expected numbers by name, got {shorten(line)}")
    return line


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file of a run as a whole or not at all.

    Raises:
        OSError: The file cannot be written; also where torch raises a RuntimeError because the disk is full.
    """
    try:
        write_whole(path, write, private=False)
    except RuntimeError as error:
        raise OSError(errno.EIO, f"cannot be written, the disk may be full ({error})", str(path)) from error


def samples_digest(samples: Sequence[Sample]) -> str:
    """Hash the rows of a training, in their order; a resumed run must have the same ones.

    Only the file name of a path counts, so a data set may move to another folder.
    """
    digest = hashlib.sha256()
    for sample in samples:
        row = (sample.path.name, sample.identity, sample.camera, sample.modality.value, sample.category)
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()[:16]
