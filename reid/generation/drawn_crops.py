"""Draw crops with a trained generator, and a sheet that shows which styles decide what."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from reid.data.changed_images import begin_folder
from reid.data.loading import Progress
from reid.errors import ConfigError, WeightsError
from reid.files import write_whole
from reid.generation.crop_writing import IMAGES, SETTINGS, finish_folder, write_crops
from reid.generation.generator_networks import LATENT, StyleGenerator, build_generator, draw
from reid.generation.generator_training import METHOD, NETWORK
from reid.generation.step_training import HEIGHT, WIDTH, to_pixels
from reid.generation.written_weights import TrainingCard, fill_network, load_weights
from reid.records import Sample, Split
from reid.training.epochs import derive_seed

SHEET = "sheet.png"
SHEET_CROPS = 6  # rows and columns of a sheet
MOST_CROPS = 10**6
_ENLARGED, _GAP = 2, 4  # a crop on a sheet, and the pixels between two
_MOST_CHANNELS = 1024


@dataclass(frozen=True, eq=False)
class TrainedGenerator:
    """A trained generator.

    Attributes:
        network: Draws images of latent vectors.
        card: What is known about the weights.
    """

    network: nn.Module
    card: TrainingCard

    @classmethod
    def load(cls, path: Path) -> TrainedGenerator:
        """Load the weights that "reid generate --train" wrote.

        Raises:
            WeightsError: The file is missing or damaged, or holds another network.
        """
        tensors, card = load_weights(path, METHOD)
        first, second, third, fourth = (card.number(f"channels {number}", _MOST_CHANNELS) for number in range(4))
        try:
            network = build_generator(str(card.settings.get("generator")), (first, second, third, fourth))
        except ConfigError as error:
            raise WeightsError(f"{path}: {error}") from error
        return cls(fill_network(network, tensors, NETWORK, path), card)

    @torch.no_grad()
    def crop(self, seed: int, number: int) -> Image.Image:
        """Draw one crop; the same one for the same seed and number."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, number))
            return _to_image(draw(self.network, torch.randn(1, LATENT)))

    @torch.no_grad()
    def sheet(self, seed: int) -> Image.Image:
        """Draw a sheet of crops.

        With a generator of styles, the crop in row i and column j has the coarse styles of person i, who stands in
        the first column, and the fine styles of person j, who stands in the first row.  With another generator, it
        is a table of crops.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed))
            latents = torch.randn(2 * SHEET_CROPS, LATENT)
            rows, columns = latents[:SHEET_CROPS], latents[SHEET_CROPS:]
            if not isinstance(self.network, StyleGenerator):
                return _table(draw(self.network, torch.randn(SHEET_CROPS**2, LATENT)), SHEET_CROPS)
            half = self.network.layers // 2
            table = [torch.full((1, 3, HEIGHT, WIDTH), 1.0), draw(self.network, columns)]
            for row in rows:
                coarse = row.expand(SHEET_CROPS, -1)
                table += [draw(self.network, row[None]), self.network.mix(coarse, columns, half)]
            return _table(torch.cat(table), SHEET_CROPS + 1)


def _to_image(images: Tensor) -> Image.Image:
    """Turn the first of images (B, 3, H, W) in -1..1 into an image file's content."""
    return Image.fromarray(to_pixels(images)[0].permute(1, 2, 0).contiguous().numpy())


def _table(images: Tensor, columns: int) -> Image.Image:
    """Lay images (N, 3, 64, 32) in -1..1 out in rows, on white, each twice as large."""
    wide, high = _ENLARGED * WIDTH + _GAP, _ENLARGED * HEIGHT + _GAP
    sheet = np.full((high * (len(images) // columns) + _GAP, wide * columns + _GAP, 3), 255, np.uint8)
    for number, image in enumerate(to_pixels(images)):
        top, left = (number // columns) * high + _GAP, (number % columns) * wide + _GAP
        pixels = image.permute(1, 2, 0).numpy().repeat(_ENLARGED, 0).repeat(_ENLARGED, 1)
        sheet[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return Image.fromarray(sheet)


def at_drawn_size(_sample: Sample, image: Image.Image) -> Image.Image:
    """Resize a crop to the size of drawn ones, so that a comparison does not measure the size."""
    return image if image.size == (WIDTH, HEIGHT) else image.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)


def write_drawn(weights: Path, out: Path, count: int, seed: int = 0, progress: Progress | None = None) -> Path:
    """Draw crops into a folder, with a sheet and a manifest.

    The crops show nobody: they have no identity and no camera, are marked as generated, and are in split train.  Crops
    that are there already are kept, so an interrupted run continues.

    Args:
        weights: The weights of the generator.
        out: The folder: new, empty, or of an earlier run with the same weights, count and seed.
        count: The number of crops.
        seed: Drives what is drawn; crop i of a seed is the same whatever the count.
        progress: Called with 1 after each crop.

    Returns:
        The manifest.

    Raises:
        ConfigError: The count is out of range, or the folder holds something else.
        WeightsError: The weights cannot be used.
    """
    if not 1 <= count <= MOST_CROPS:
        raise ConfigError(f"count: expected 1 to {MOST_CROPS:,} crops, got {count}")
    generator = TrainedGenerator.load(weights)
    checksum = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
    begin_folder(out, SETTINGS, {"command": "generate", "weights": checksum, "count": count, "seed": seed})
    targets = [out / IMAGES / f"{number:06}.png" for number in range(count)]
    write_crops(out, {path: partial(generator.crop, seed, i) for i, path in enumerate(targets)}, progress)
    sheet = generator.sheet(seed)
    write_whole(out / SHEET, lambda part: sheet.save(part, "PNG"))
    return finish_folder(out, [Sample(target, split=Split.TRAIN, generated=True) for target in targets])
