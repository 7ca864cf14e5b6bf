"""What computes the embeddings of a checkpoint: PyTorch, folded networks, or another program.

The eager network of PyTorch is the reference.  Every other runner is compared with it on the first images that it gets,
for each camera anew, and refused where the two differ.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ConfigError, WeightsError
from reid.models.folding import FoldedEmbedder
from reid.models.graph_batches import GraphBatches
from reid.models.graph_export import EXPORT_PACKAGES, export_graph, with_pixels, with_tensors
from reid.models.runtime import RuntimeNetwork, import_package
from reid.norm import Given, extract
from reid.norm.unseen_domains import answer

if TYPE_CHECKING:
    from reid.models.checkpoint import Checkpoint

COMPARED = 8  # images of each camera on which a runner is compared with the eager network
KEPT = 8  # folded networks that are kept at a time, one for each camera
# The smallest cosine of an embedding to that of the eager network in float32.
SMALLEST_COSINE = {"float32": 0.9999, "bfloat16": 0.98, "float16": 0.99}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Domain = Tensor | int | None
Body = Callable[[Tensor], Tensor]
Build = Callable[[nn.Module, bool], Body]


class Runner(Protocol):
    """Computes embeddings.

    Attributes:
        wants_sorted: Whether batches of one camera are faster than mixed ones.
    """

    wants_sorted: bool

    def run(self, images: Tensor, domain: Domain) -> Tensor:
        """Images (B, 3, H, W), float32 or uint8 only resized, and their domains -> unit vectors (B, D) float32."""

    def describe(self) -> str:
        """Say what computes, in which precision, where, and how near it is to the eager network."""


class EagerRunner:
    """The network of the checkpoint, layer by layer, on the device that holds it."""

    wants_sorted = False

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._network, self._given = checkpoint.network, Given(checkpoint.network)
        self._transform = checkpoint.transform
        self._unknown_domain, self._policy = checkpoint.unknown_domain, checkpoint.unseen_camera_policy
        self._has_statistics, self._runtime = checkpoint.has_statistics, checkpoint.runtime
        self._device, self._precision = torch.device(checkpoint.execution.device), checkpoint.execution.precision

    def run(self, images: Tensor, domain: Domain) -> Tensor:
        """Compute the embeddings of a batch."""
        images = self._transform.prepare(images).to(self._device, non_blocking=True)
        if not self._has_statistics:
            domain = None
        if isinstance(domain, Tensor):
            domain = domain.to(self._device, non_blocking=True)
        reduced = self._precision != "float32"
        autocast = torch.autocast(self._device.type, _DTYPES[self._precision]) if reduced else nullcontext()
        with autocast:
            if domain is not None and self._unknown_domain is not None:
                return answer(self._network, images, domain, self._policy)
            outputs: Tensor = self._given(images, domain)
        return outputs

    def describe(self) -> str:
        """Say what computes, in which precision and where."""
        return self._runtime or f"PyTorch {torch.__version__} eager {self._precision} on {self._device}"


class FoldedRunner:
    """One folded network for each camera; images of unknown cameras go to the eager network.

    Args:
        checkpoint: The network.
        build: Makes what computes the embeddings, (B, 3, H, W) -> (B, D), from the plain network of a camera, and from
            whether it is to take uint8.
        title: What it is, for :meth:`describe`.
        takes_pixels: Whether ``build`` can make what takes uint8.
    """

    wants_sorted = True

    def __init__(self, checkpoint: Checkpoint, build: Build, title: str, takes_pixels: bool = False) -> None:
        self._checkpoint, self._build, self._title, self._takes_pixels = checkpoint, build, title, takes_pixels
        self._device = torch.device(checkpoint.execution.device)
        self._eager, self._has_statistics = EagerRunner(checkpoint), checkpoint.has_statistics
        self._bodies: OrderedDict[tuple[int | None, torch.dtype], Body] = OrderedDict()
        self._lock = threading.RLock()
        self._cosine = 1.0

    def run(self, images: Tensor, domain: Domain) -> Tensor:
        """Compute the embeddings of a batch, camera by camera."""
        images = images if self._takes_pixels else self._checkpoint.transform.prepare(images)
        if not self._has_statistics:
            return self._run_one(images, None)
        if domain is None:
            return self._eager.run(images, None)  # which knows what to answer without a camera
        if isinstance(domain, int):
            return self._run_one(images, domain)
        index = domain.cpu()
        outputs: Tensor | None = None
        for one in torch.unique(index).tolist():
            rows = index == one
            part = self._run_one(images if bool(rows.all()) else images[rows], int(one))
            outputs = part.new_empty(len(images), part.shape[1]) if outputs is None else outputs
            outputs[rows] = part
        return outputs if outputs is not None else self._eager.run(images, domain)

    def describe(self) -> str:
        """Say what computes, and the smallest cosine to the eager network that was seen."""
        return f"{self._title}, cosine to eager {self._cosine:.6f} or more"

    def _run_one(self, images: Tensor, domain: int | None) -> Tensor:
        if domain is not None and not 0 <= domain < len(self._checkpoint.domains):
            return self._eager.run(images, torch.full((len(images),), domain))
        body = self._body(domain, images)
        return body(images.to(self._device, non_blocking=True))

    def _body(self, domain: int | None, images: Tensor) -> Body:
        """The folded network of a camera for images of a type, made and compared where there is none yet."""
        key = (domain, images.dtype)
        with self._lock:
            if key not in self._bodies:
                checkpoint = self._checkpoint
                network = (
                    checkpoint.network if domain is None else extract(checkpoint.network, checkpoint.domains[domain])
                )
                with torch.inference_mode(False), torch.no_grad():
                    body = self._build(network, images.dtype == torch.uint8)
                self._compare(body, images[:COMPARED], domain)
                self._bodies[key] = body
                while len(self._bodies) > KEPT:
                    self._bodies.popitem(last=False)
            self._bodies.move_to_end(key)
            return self._bodies[key]

    def _compare(self, body: Body, images: Tensor, domain: int | None) -> None:
        """Refuse a network whose embeddings are not those of the eager one."""
        eager = Given(self._checkpoint.network)(self._checkpoint.transform.prepare(images).to(self._device), domain)
        cosine = float(functional.cosine_similarity(body(images.to(self._device)), eager).min())
        precision = self._checkpoint.execution.precision
        if not cosine >= SMALLEST_COSINE[precision]:
            raise WeightsError(
                f"{self._checkpoint.source}: {self._title} gives other embeddings than the eager network (cosine"
                f" {cosine:.6f}, expected at least {SMALLEST_COSINE[precision]}); run it with --runtime eager and in"
                " float32"
            )
        self._cosine = min(self._cosine, cosine)


class _GraphBuilder:
    """Makes sessions of another program from one exported graph, in which each camera has its own numbers."""

    def __init__(self, checkpoint: Checkpoint, program: str) -> None:
        self._checkpoint, self._program = checkpoint, program
        for name in EXPORT_PACKAGES:
            import_package(name, "onnx", f"runtime {program}")
        package = {"onnx": "onnxruntime"}.get(program, program)
        version = str(import_package(package, program, f"runtime {program}").__version__).partition("-")[0]
        self.title = f"{package} {version} {checkpoint.execution.precision} on cpu"
        self._graph: tuple[bytes, dict[str, Tensor]] | None = None

    def __call__(self, network: nn.Module, takes_pixels: bool) -> Body:
        """Make what computes the embeddings from the plain network of a camera."""
        checkpoint, source = self._checkpoint, self._checkpoint.source
        folded = FoldedEmbedder(network, source)
        body = nn.Sequential(folded.backbone, folded.pooling).eval()
        tensors = dict(body.state_dict())
        if self._graph is None:
            try:
                graph = export_graph(body, checkpoint.transform.height, checkpoint.transform.width)
            except torch.onnx.OnnxExporterError as error:
                raise ConfigError(f"{source}: its network cannot be exported; run it with --runtime folded") from error
            self._graph = graph, tensors
        else:
            graph = with_tensors(*self._graph, tensors, source)
        graph = with_pixels(graph, checkpoint.transform, source) if takes_pixels else graph
        batches = GraphBatches(self._program, graph, source, checkpoint.execution.precision)

        def run(images: Tensor) -> Tensor:
            return folded.finish(_run_batches(batches, images, source))

        return run


def _run_batches(batches: GraphBatches, images: Tensor, source: str) -> Tensor:
    try:
        features = batches.run(images.contiguous().numpy())
    except batches.errors as error:
        raise WeightsError(f"{source}: cannot be run ({error})") from error
    return torch.from_numpy(np.asarray(features, np.float32))


def _folded(checkpoint: Checkpoint) -> Runner:
    execution = checkpoint.execution
    device, dtype = torch.device(execution.device), _DTYPES[execution.precision]
    if isinstance(checkpoint.network, RuntimeNetwork):
        raise ConfigError(f"{checkpoint.source}: another program runs it already ({checkpoint.runtime})")

    def build(network: nn.Module, _: bool) -> Body:
        return FoldedEmbedder(network, checkpoint.source, dtype, fuse_relu=device.type == "cpu").to(device)

    return FoldedRunner(checkpoint, build, f"PyTorch {torch.__version__} folded {execution.precision} on {device}")


def _graph(checkpoint: Checkpoint) -> Runner:
    if isinstance(checkpoint.network, RuntimeNetwork):
        raise ConfigError(f"{checkpoint.source}: another program runs it already ({checkpoint.runtime})")
    builder = _GraphBuilder(checkpoint, checkpoint.execution.runtime)
    return FoldedRunner(checkpoint, builder, builder.title, takes_pixels=True)


# A name of :data:`~reid.models.execution.RUNTIME_NAMES` -> what makes the runner of a checkpoint.  "auto" is eager
# until :func:`reid.models.runtime_choice.choose_runtime` has chosen.
RUNNERS: dict[str, Callable[[Checkpoint], Runner]] = {
    "eager": EagerRunner,
    "folded": _folded,
    "onnx": _graph,
    "openvino": _graph,
    "auto": EagerRunner,
}


class RunnerOf:
    """Makes the runner of a checkpoint when it is first needed, once for all threads.

    Attributes:
        chosen: The same checkpoint with what "auto" chose; None where nothing was measured.
        reason: Why this runtime was chosen; "" where it was asked for.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runner: Runner | None = None
        self.chosen: Checkpoint | None = None
        self.reason = ""

    def __reduce__(self) -> tuple[type[RunnerOf], tuple[()]]:
        return RunnerOf, ()  # a copy, also one for another process, makes its own runner

    def get(self, checkpoint: Checkpoint) -> Runner:
        """Return the runner; the first call makes it."""
        with self._lock:
            if self._runner is None:
                self._runner = RUNNERS[checkpoint.execution.runtime](checkpoint)
            return self._runner


def as_eager(checkpoint: Checkpoint) -> Checkpoint:
    """Return the same network run layer by layer, for code that watches its layers."""
    return checkpoint.with_execution(replace(checkpoint.execution, runtime="eager"))


def describe_execution(checkpoint: Checkpoint) -> str:
    """Say what computes embeddings, in which precision and where, and how near it is to the eager network."""
    runner = checkpoint.runner
    if runner.chosen is not None:
        return describe_execution(runner.chosen)
    return "; ".join(filter(None, (runner.get(checkpoint).describe(), runner.reason)))
