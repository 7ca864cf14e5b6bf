"""Where and how a network runs: the device, the precision, the runtime, and what decodes its images.

An :class:`Execution` names them.  ``with executed_as(Execution("cuda")):`` sets it for every network that is loaded
inside, as the options of the commands do.  Nothing here imports PyTorch before a device is looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from reid.errors import ConfigError, unknown_name

AUTO = "auto"
DEVICE_KINDS = ("auto", "cpu", "cuda", "cuda:N", "mps")
PRECISIONS = ("float32", "bfloat16", "float16")
# What computes a network.  "eager" is PyTorch, layer by layer; "folded" is PyTorch with BatchNorm inside the
# convolutions; "onnx" and "openvino" hand the folded network to another program; "auto" measures and chooses.
RUNTIME_NAMES = ("eager", "folded", "onnx", "openvino", "auto")
# What decodes image files.  "simplejpeg" gives the pixels of "pillow"; "draft" lets Pillow decode a large JPEG at half
# or a quarter of its size, which changes pixels.
DECODERS = ("pillow", "simplejpeg", "draft")
ON_THE_CPU_ONLY = ("onnx", "openvino")
PRECISIONS_OF = {"onnx": ("float32",), "openvino": ("float32", "bfloat16")}  # of runtimes that have not all

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?")


@dataclass(frozen=True)
class Execution:
    """How a network runs.

    Args:
        device: "cpu", "cuda", "cuda:N", "mps", or "auto" for the best there is.
        precision: One of :data:`PRECISIONS`, in which convolutions and products are computed.
        runtime: One of :data:`RUNTIME_NAMES`.
        decoder: One of :data:`DECODERS`.

    Raises:
        ConfigError: A value is unknown, or two of them do not go together.

    Example:
        >>> Execution(precision="bfloat16").fingerprint_parts()
        {'precision': 'bfloat16'}
        >>> Execution("tpu")
        Traceback (most recent call last):
        reid.errors.ConfigError: unknown device "tpu"; did you mean "cpu"? known: auto, cpu, cuda, cuda:N, mps
    """

    device: str = "cpu"
    precision: str = "float32"
    runtime: str = "eager"
    decoder: str = "pillow"

    def __post_init__(self) -> None:
        if not _DEVICE.fullmatch(self.device):
            raise ConfigError(unknown_name("device", self.device, DEVICE_KINDS))
        known = (
            ("precision", self.precision, PRECISIONS),
            ("runtime", self.runtime, RUNTIME_NAMES),
            ("decoder", self.decoder, DECODERS),
        )
        for what, name, names in known:
            if name not in names:
                raise ConfigError(unknown_name(what, name, names))
        if self.precision not in PRECISIONS_OF.get(self.runtime, PRECISIONS):
            fitting = " and ".join(PRECISIONS_OF[self.runtime])
            raise ConfigError(f"runtime {self.runtime}: computes in {fitting}, not in {self.precision}")
        if self.runtime in ON_THE_CPU_ONLY and self.device not in ("cpu", AUTO):
            raise ConfigError(f"runtime {self.runtime}: runs on the CPU, not on {self.device}; take eager or folded")

    @property
    def is_usual(self) -> bool:
        """Whether everything is as it is where nothing was asked for."""
        return self == USUAL

    def fingerprint_parts(self) -> dict[str, str]:
        """Return what of it moves embeddings so far that they get a fingerprint of their own; {} for nothing.

        Device and runtime are none of it: in float32 their embeddings agree (cosine of at least 0.9999).
        """
        parts = {} if self.precision == "float32" else {"precision": self.precision}
        return {**parts, **({"decoder": "draft"} if self.decoder == "draft" else {})}


USUAL = Execution()  # where nothing is asked for

STORED = "execution"  # key of the free text of a checkpoint: precision and decoder of its embeddings

_CURRENT: ContextVar[Execution] = ContextVar("execution", default=USUAL)
_WIDTH: ContextVar[float | None] = ContextVar("width", default=None)


def current_execution() -> Execution:
    """Return the execution of the innermost :func:`executed_as`; on the CPU in float32 outside of any."""
    return _CURRENT.get()


@contextmanager
def executed_as(execution: Execution) -> Iterator[None]:
    """Load networks inside the ``with`` to run as ``execution`` says, and restore the previous one afterwards.

    Example:
        >>> with executed_as(Execution(precision="bfloat16")):
        ...     current_execution().precision
        'bfloat16'
        >>> current_execution().precision
        'float32'
    """
    token = _CURRENT.set(execution)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def find_device(execution: Execution, other_program: str = "") -> Execution:
    """Look for the device of an execution on this machine.

    Args:
        execution: The wish; of "auto" the best device is taken: cuda, else mps, else cpu.
        other_program: What runs the network already, where it is not PyTorch; it computes in float32 on the CPU.

    Returns:
        The same with the name of a device that is there.

    Raises:
        ConfigError: The device is not there, or does not compute in this precision.
    """
    import torch

    device = execution.device
    if other_program:
        if execution.precision != "float32" or device not in (AUTO, "cpu") or execution.runtime not in ("eager", AUTO):
            raise ConfigError(
                f"{other_program} runs this network, in float32 on the CPU; leave --device, --precision and --runtime"
                " out"
            )
        return replace(execution, device="cpu", runtime="eager")
    if device == AUTO:
        device = _best_device() if execution.runtime not in ON_THE_CPU_ONLY else "cpu"
    kind, _, number = device.partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            there = ", ".join(["cpu", *(f"cuda:{index}" for index in range(count))])
            raise ConfigError(f"device {device}: not there; this machine has {there}; --device auto takes the best")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(
            f"device {device}: not there, or this PyTorch is built without it; --device auto takes the best"
        )
    if kind == "cpu" and execution.precision == "float16":
        raise ConfigError("precision float16: cpu computes in float32 and bfloat16; take one of them, or a GPU")
    if kind == "cuda" and execution.precision == "bfloat16" and not torch.cuda.is_bf16_supported():
        raise ConfigError(f"precision bfloat16: {device} does not compute in it; take float16 or float32")
    return replace(execution, device=device)


def _best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def execution_with(**wanted: str | None) -> Execution:
    """Return the current execution with some of its values replaced; None replaces nothing.

    Example:
        >>> execution_with(device=None, precision="bfloat16").precision
        'bfloat16'
    """
    return replace(current_execution(), **{name: value for name, value in wanted.items() if value is not None})


def as_stored(asked: Execution, extra: Mapping[str, str], source: str) -> Execution:
    """Return how a stored network is to run, so that its embeddings can be compared with those that lie beside it.

    Args:
        asked: What is wanted.
        extra: The free text of its checkpoint; without an entry its embeddings are the usual ones.
        source: Where it is stored, for the message.

    Raises:
        ConfigError: Another precision, or a decoder that gives other pixels, was asked for by name.

    Example:
        >>> as_stored(USUAL, {"execution": "bfloat16 pillow"}, "gallery").precision
        'bfloat16'
    """
    precision, _, decoder = extra.get(STORED, "").partition(" ")
    if asked.precision not in (USUAL.precision, precision or USUAL.precision):
        raise ConfigError(
            f"{source}: was embedded in {precision or USUAL.precision}, not in {asked.precision}; leave --precision"
            " out, or build it again"
        )
    if asked.decoder == "draft" != decoder:
        raise ConfigError(f"{source}: was not embedded with the decoder draft; leave --decoder out, or build it again")
    changes = {"precision": precision if precision in PRECISIONS else USUAL.precision}
    return replace(asked, **changes, **({"decoder": "draft"} if decoder == "draft" else {}))


def current_width() -> float | None:
    """Return the width at which networks are loaded; None for the widest, whatever the file holds."""
    return _WIDTH.get()


@contextmanager
def loaded_at(width: float | None) -> Iterator[None]:
    """Load networks inside the ``with`` at a width; None loads the widest.

    Example:
        >>> with loaded_at(0.5):
        ...     current_width()
        0.5
    """
    token = _WIDTH.set(width)
    try:
        yield
    finally:
        _WIDTH.reset(token)
