"""A program that runs commands of ``reid`` in forks of itself and kills them at one of their steps on the disk.

It imports what the commands need once, so that a run takes a fraction of a second. Product code knows nothing of it:
the functions of ``os`` and of the libraries that write files are replaced in the fork only.

A step counts where its file lies in the folder of the run, so that what libraries do in the folder for temporary files
is no step.  Three parts of the program are replaced, because they would need minutes, a network or an end by hand: a
network is traced once for ``export``, ``weights get`` receives the file ``remote.pth``, and ``serve`` prepares its
galleries only.

Each line of stdin asks for one run, ``{"arguments": [...], "folder": "...", "step": n or null, "after": seconds or
null, "typed": "..."}``; each line of stdout is the answer, ``{"code": n, "steps": [...], "seconds": n, "err": "..."}``.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

KILLED = 137
ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT
STEPS = ("replace", "fsync", "unlink", "rmdir", "mkdir")


class Steps:
    """Counts the steps of a command and kills it before one of them."""

    def __init__(self, folder: Path, last: int | None, log: int):
        self._folder, self._last, self._log, self._count = folder.resolve(), last, log, 0

    def take(self, name: str) -> bool:
        """Count a step; true if the command is to be killed within it."""
        os.write(self._log, (name + "\n").encode())
        self._count += 1
        return self._last is not None and self._count > self._last

    def _is_inside(self, place: Any, folder: int | None) -> bool:
        """Tell whether a path, or what a descriptor stands for, lies in the folder of the run."""
        if isinstance(place, int):
            path = Path(f"/proc/self/fd/{place}").readlink()
        elif folder is not None:
            path = Path(f"/proc/self/fd/{folder}").readlink() / os.fsdecode(place)
        else:
            path = Path(os.fsdecode(place))
        return (path.parent.resolve() / path.name).is_relative_to(self._folder)

    def patch(self, owner: Any, name: str) -> None:
        """Make a function a step: the program is killed before it runs."""
        original: Callable[..., Any] = getattr(owner, name)

        def step(*arguments: Any, **options: Any) -> Any:
            if self._is_inside(arguments[1 if name == "replace" else 0], options.get("dir_fd")) and self.take(name):
                os._exit(KILLED)
            return original(*arguments, **options)

        setattr(owner, name, step)

    def patch_writer(self, owner: Any, name: str, position: int) -> None:
        """Make the writer of a library a step: the program is killed when half of the file is written."""
        original: Callable[..., Any] = getattr(owner, name)

        def step(*arguments: Any, **options: Any) -> Any:
            if not isinstance(arguments[position], str | os.PathLike):  # into memory
                return original(*arguments, **options)
            kill = self.take(name)
            path = Path(arguments[position])
            result = original(*arguments, **options)
            if kill:
                content = path.read_bytes()
                path.write_bytes(content[: len(content) // 2])
                if "serialize" in name:  # safetensors writes into a file of its own and renames it
                    path.rename(path.with_name(".tmpAbC123"))
                os._exit(KILLED)
            return result

        setattr(owner, name, step)


def patch_all(steps: Steps) -> None:
    """Replace what writes files."""
    import faiss
    import pyarrow.parquet
    import safetensors.numpy
    import safetensors.torch

    import reid.retrieval.segment_writing

    for name in STEPS:
        steps.patch(os, name)
    steps.patch_writer(pyarrow.parquet, "write_table", 1)
    steps.patch_writer(reid.retrieval.segment_writing, "write_vectors", 0)
    steps.patch_writer(safetensors.numpy, "serialize_file", 1)
    steps.patch_writer(safetensors.torch, "serialize_file", 1)
    steps.patch_writer(faiss, "write_index", 1)


def run_forked(
    arguments: list[str], folder: str, step: int | None, after: float | None = None, typed: str = ""
) -> dict[str, Any]:
    """Run a command in a fork and return its exit code, its steps, its seconds and what it wrote to stderr.

    It is killed at a step, or after some seconds, or not at all.
    """
    from reid.cli import main

    with tempfile.TemporaryFile() as log, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os.dup2(err.fileno(), 2)
            os.dup2(err.fileno(), 1)
            sys.stdin = io.StringIO(typed)
            os.chdir(folder)
            patch_all(Steps(Path(folder), step, log.fileno()))
            code = 0
            try:
                main(arguments)
            except SystemExit as end:
                code = int(end.code or 0)
            except Exception:  # noqa: BLE001 (a traceback is what the test looks for)
                traceback.print_exc()
                code = 70
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        start = time.monotonic()
        if after is not None:
            while time.monotonic() - start < after and os.waitid(os.P_PID, child, ENDED) is None:
                time.sleep(0.001)
            os.kill(child, signal.SIGKILL)  # it is not waited for yet, so the number is still its own
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        seconds = time.monotonic() - start
        log.seek(0)
        err.seek(0)
        steps, text = log.read().decode().split(), err.read().decode(errors="replace")
        return {"code": code, "steps": steps, "seconds": seconds, "err": text}


class Answer(io.BytesIO):
    """What a server of weights answers."""

    url = "https://weights.example/remote.pth"
    headers: ClassVar[dict[str, str]] = {}


def replace_slow_parts(traced: Path) -> None:
    """Replace what needs minutes, a network or an end by hand.

    Args:
        traced: File that keeps the graph of the first ``export``; all of them export the same network.
    """
    import reid.adaptation.site_adaptation
    import reid.app.server
    import reid.app.serving
    import reid.models.export
    import reid.models.weights.public_weights

    trace = reid.models.export.export_graph

    def trace_once(*arguments: Any) -> bytes:
        if not traced.exists():
            traced.write_bytes(trace(*arguments))
        return traced.read_bytes()

    reid.models.export.export_graph = trace_once
    reid.models.weights.public_weights.urlopen = lambda *_, **__: Answer(Path("remote.pth").read_bytes())
    reid.adaptation.site_adaptation.STEPS = 1
    reid.app.serving.gated_application = lambda *_: nullcontext()
    reid.app.server.serve = lambda *_: None


IMPORTED = (
    "cv2", "onnxscript", "pyarrow.compute", "scipy.sparse.csgraph", "sklearn.cluster", "torchvision",
    "reid.adaptation.site_adaptation", "reid.app.data_preparation", "reid.edge.distillation", "reid.evaluation",
    "reid.generation.restyle_training", "reid.retrieval.erasure", "reid.training.training_run",
)  # fmt: skip


def import_all() -> None:
    """Import what the commands import within a run, which takes longer than most runs."""
    import faiss
    import torch

    from reid.cli import all_commands

    for name in IMPORTED:
        importlib.import_module(name)
    all_commands()
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])  # the first optimizer imports the compiler of PyTorch
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    gc.collect()
    gc.freeze()  # forks share what no collection touches


def main() -> None:
    """Answer requests until stdin ends."""
    import_all()
    with tempfile.TemporaryDirectory() as kept:
        replace_slow_parts(Path(kept) / "traced.onnx")
        answer_all()


def answer_all() -> None:
    """Answer each line of stdin."""
    for line in sys.stdin:
        request = json.loads(line)
        answer = run_forked(**request)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
