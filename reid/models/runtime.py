"""Models that another program runs, as networks like any other: ONNX files and OpenVINO IRs.

Such a model only answers: its BatchNorm is part of the graph, so there are no statistics left to calibrate, no
layers to convert and nothing to train.  Both programs are told to compute in float32; OpenVINO would choose bfloat16
by itself where the processor has it.  :mod:`reid.models.model_card` says how images are prepared for such a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reid.errors import ConfigError, WeightsError
from reid.models.model_card import Sides
from reid.models.weights.tensor_tables import Table

RUNTIMES = {".onnx": "onnx", ".xml": "openvino"}  # suffix of a model's file -> what stands for its backbone
UNCALIBRATED = (
    "no BatchNorm is left to calibrate in a model that is run by another program; center its embeddings per"
    ' camera instead: "reid embed", then "reid cameras center"'
)

Array = npt.NDArray[Any]
Port = tuple[str, tuple[int | None, ...] | None]  # type of an input or output, and its sizes; None where any will do


@dataclass(frozen=True, eq=False)
class Session:
    """A model ready to run: its ports, ``run`` from the one input to the one output, who ``ran`` it and how."""

    inputs: Sequence[Port]
    outputs: Sequence[Port]
    run: Callable[[Array], Array]
    ran: str
    faults: tuple[type[Exception], ...]


class RuntimeNetwork(nn.Module):
    """Images (B, 3, H, W) float32, prepared, red first -> embeddings (B, D) float32, rows of unit length.

    The buffers are the model: ``graph`` and, for OpenVINO, ``weights`` are the bytes of its files (uint8), so that a
    gallery can keep it and its digest is theirs; ``channels`` (3,) int64 says which of R, G, B each channel of the
    input is.  ``size`` are the sides its input has, ``ran`` is the program with its version and precision.
    Raises WeightsError when the model cannot be read or is not one that turns pictures into vectors.
    """

    def __init__(self, kind: str, tables: Mapping[str, Tensor], source: str) -> None:
        super().__init__()
        files = ("graph", "weights") if kind == "openvino" else ("graph",)
        if set(tables) != {*files, "channels"}:
            raise WeightsError(f"{source}: expected the files of an {kind} model, got {', '.join(tables) or 'nothing'}")
        for key, value in tables.items():
            self.register_buffer(key, value)
        self.source = source
        self._session = _OPENERS[kind](*(tables[key].numpy().tobytes() for key in files), source=source)
        self.ran = self._session.ran
        self._batch, self.size, self._last = self._layout()

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings (B, D) float32 of unit length."""
        sides = tuple(images.shape[2:])
        if any(fixed not in (None, side) for fixed, side in zip(self.size, sides, strict=True)):
            raise ConfigError(
                f"{self.source}: expected images of {self.size[0]} x {self.size[1]} pixels, got {sides[0]} x {sides[1]}"
            )
        channels: Tensor = self.get_buffer("channels")
        prepared = images.detach().cpu()[:, channels]
        prepared = prepared.permute(0, 2, 3, 1) if self._last else prepared  # (B, H, W, 3)
        vectors = torch.cat(list(self._run(prepared.contiguous().numpy())))  # (B, D)
        if not vectors.isfinite().all():
            raise WeightsError(
                f"{self.source}: gives numbers that are not finite; see whether its card says the right scale"
            )
        return F.normalize(vectors)

    def _run(self, images: Array) -> Iterator[Tensor]:
        """The answers to a batch, one image at a time where the model takes no more."""
        step = self._batch or max(1, len(images))
        for start in range(0, len(images), step):
            part = images[start : start + step]
            try:
                answer = self._session.run(part)
            except self._session.faults as error:
                raise WeightsError(f"{self.source}: cannot be run ({_line(error)})") from error
            if answer.ndim != 2 or len(answer) != len(part):
                raise WeightsError(_no_vectors(self.source, answer.shape))
            yield torch.from_numpy(answer.astype(np.float32))

    def _layout(self) -> tuple[int | None, Sides, bool]:
        """Batch size (None: any), height and width of the input, and whether its channels come last."""
        session = self._session
        if len(session.inputs) != 1 or len(session.outputs) != 1:
            raise WeightsError(
                f"{self.source}: expected one input and one output, got {len(session.inputs)} and"
                f" {len(session.outputs)}; export it again with the embedding alone"
            )
        (kind, shape), (_, answer) = session.inputs[0], session.outputs[0]
        if kind != "float32":
            raise WeightsError(f"{self.source}: expected an input of float32, got {kind}; export it again with one")
        if answer is not None and len(answer) != 2:
            raise WeightsError(_no_vectors(self.source, answer))
        if shape is None or len(shape) != 4 or 3 not in (shape[1], shape[3]):
            raise WeightsError(f"{self.source}: expected an input (B, 3, H, W) or (B, H, W, 3), got {_sizes(shape)}")
        if shape[0] not in (None, 1):
            raise WeightsError(f"{self.source}: takes {shape[0]} images at a time; export it for 1 or for any number")
        last = shape[1] != 3
        return shape[0], (shape[1], shape[2]) if last else (shape[2], shape[3]), last


def read_files(path: Path) -> Table:
    """The bytes of a model's files as tensors: ``graph`` and, for an OpenVINO IR, ``weights``; both uint8."""
    places = {"graph": path}
    if RUNTIMES[path.suffix.lower()] == "openvino":
        places["weights"] = path.with_suffix(".bin")
    table = {}
    for name, place in places.items():
        if not place.is_file():
            raise WeightsError(
                f"{place}: no such file"
                + (f"; an OpenVINO model is two files, put it beside {path}" if name == "weights" else "")
            )
        table[name] = torch.from_numpy(np.fromfile(place, np.uint8))
    return table


def package(name: str, extra: str, source: str) -> Any:
    """The package ``name``, which comes with ``extra``; a ConfigError that says how to get it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f'{source}: needs the package {name}: run pip install "{name}", or pip install ".[{extra}]" in a checkout'
        ) from error


def _open_onnx(graph: bytes, *, source: str) -> Session:
    runtime = package("onnxruntime", "onnx", source)
    state = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    faults = tuple(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what is wrong arrives as an exception too
    try:
        session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except faults as error:
        raise WeightsError(
            f"{source}: ONNX Runtime cannot read it, damaged or not whole in this one file ({_line(error)})"
        ) from error
    ports = [[_onnx_port(port) for port in side] for side in (session.get_inputs(), session.get_outputs())]

    def run(images: Array) -> Array:
        answer: Array = session.run(None, {session.get_inputs()[0].name: images})[0]
        return answer

    return Session(ports[0], ports[1], run, f"ONNX Runtime {runtime.__version__} float32", faults)


def _onnx_port(port: Any) -> Port:
    kind = str(port.type).removeprefix("tensor(").removesuffix(")")
    sizes = None if port.shape is None else tuple(size if isinstance(size, int) else None for size in port.shape)
    return {"float": "float32"}.get(kind, kind), sizes


def _open_openvino(graph: bytes, weights: bytes, *, source: str) -> Session:
    runtime = package("openvino", "openvino", source)
    core = runtime.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    try:
        compiled = core.compile_model(core.read_model(graph, weights), "CPU", settings)
    except RuntimeError as error:
        raise WeightsError(
            f"{source}: OpenVINO cannot read it, damaged or with the .bin of another model ({_line(error)})"
        ) from error
    ports = [[_openvino_port(port) for port in side] for side in (compiled.inputs, compiled.outputs)]

    def run(images: Array) -> Array:
        request = compiled.create_infer_request()  # one a call: threads may call at the same time
        answer: Array = np.array(request.infer([images])[compiled.output(0)])
        return answer

    precision = _type_name(compiled.get_property("INFERENCE_PRECISION_HINT"))  # what it took, not what it was told
    version = str(runtime.__version__).partition("-")[0]
    return Session(ports[0], ports[1], run, f"OpenVINO {version} {precision}", (RuntimeError,))


def _openvino_port(port: Any) -> Port:
    kind, shape = _type_name(port.get_element_type()), port.get_partial_shape()
    if shape.rank.is_dynamic:
        return kind, None
    return kind, tuple(None if size.is_dynamic else size.get_length() for size in shape)


def _type_name(kind: Any) -> str:
    name = str(kind.get_type_name())
    return {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "i8": "int8", "u8": "uint8"}.get(name, name)


_OPENERS: dict[str, Callable[..., Session]] = {"onnx": _open_onnx, "openvino": _open_openvino}


def _no_vectors(source: str, shape: Sequence[int | None]) -> str:
    return f"{source}: expected one vector an image, (B, D), got {_sizes(shape)}; export it up to its embedding"


def _sizes(shape: Sequence[int | None] | None) -> str:
    return "any" if shape is None else f"({', '.join('?' if size is None else str(size) for size in shape)})"


def _line(error: Exception) -> str:
    """What another program complains of: the last line, for those before it say where in its source it noticed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
