"""Export of a network to a file that other programs run: ONNX or an OpenVINO IR, with a card for its image preparation.

The file holds the statistics of one camera, because a camera that embeds its own images needs no others.  For a program
that embeds images of several cameras, ``torch.onnx.export(Given(network), ...)`` keeps the domain as an input.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from reid.errors import ConfigError, WeightsError, unknown_name
from reid.files import write_together
from reid.models.checkpoint import Checkpoint
from reid.models.graph_export import EXPORT_PACKAGES, export_graph
from reid.models.runtime import RUNTIMES, import_package
from reid.norm import Given, extract


def export(checkpoint: Checkpoint, out: Path, camera: str = "") -> None:
    """Write a network as a model that another program runs, and its card.

    The model turns images (B, 3, H, W) float32, prepared as the card describes, into unit vectors (B, D) float32, for
    any B.  :func:`~reid.models.checkpoint.load_checkpoint` reads both files.

    Args:
        checkpoint: The network; torch runs it.
        out: The model: ``.onnx``, or ``.xml`` with a ``.bin`` beside it.  The card has the suffix ``.toml``.
        camera: The name of the normalization domain whose statistics the model gets; "" where the network has none.

    Raises:
        ConfigError: If the camera is not known, the suffix is neither, a package is missing, or another program runs
            the network already.
        WeightsError: If a file cannot be written; older files stay then.
    """
    runtime = format_of(out)
    if checkpoint.runtime:
        raise ConfigError(f"{checkpoint.source}: another program runs it already ({checkpoint.runtime})")
    network = _extract_camera(checkpoint, camera)
    for name in (*EXPORT_PACKAGES, *(["openvino"] if runtime == "openvino" else [])):
        import_package(name, name.removesuffix("script"), str(out))
    exported: nn.Module = Given(network).eval()
    if checkpoint.transform.flip:
        exported = _WithMirrorImage(exported).eval()
    if checkpoint.centers is not None:
        exported = _Centered(exported, checkpoint.centers.vectors[checkpoint.domains.index(camera)]).eval()
    graph = export_graph(exported, checkpoint.transform.height, checkpoint.transform.width)
    card = out.with_suffix(".toml")

    def write(folder: Path) -> None:
        if runtime == "openvino":
            openvino = import_package("openvino", "openvino", str(out))
            openvino.save_model(openvino.Core().read_model(graph, b""), folder / out.name, compress_to_fp16=False)
        else:
            (folder / out.name).write_bytes(graph)
        (folder / card.name).write_text(_card_text(checkpoint), encoding="utf-8")

    try:
        write_together([out, card, *([out.with_suffix(".bin")] if runtime == "openvino" else [])], write)
    except (OSError, RuntimeError) as error:  # OpenVINO raises a RuntimeError for a full disk
        reason = str(error).strip().splitlines()[-1]
        raise WeightsError(f"{out}: cannot be written ({reason}); choose another place or free some space") from error


def format_of(out: Path) -> str:
    """Return which program reads a file of this name: "onnx" or "openvino".

    Raises:
        ConfigError: If the suffix is of neither.

    Example:
        >>> format_of(Path("street.onnx")), format_of(Path("street.xml"))
        ('onnx', 'openvino')
    """
    runtime = RUNTIMES.get(out.suffix.lower())
    if runtime is None:
        raise ConfigError(f"{out}: expected a name that ends in .onnx, or in .xml for OpenVINO")
    return runtime


class _WithMirrorImage(nn.Module):
    """The mean of the vectors of an image and of its mirror image, scaled to unit length: "flip" inside the file."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> unit vectors (B, D)."""
        return functional.normalize(self.network(images) + self.network(images.flip(-1)), dim=1)


class _Centered(nn.Module):
    """The vectors minus the center (D,) of the camera, scaled to unit length: centering inside the file."""

    def __init__(self, network: nn.Module, center: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("center", center)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> unit vectors (B, D)."""
        return functional.normalize(self.network(images) - self.get_buffer("center"), dim=1)


def _extract_camera(checkpoint: Checkpoint, camera: str) -> nn.Module:
    """The network with the statistics of one camera, and plain norms."""
    if checkpoint.domains:
        if not camera:
            known = ", ".join(checkpoint.domains)
            raise ConfigError(f"{checkpoint.source}: say with --camera whose statistics it gets; known: {known}")
        if camera not in checkpoint.domains:
            raise ConfigError(f"{checkpoint.source}: {unknown_name('camera', camera, checkpoint.domains)}")
        return extract(checkpoint.network, camera) if checkpoint.has_statistics else checkpoint.network
    if camera:
        raise ConfigError(f'{checkpoint.source}: has no statistics per camera, so none of "{camera}"; pass --profiles')
    return checkpoint.network


def _card_text(checkpoint: Checkpoint) -> str:
    """The card of a model whose images are prepared as those of the network."""
    transform = checkpoint.transform
    return (
        f'colours = "RGB"\nscale = 255\nmean = {list(transform.mean)}\nstd = {list(transform.std)}\n'
        f'interpolation = "{transform.interpolation}"\n'
    )
