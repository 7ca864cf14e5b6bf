"""``reid export --int8``: quantize a network on crops, and measure what that costs before the file is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import typer

from reid.errors import ConfigError, DataError
from reid.records import Embeddings, Sample, Split, domain_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from reid.models.checkpoint import Checkpoint

CROPS = 256  # on which the ranges are measured
COMPARED = 512  # crops whose vectors are compared


def export_int8(checkpoint: Checkpoint, data: Sequence[str] | None, root: Path | None, out: Path, camera: str) -> None:
    """Write a network in int8, and print what that changes.

    Args:
        checkpoint: The network.
        data: Manifests or data sets.  Their crops need no labels; where they have queries and a gallery, the mAP before
            and after is measured too.
        root: The folder of a published data set.
        out: The model: ``.onnx`` or ``.xml``.
        camera: The camera whose statistics the file gets; only its crops are used then.

    Raises:
        ConfigError: There are no data, the network cannot be quantized, or the camera is not known.
        DataError: There are too few crops.
    """
    from reid.data.manifest import check_files
    from reid.data.selection import calibration_samples, keep_balanced
    from reid.models.export import check_camera, graph_of_camera, write_graph
    from reid.models.quantization import MIN_CROPS, quantize_graph
    from reid.pipeline import read_samples

    if not data:
        raise ConfigError(
            "--int8: give with --data some crops of your cameras, on which ranges are measured; no labels"
        )
    check_camera(checkpoint, camera)
    fields = checkpoint.domain_fields or ("camera",)
    samples = [one for one in read_samples(*data, root=root) if not camera or domain_of(one, fields) == camera]
    crops = calibration_samples(samples) if samples else []
    used = keep_balanced(crops, fields, CROPS)
    if len(used) < MIN_CROPS:
        whose = f" of camera {camera}" if camera else ""
        raise DataError(f"--int8: needs at least {MIN_CROPS} crops{whose} in --data to measure ranges, got {len(used)}")
    check_files(samples)
    graph = graph_of_camera(checkpoint, out, camera)
    small = quantize_graph(graph, prepared_images(checkpoint, used), checkpoint.source)
    with TemporaryDirectory() as folder:
        before, after = (_loaded(checkpoint, one, Path(folder) / f"{name}{out.suffix}") for name, one in
                         (("float32", graph), ("int8", small)))  # fmt: skip
        figures: dict[str, int | float] = {"crops": len(used), "cameras": len({domain_of(one, fields) for one in used})}
        figures |= _cosines(before, after, _others(samples, used, fields))
        scores = [] if camera else [_scores(one, samples) for one in (before, after)]
    for name in scores[0] if scores else ():
        typer.echo(f"{name}\tmAP {scores[0][name]:.2f} % in float32, {scores[1][name]:.2f} % in int8")
    if scores and scores[0]:
        figures |= {f"mAP_{word}": round(sum(one.values()) / len(one), 2) for word, one in
                    zip(("float32", "int8"), scores, strict=True)}  # fmt: skip
    write_graph(checkpoint, small, out, figures)
    typer.echo(
        f"cosine to float32\tmean {figures['cosine_mean']}, 1st percentile {figures['cosine_percentile_1']}"
        f" ({figures['compared']} crops)\nweights\t{len(graph):,} bytes in float32, {len(small):,} in int8"
    )


def prepared_images(checkpoint: Checkpoint, samples: Sequence[Sample]) -> npt.NDArray[Any]:
    """Prepared images (N, 3, H, W) float32."""
    import numpy as np

    from reid.data.loading import load_batches
    from reid.pipeline import workers

    transform = replace(checkpoint.transform, flip=False)  # the mirror image is in the graph
    batches = load_batches(samples, transform, domain_fields=(), domains=(), batch_size=64, workers=workers())
    return np.concatenate([batch.images.numpy() for batch in batches])


def _loaded(checkpoint: Checkpoint, graph: bytes, path: Path) -> Checkpoint:
    from reid.models.export import write_graph
    from reid.pipeline import load_checkpoint

    write_graph(checkpoint, graph, path)
    return load_checkpoint(path)


def _others(samples: Sequence[Sample], used: Sequence[Sample], fields: Sequence[str]) -> list[Sample]:
    """Crops to compare vectors on: others than those that the ranges were measured on, where there are any."""
    from reid.data.selection import keep_balanced

    known = {sample.path for sample in used}
    rest = list({sample.path: sample for sample in samples if sample.path not in known}.values())
    return keep_balanced(rest or used, fields, COMPARED)


def _cosines(before: Checkpoint, after: Checkpoint, samples: Sequence[Sample]) -> dict[str, int | float]:
    """How near the vectors are to those in float32."""
    import numpy as np

    from reid.pipeline import embed_samples

    pair = [embed_samples(one, samples, title).vectors for one, title in ((before, "float32"), (after, "int8"))]
    cosines = (pair[0] * pair[1]).sum(1)
    return {
        "compared": len(samples),
        "cosine_mean": round(float(cosines.mean()), 4),
        "cosine_percentile_1": round(float(np.quantile(cosines, 0.01)), 4),
    }


def _scores(checkpoint: Checkpoint, samples: Sequence[Sample]) -> dict[str, float]:
    """The mAP in percent of each category and direction; {} without labelled queries and a gallery."""
    from reid.evaluation import evaluate
    from reid.pipeline import embed_samples

    rows = [sample for sample in samples if sample.identity and sample.split in (Split.QUERY, Split.GALLERY)]
    if {sample.split for sample in rows} != {Split.QUERY, Split.GALLERY}:
        return {}
    found: Embeddings = embed_samples(checkpoint, rows)
    return {
        f"{one.category} {one.direction}": 100 * float(one.metrics.mAP)
        for one in evaluate(found).results
        if one.is_plain
    }
