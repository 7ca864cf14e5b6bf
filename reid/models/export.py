"""A network of ours as a file that other programs run: ONNX, or an OpenVINO IR, with the card that says what it wants.

The file holds the statistics of one camera: a camera that embeds its own pictures needs no others'.  A program for
mixed cameras keeps the label as an input instead, with ``torch.onnx.export(Given(network), ...)``.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ConfigError, WeightsError, unknown_name
from reid.models.checkpoint import Checkpoint
from reid.models.runtime import RUNTIMES, package
from reid.norm import Given, extract


def export(checkpoint: Checkpoint, out: Path, camera: str = "") -> None:
    """Write ``out`` (.onnx, or .xml with its .bin) and its card (.toml); :func:`load_checkpoint` reads them.

    The model turns (B, 3, H, W) float32, prepared as the card says, into unit vectors (B, D) float32, for any B.
    ``camera`` names the normalization domain whose statistics it has, "" where the network has none.  Raises
    ConfigError for a camera that is not known, a suffix that is neither, or a package that is missing.
    """
    kind = kind_of(out)
    if checkpoint.runtime:
        raise ConfigError(f"{checkpoint.source}: another program runs it already ({checkpoint.runtime})")
    alone = _alone(checkpoint, camera)
    for name in ("onnx", "onnxscript", *(["openvino"] if kind == "openvino" else [])):
        package(name, name.removesuffix("script"), str(out))
    answering: nn.Module = Given(alone).eval()
    if checkpoint.transform.flip:
        answering = _Mirrored(answering).eval()
    graph = _graph(answering, checkpoint.transform.height, checkpoint.transform.width)
    files = [out, out.with_suffix(".toml"), *([out.with_suffix(".bin")] if kind == "openvino" else [])]
    try:
        if kind == "openvino":
            runtime = package(kind, kind, str(out))
            runtime.save_model(runtime.Core().read_model(graph, b""), out, compress_to_fp16=False)
        else:
            out.write_bytes(graph)
        out.with_suffix(".toml").write_text(_card(checkpoint), encoding="utf-8")
    except (OSError, RuntimeError) as error:  # RuntimeError: how OpenVINO tells of a full disk
        for file in files:
            with suppress(OSError):
                file.unlink(missing_ok=True)
        reason = str(error).strip().splitlines()[-1]
        raise WeightsError(f"{out}: cannot be written ({reason}); choose another place or free some space") from error


def kind_of(out: Path) -> str:
    """Which program reads ``out``: "onnx" or "openvino"; ConfigError where its name says neither."""
    kind = RUNTIMES.get(out.suffix.lower())
    if kind is None:
        raise ConfigError(f"{out}: expected a name that ends in .onnx, or in .xml for OpenVINO")
    return kind


class _Mirrored(nn.Module):
    """The mean of the vectors of a picture and of its mirror image: what "flip" means, inside the file."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> unit vectors (B, D)."""
        return functional.normalize(self.network(images) + self.network(images.flip(-1)), dim=1)


def _alone(checkpoint: Checkpoint, camera: str) -> nn.Module:
    """The network as one camera has it."""
    if checkpoint.domains:
        if not camera:
            known = ", ".join(checkpoint.domains)
            raise ConfigError(f"{checkpoint.source}: say with --camera whose statistics it gets; known: {known}")
        if camera not in checkpoint.domains:
            raise ConfigError(f"{checkpoint.source}: {unknown_name('camera', camera, checkpoint.domains)}")
        return extract(checkpoint.network, camera)
    if camera:
        raise ConfigError(f'{checkpoint.source}: has no statistics per camera, so none of "{camera}"; pass --profiles')
    return checkpoint.network


def _graph(network: nn.Module, height: int, width: int) -> bytes:
    """The bytes of an ONNX file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of the insides of its own exporter
        program: Any = torch.onnx.export(
            network,
            (torch.zeros(2, 3, height, width),),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["vectors"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
        )
    graph: bytes = program.model_proto.SerializeToString()
    return graph


def _card(checkpoint: Checkpoint) -> str:
    """The file sees pictures as the network does."""
    made = checkpoint.transform
    return (
        f'colours = "RGB"\nscale = 255\nmean = {list(made.mean)}\nstd = {list(made.std)}\n'
        f'interpolation = "{made.interpolation}"\n'
    )
