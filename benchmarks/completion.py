"""Measure what completing occluded crops brings to retrieval: docs/results/completion.md.

    python benchmarks/completion.py --data STREET-B/manifest.csv --weights completion/weights.safetensors

The weights are those of "reid complete --train", which should have learned from another site.  Queries are occluded,
the gallery is not.  Every figure is kept under benchmarks/results, so a second run continues.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from textwrap import wrap

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from reid.data.images import read_image
from reid.data.manifest import read_manifest
from reid.data.transforms import EvaluationTransform
from reid.evaluation import evaluate
from reid.generation.completion import Completion
from reid.generation.mask_files import BoolArray
from reid.generation.occluders import draw_masks, draw_textures
from reid.generation.step_training import to_pixels, to_unit
from reid.models.checkpoint import Checkpoint
from reid.norm import Given, extract
from reid.norm.specialised.region_norm import RegionNorm
from reid.pipeline import load_checkpoint, with_unseen_cameras
from reid.records import Embeddings, FloatArray, Modality, Sample, Split, domain_of

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True, eq=False)
class Occluded:
    """A query with an occluder of a known mask (H, W)."""

    sample: Sample
    image: Image.Image
    hidden: BoolArray


@dataclass(frozen=True, eq=False)
class Trial:
    """The queries of one draw, the gallery, and what embeds and completes."""

    checkpoint: Checkpoint
    completion: Completion
    queries: Sequence[Occluded]
    gallery: Sequence[Sample]

    def embedded(self, fill: Callable[[Occluded], Image.Image]) -> FloatArray:
        """Embed the queries after a change, each with the statistics of its camera."""
        images = [fill(query) for query in self.queries]
        return embed_images(self.checkpoint, images, [query.sample for query in self.queries])


def occlude_query(sample: Sample, share: float, seed: int) -> Occluded:
    """Draw an occluder in front of a crop, by its name and the seed."""
    image = read_image(sample.path)
    generator = torch.Generator().manual_seed(zlib.crc32(sample.path.name.encode()) + seed)
    mask = draw_masks(1, (image.height, image.width), (share, share), generator)
    crop = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    other = crop if share == 0 else torch.where(mask, to_pixels(draw_textures(to_unit(crop), generator)), crop)
    pixels = other[0].permute(1, 2, 0).contiguous().numpy()
    return Occluded(sample, Image.fromarray(pixels), mask[0, 0].numpy())


def embed_images(checkpoint: Checkpoint, images: Sequence[Image.Image], samples: Sequence[Sample]) -> FloatArray:
    names = {name: number for number, name in enumerate(checkpoint.domains)}
    domain = torch.tensor([names[domain_of(sample, checkpoint.domain_fields)] for sample in samples])
    pixels = torch.stack([checkpoint.transform.resize(image) for image in images])
    parts = [
        checkpoint.embed(checkpoint.transform.normalise(part), which)
        for part, which in zip(torch.split(pixels, 64), torch.split(domain, 64), strict=True)
    ]
    return torch.cat(parts).numpy()


def by_camera(trial: Trial, regions: bool) -> tuple[FloatArray, FloatArray]:
    """Embed queries and gallery with the statistics of all crops of a camera, of both regions where asked.

    In every batch norm the statistics are those of the batch of one camera, as in the published layer; with regions,
    hidden and visible positions have their own.
    """
    found = []
    for rows, masks in (
        ([query.sample for query in trial.queries], [query.hidden for query in trial.queries]),
        (list(trial.gallery), None),
    ):
        vectors = np.zeros((len(rows), 0), np.float32)
        for name in sorted({domain_of(row, trial.checkpoint.domain_fields) for row in rows}):
            chosen = [i for i, row in enumerate(rows) if domain_of(row, trial.checkpoint.domain_fields) == name]
            images = [read_image(rows[i].path) if masks is None else trial.queries[i].image for i in chosen]
            hidden = _masks([masks[i] for i in chosen], trial.checkpoint.transform) if masks else None
            part = _embed_batch(trial.checkpoint, name, images, hidden if regions else None)
            if not vectors.shape[1]:
                vectors = np.zeros((len(rows), part.shape[1]), np.float32)
            vectors[chosen] = part
        found.append(vectors)
    return found[0], found[1]


def _masks(masks: Sequence[BoolArray], transform: EvaluationTransform) -> Tensor:
    size = (transform.height, transform.width)
    whole = [torch.from_numpy(mask)[None, None].float() for mask in masks]
    return torch.cat([nn.functional.interpolate(mask, size, mode="area") for mask in whole]) >= 0.5


@torch.no_grad()
def _embed_batch(checkpoint: Checkpoint, name: str, images: Sequence[Image.Image], hidden: Tensor | None) -> FloatArray:
    network = extract(checkpoint.network, name)
    if hidden is not None:
        _with_regions(network)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d | RegionNorm):
            layer.train()
    pixels = torch.stack([checkpoint.transform.resize(image) for image in images])
    found: Tensor = Given(network)(checkpoint.transform.normalise(pixels), mask=hidden)
    return found.numpy()


def _with_regions(parent: nn.Module) -> None:
    for name, layer in parent.named_children():
        if isinstance(layer, nn.BatchNorm2d):
            region = RegionNorm(layer.num_features, pooled=True, eps=layer.eps)
            region.weight.data[:], region.bias.data[:] = layer.weight.data, layer.bias.data
            setattr(parent, name, region)
        else:
            _with_regions(layer)


ROWS: dict[str, Callable[[Trial], FloatArray | tuple[FloatArray, FloatArray]]] = {
    "nothing": lambda t: t.embedded(lambda q: q.image),
    "filled with the mean colour": lambda t: t.embedded(lambda q: Completion("mean").fill(q.image, q.hidden)),
    "filled smoothly, without a network": lambda t: t.embedded(lambda q: Completion("smooth").fill(q.image, q.hidden)),
    "completed, known masks": lambda t: t.embedded(lambda q: t.completion.fill(q.image, q.hidden)),
    "completed, guessed masks": lambda t: t.embedded(lambda q: _guessed(t.completion, q)),
    "statistics of the camera's crops": lambda t: by_camera(t, False),
    "region statistics of the camera's crops, known masks": lambda t: by_camera(t, True),
}


def _guessed(completion: Completion, query: Occluded) -> Image.Image:
    hidden = completion.guess(query.image)
    return query.image if hidden.mean() > 0.9 else completion.fill(query.image, hidden)


def rank1(trial: Trial, queries: FloatArray, gallery: FloatArray) -> float:
    samples = (*(query.sample for query in trial.queries), *trial.gallery)
    vectors = np.concatenate([queries, gallery])
    return float(evaluate(Embeddings(samples, vectors, "benchmark")).results[0].metrics.rank(1))


def describe_training(completion: Completion) -> str:
    card = completion.card
    if card is None:
        return ""
    steps, error = card.metrics.get("step", 0), card.metrics.get("hidden_loss", float("nan"))
    return (
        f"The completion network learned from {card.crops:,} crops of another site in {steps:,.0f} steps, seed"
        f" {card.seed}; its error on hidden pixels was {error:.3f} at the end, in units where colours are -1 to 1."
    )


def page(known: Mapping[str, float], words: str) -> str:
    """Write the results page: means over the draws."""
    cells: dict[tuple[str, str], list[float]] = {}
    for key, value in known.items():
        name, share, _ = key.split("|")
        cells.setdefault((name, share), []).append(100 * value)
    lines = [
        "# Completing occluded crops",
        "",
        "Rank-1 in percent, with occluders drawn in front of the queries; the gallery shows nobody occluded. Posts,",
        "boards and boxes hide a share of each query. What the rows do, and what follows, is described in",
        "[the guide](../generation.md).",
        "",
        *wrap(words, 118),
        "",
        f"| hidden share of a query | {' | '.join(f'{share:.0%}' for share in SHARES)} |",
        f"|---|{'---|' * len(SHARES)}",
    ]
    for name in ROWS:
        shown = [cells.get((name, str(share))) for share in SHARES]
        lines.append(f"| {name} | {' | '.join('' if found is None else f'{mean(found):.1f}' for found in shown)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help='Weights of "reid complete --train".')
    parser.add_argument("--people", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "completion")
    parser.add_argument("--page", type=Path, default=Path(__file__).parents[1] / "docs" / "results" / "completion.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.results.mkdir(parents=True, exist_ok=True)
    rows = [s for s in read_manifest(arguments.data) if s.category == "person" and s.modality is Modality.VISIBLE]
    tested = sorted({s.identity for s in rows if s.split is Split.QUERY})[: arguments.people]
    queries = [s for s in rows if s.split is Split.QUERY and s.identity in tested]
    gallery = [s for s in rows if s.split is Split.GALLERY and s.identity in tested]
    checkpoint = with_unseen_cameras(load_checkpoint(), rows, "calibrate")
    completion = Completion.load(arguments.weights)
    file = arguments.results / "rank1.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    plain = cache(lambda: embed_images(checkpoint, [read_image(s.path) for s in gallery], gallery))
    words = (
        f"{len(queries)} queries and {len(gallery)} gallery crops of {len(tested)} people in visible cameras; the"
        " shipped network, whose cameras are calibrated on clean crops; mean of"
        f" {arguments.seeds} draws of the occluders. {describe_training(completion)}"
    )
    for seed in range(arguments.seeds):
        for share in SHARES:
            missing = [name for name in ROWS if f"{name}|{share}|{seed}" not in known]
            if not missing:
                continue
            occluded = [occlude_query(sample, share, seed) for sample in queries]
            trial = Trial(checkpoint, completion, occluded, gallery)
            for name in missing:
                found = ROWS[name](trial)
                pair = found if isinstance(found, tuple) else (found, plain())
                known[f"{name}|{share}|{seed}"] = rank1(trial, *pair)
                print(name, share, seed, known[f"{name}|{share}|{seed}"], flush=True)
            file.write_text(json.dumps(known, indent=1))
    arguments.page.write_text(page(known, words), encoding="utf-8")


if __name__ == "__main__":
    main()
