"""Models that another program runs, as networks like any other: ONNX files and OpenVINO IRs.

Such a model only embeds: its BatchNorm is part of its graph, so it has no statistics to calibrate, no layers to convert
and nothing to train.  Both programs compute in float32, or in int8 where the file says so.  OpenVINO must be asked for
float32, because it chooses bfloat16 where the processor has it.  How images are prepared for such a model stands in its
card (:mod:`reid.models.model_card`).
"""

from __future__ import annotations

import math
from collections import deque
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
from reid.models.graph_operators import refuse_loops
from reid.models.model_card import Sides, beside
from reid.models.weights.tensor_tables import Table
from reid.onnx_sessions import MAX_MEMORY, MAX_SECONDS, MAX_SIDE, open_session, run_session

MAX_MODEL = 2**32  # bytes of a model's file, which is held in memory
RUNTIMES = {
    ".onnx": "onnx",
    ".xml": "openvino",
}  # suffix of a model's file -> the program, which stands for its backbone
UNCALIBRATED = (
    "no BatchNorm is left to calibrate in a model that is run by another program; center its embeddings per"
    ' camera instead: "reid calibrate --normalize centering"'
)

Array = npt.NDArray[Any]
# The type of an input or output, and its shape; None for a size, or a shape, that may be any.
Port = tuple[str, tuple[int | None, ...] | None]


@dataclass(frozen=True, eq=False)
class Session:
    """A model that is ready to run.

    Args:
        inputs: The ports of its inputs.
        outputs: The ports of its outputs.
        run: Computes the one output of the one input.
        runtime: The program that runs it, with version and precision.
        errors: What ``run`` raises when the program refuses its input.
    """

    inputs: Sequence[Port]
    outputs: Sequence[Port]
    run: Callable[[Array], Array]
    runtime: str
    errors: tuple[type[Exception], ...]


class RuntimeNetwork(nn.Module):
    """A model that another program runs, as a network that embeds images (B, 3, H, W) float32, red first.

    Its buffers hold the bytes of the model's files, so that a gallery can keep the model and its digest is that of the
    files.  Its attributes are ``size``, the height and width of its input (None where it takes any), and ``runtime``,
    the program with its version and precision.

    Args:
        program: A value of :data:`RUNTIMES`.
        tables: ``graph`` and, for OpenVINO, ``weights``, the bytes of the files (uint8); ``channels`` (3,) int64, which
            of R, G, B each channel of the input is.
        source: The file, for messages.

    Raises:
        WeightsError: If the model cannot be read, or does not turn images into vectors.
        ConfigError: If the package of the program is missing.
    """

    def __init__(self, program: str, tables: Mapping[str, Tensor], source: str) -> None:
        super().__init__()
        files = ("graph", "weights") if program == "openvino" else ("graph",)
        if set(tables) != {*files, "channels"}:
            found = ", ".join(tables) or "nothing"
            raise WeightsError(f"{source}: expected the files of an {program} model, got {found}")
        for key, value in tables.items():
            self.register_buffer(key, value)
        self.source = source
        refuse_loops(program, tables["graph"].numpy().tobytes(), source)
        self._session = _OPENERS[program](*(tables[key].numpy().tobytes() for key in files), source=source)
        self.runtime = self._session.runtime
        self._batch_size, self.size, self._channels_last = self._check_ports()

    def forward(self, images: Tensor) -> Tensor:
        """Compute the embeddings (B, D) float32, rows of unit length, of prepared images (B, 3, H, W) float32."""
        sides = tuple(images.shape[2:])
        if any(fixed not in (None, side) for fixed, side in zip(self.size, sides, strict=True)):
            raise ConfigError(
                f"{self.source}: expected images of {self.size[0]} x {self.size[1]} pixels, got {sides[0]} x {sides[1]}"
            )
        channels: Tensor = self.get_buffer("channels")
        prepared = images.detach().cpu()[:, channels]
        prepared = prepared.permute(0, 2, 3, 1) if self._channels_last else prepared  # (B, H, W, 3)
        vectors = torch.cat(list(self._run_in_steps(prepared.contiguous().numpy())))  # (B, D)
        if not vectors.isfinite().all():
            raise WeightsError(
                f"{self.source}: gives numbers that are not finite; see whether its card has the right scale"
            )
        return F.normalize(vectors)

    def _run_in_steps(self, images: Array) -> Iterator[Tensor]:
        """Run a batch at once, or in batches of the size that the model takes."""
        step = self._batch_size or max(1, len(images))
        for start in range(0, len(images), step):
            part = images[start : start + step]
            try:
                vectors = self._session.run(part)
            except self._session.errors as error:
                raise WeightsError(f"{self.source}: cannot be run ({_last_line(error)})") from error
            if vectors.ndim != 2 or len(vectors) != len(part):
                raise WeightsError(_no_vectors_message(self.source, vectors.shape))
            yield torch.from_numpy(vectors.astype(np.float32))

    def _check_ports(self) -> tuple[int | None, Sides, bool]:
        """The batch size (None: any), the height and width of the input, and whether its channels come last."""
        session = self._session
        if len(session.inputs) != 1 or len(session.outputs) != 1:
            raise WeightsError(
                f"{self.source}: expected one input and one output, got {len(session.inputs)} and"
                f" {len(session.outputs)}; export it again with the embedding as its only output"
            )
        (dtype, shape), (_, output) = session.inputs[0], session.outputs[0]
        if dtype != "float32":
            raise WeightsError(f"{self.source}: expected an input of float32, got {dtype}; export it again with one")
        if output is not None and len(output) != 2:
            raise WeightsError(_no_vectors_message(self.source, output))
        if shape is None or len(shape) != 4 or 3 not in (shape[1], shape[3]):
            raise WeightsError(
                f"{self.source}: expected an input (B, 3, H, W) or (B, H, W, 3), got {_shape_text(shape)}"
            )
        if shape[0] not in (None, 1):
            raise WeightsError(f"{self.source}: takes {shape[0]} images at a time; export it for 1 or for any number")
        channels_last = shape[1] != 3
        if any(side is not None and not 0 < side <= MAX_SIDE for side in (shape[1:3] if channels_last else shape[2:])):
            raise WeightsError(
                f"{self.source}: takes images of {_shape_text(shape)}, expected sides of 1 to {MAX_SIDE}"
            )
        return shape[0], (shape[1], shape[2]) if channels_last else (shape[2], shape[3]), channels_last


def program_of(path: Path) -> str | None:
    """Return the program that runs a model, by the suffix of its file, or of the file that a link leads to.

    Returns:
        A value of :data:`RUNTIMES`; None for a file of tensors.

    Example:
        >>> program_of(Path("MODEL.ONNX"))
        'onnx'
    """
    program = RUNTIMES.get(path.suffix.lower())
    return program or (RUNTIMES.get(path.resolve().suffix.lower()) if path.is_symlink() else None)


def read_files(path: Path) -> Table:
    """Read the bytes of a model's files as tensors.

    Args:
        path: The ``.onnx`` or ``.xml`` file.

    Returns:
        ``graph`` and, for an OpenVINO IR, ``weights``; both uint8.

    Raises:
        WeightsError: If a file is missing.
    """
    paths = {"graph": path}
    if program_of(path) == "openvino":
        paths["weights"] = beside(path, ".bin")
    table = {}
    for name, file in paths.items():
        if not file.is_file():
            raise WeightsError(
                f"{file}: no such file"
                + (f"; an OpenVINO model is two files, put it beside {path}" if name == "weights" else "")
            )
        if file.stat().st_size > MAX_MODEL:
            raise WeightsError(f"{file}: too large, expected at most {MAX_MODEL:,} bytes")
        table[name] = torch.from_numpy(np.fromfile(file, np.uint8))
    return table


def import_package(name: str, extra: str, source: str) -> Any:
    """Import a package that not every installation has.

    Args:
        name: The package.
        extra: The extra of this project that installs it.
        source: The file that needs it, for the message.

    Raises:
        ConfigError: If it is missing; the message gives the command that installs it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f'{source}: needs the package {name}: run pip install "{name}", or pip install ".[{extra}]" in a checkout'
        ) from error


def open_graph(
    program: str, graph: bytes, source: str, precision: str = "float32", batch_size: int | None = None
) -> Session:
    """Open a graph that was exported here, an ONNX file in memory, with the program that is to run it.

    Args:
        program: A value of :data:`RUNTIMES`.
        graph: The bytes of the ONNX file.
        source: The file of the network, for messages.
        precision: "float32", or with OpenVINO "bfloat16".
        batch_size: With OpenVINO, the only number of images that the session is to take; None takes any.

    Raises:
        ConfigError: The package of the program is missing.
        WeightsError: It cannot run the graph.
    """
    if program == "openvino":
        return _open_openvino(graph, b"", source=source, precision=precision, batch_size=batch_size)
    return _open_onnx(graph, source=source)


def _open_onnx(graph: bytes, *, source: str) -> Session:
    version = import_package("onnxruntime", "onnx", source).__version__
    state = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    errors = tuple(value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception))
    try:
        session = open_session(graph, ["CPUExecutionProvider"], torch.get_num_threads())
    except errors as error:
        raise WeightsError(
            f"{source}: ONNX Runtime cannot read it, damaged or not whole in this one file ({_last_line(error)})"
        ) from error
    ports = [[_onnx_port(port) for port in side] for side in (session.get_inputs(), session.get_outputs())]

    def run(images: Array) -> Array:
        return run_session(session, None, {session.get_inputs()[0].name: images})[0]

    computed = "int8" if b"DequantizeLinear" in graph else "float32"
    return Session(ports[0], ports[1], run, f"ONNX Runtime {version} {computed}", (*errors, TimeoutError))


def _onnx_port(port: Any) -> Port:
    dtype = str(port.type).removeprefix("tensor(").removesuffix(")")
    sizes = None if port.shape is None else tuple(size if isinstance(size, int) else None for size in port.shape)
    return {"float": "float32"}.get(dtype, dtype), sizes


def _open_openvino(
    graph: bytes, weights: bytes, *, source: str, precision: str = "float32", batch_size: int | None = None
) -> Session:
    runtime = import_package("openvino", "openvino", source)
    core = runtime.Core()
    hint = {"float32": "f32", "bfloat16": "bf16"}[precision]
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    try:
        model = core.read_model(graph, weights)
        if batch_size is not None:
            model.reshape([batch_size, *list(model.input(0).get_partial_shape())[1:]])
        _check_sizes(model, source)
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise WeightsError(
            f"{source}: OpenVINO cannot read it, damaged or with the .bin of another model ({_last_line(error)})"
        ) from error
    ports = [[_openvino_port(port) for port in side] for side in (compiled.inputs, compiled.outputs)]

    free: deque[Any] = deque()  # requests that no call uses; threads may call at the same time

    def run(images: Array) -> Array:
        request = free.pop() if free else compiled.create_infer_request()
        request.start_async([images], share_inputs=True)
        if not request.wait_for(int(1000 * MAX_SECONDS)):
            request.cancel()
            raise TimeoutError(f"stopped, because it did not end within {MAX_SECONDS:g} seconds")
        vectors: Array = np.array(request.get_output_tensor(0).data)
        free.append(request)
        return vectors

    used = _type_name(compiled.get_property("INFERENCE_PRECISION_HINT"))  # may differ from the setting
    if any(operator.get_type_name() == "FakeQuantize" for operator in model.get_ops()):
        used = "int8"
    version = str(runtime.__version__).partition("-")[0]
    return Session(ports[0], ports[1], run, f"OpenVINO {version} {used}", (RuntimeError, TimeoutError))


def _check_sizes(model: Any, source: str) -> None:
    """Refuse a model that states a tensor of absurd size, before OpenVINO makes room for it."""
    for operator in model.get_ops():
        for output in operator.outputs():
            shape = output.get_partial_shape()
            sizes = [] if shape.rank.is_dynamic else [1 if size.is_dynamic else size.get_length() for size in shape]
            needed = math.prod(sizes) * output.get_element_type().size
            if needed > MAX_MEMORY:
                raise WeightsError(
                    f"{source}: refused, because its graph asks for a tensor of {needed:,} bytes, expected at most"
                    f" {MAX_MEMORY:,}"
                )


def _openvino_port(port: Any) -> Port:
    dtype, shape = _type_name(port.get_element_type()), port.get_partial_shape()
    if shape.rank.is_dynamic:
        return dtype, None
    return dtype, tuple(None if size.is_dynamic else size.get_length() for size in shape)


def _type_name(openvino_type: Any) -> str:
    name = str(openvino_type.get_type_name())
    return {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "i8": "int8", "u8": "uint8"}.get(name, name)


_OPENERS: dict[str, Callable[..., Session]] = {"onnx": _open_onnx, "openvino": _open_openvino}


def _no_vectors_message(source: str, shape: Sequence[int | None]) -> str:
    return f"{source}: expected one vector an image, (B, D), got {_shape_text(shape)}; export it up to its embedding"


def _shape_text(shape: Sequence[int | None] | None) -> str:
    return "any" if shape is None else f"({', '.join('?' if size is None else str(size) for size in shape)})"


def _last_line(error: Exception) -> str:
    """The last line of another program's message; those before it name lines of its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
