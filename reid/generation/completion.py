"""Complete occluded crops: what is visible stays as it is, and what is hidden is filled.

A trained network fills it, or one of two methods without a network: the mean colour of the visible pixels, or a smooth
fill from the visible pixels around.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from reid.data.loading import ImageChange
from reid.errors import ConfigError, DataError, unknown_name
from reid.generation.completion_network import CompletionNetwork, MaskGuesser, complete, smooth_fill
from reid.generation.completion_training import GUESSER, METHOD, NETWORK
from reid.generation.mask_files import BoolArray, MaskFiles
from reid.generation.step_training import HEIGHT, WIDTH, to_pixels, to_unit
from reid.generation.written_weights import TrainingCard, fill_network, load_weights
from reid.records import Sample

METHODS = ("network", "smooth", "mean")
MOST_HIDDEN = 0.9  # of a crop; beyond it hardly anything is left to complete from
GUESS_THRESHOLD = 0.5  # the probability from which a pixel is guessed to be hidden
_MOST_CHANNELS, _MOST_BLOCKS = 512, 32


@dataclass(frozen=True, eq=False)
class Completion:
    """How crops are completed.

    Attributes:
        method: A name of ``METHODS``.
        network: Fills what is hidden, with the method "network".
        guesser: Guesses what is hidden; None where no weights are loaded.
        card: What is known about the weights.

    Raises:
        ConfigError: The method is not known, or it needs weights.

    Example:
        >>> hidden = np.zeros((4, 4), np.bool_)
        >>> hidden[:2] = True
        >>> crop = Image.fromarray(np.where(hidden[..., None], 250, 40).astype(np.uint8).repeat(3, 2))
        >>> Completion("mean").fill(crop, hidden).getcolors()
        [(16, (40, 40, 40))]
    """

    method: str = "network"
    network: nn.Module | None = None
    guesser: nn.Module | None = None
    card: TrainingCard | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(unknown_name("method of completion", self.method, METHODS))
        if self.method == "network" and self.network is None:
            raise ConfigError('the method "network" needs weights; "reid complete --train" writes them')

    @classmethod
    def load(cls, path: Path, method: str = "network") -> Completion:
        """Load the weights that "reid complete --train" wrote.

        Args:
            path: The file.
            method: As above; other methods use the guesser only.

        Raises:
            WeightsError: The file is missing or damaged, or holds another network.
        """
        tensors, card = load_weights(path, METHOD)
        full, half, quarter = (card.number(name, _MOST_CHANNELS) for name in ("full", "half", "quarter"))
        network = CompletionNetwork((full, half, quarter), card.number("blocks", _MOST_BLOCKS))
        fill_network(network, tensors, NETWORK, path)
        guesser = fill_network(MaskGuesser(full), tensors, GUESSER, path)
        return cls(method, network, guesser, card)

    @torch.no_grad()
    def guess(self, image: Image.Image) -> BoolArray:
        """Guess which pixels of a crop an occluder hides.

        The guesser learned from drawn occluders; how often it is right with others is not known.

        Args:
            image: The crop, in mode RGB.

        Returns:
            (H, W) bool.

        Raises:
            ConfigError: No weights are loaded.
        """
        if self.guesser is None:
            raise ConfigError('guessing what is hidden needs weights; "reid complete --train" writes them')
        probability = self.guesser(to_unit(_small(image)[None])).sigmoid()
        whole = functional.interpolate(probability, (image.height, image.width), mode="bilinear")
        hidden: BoolArray = (whole[0, 0] >= GUESS_THRESHOLD).numpy()
        return hidden

    @torch.no_grad()
    def fill(self, image: Image.Image, hidden: BoolArray) -> Image.Image:
        """Fill the hidden pixels of a crop.

        The network and the smooth fill see the crop at 64 x 32; what they predict is enlarged to the size of the crop.
        A crop without colour stays without colour.

        Args:
            image: The crop, in mode RGB.
            hidden: (H, W) bool, True where the crop is hidden.

        Returns:
            A crop of the same size whose visible pixels are those of ``image``, bit for bit.

        Raises:
            DataError: The mask has another size, or hides more than nine tenths of the crop.
        """
        if hidden.shape != (image.height, image.width):
            raise DataError(f"mask: expected {image.height} x {image.width}, got {hidden.shape}")
        if not hidden.any():
            return image
        if hidden.mean() > MOST_HIDDEN:
            raise DataError(
                f"the mask hides {hidden.mean():.0%} of the crop and leaves too little to complete it from; leave the"
                " crop or its mask out"
            )
        pixels = np.array(image)
        if self.method == "mean":
            pixels[hidden] = pixels[~hidden].mean(0).round()
            return Image.fromarray(pixels)
        small, mask = to_unit(_small(image)[None]), _small_mask(hidden)
        filled = smooth_fill(small, mask) if self.method == "smooth" else complete(self._network, small, mask)
        pixels[hidden] = _enlarged(filled, image.size, _is_colourless(pixels))[hidden]
        return Image.fromarray(pixels)

    @property
    def _network(self) -> nn.Module:
        if self.network is None:
            raise ConfigError("no weights are loaded")
        return self.network

    def change(self, masks: MaskFiles, guess: bool = False) -> ImageChange:
        """Return a change of images that fills occluders before a crop is embedded.

        The row keeps the name of the recorded crop, so no generated crop becomes a query or enters a gallery.

        Args:
            masks: The masks of the crops.
            guess: Whether the mask of a crop without one is guessed; else such a crop stays as it is.
        """
        return lambda sample, image: self.complete_crop(sample, image, masks, guess)[0]

    def complete_crop(
        self, sample: Sample, image: Image.Image, masks: MaskFiles, guess: bool = False
    ) -> tuple[Image.Image, float]:
        """Complete one crop.

        Args:
            sample: The crop.
            image: Its image, in mode RGB.
            masks: The masks of the crops.
            guess: As for :meth:`change`.  A guess that hides more than nine tenths is not used.

        Returns:
            The crop, and the share of it that was filled; 0 where it stays as it is.

        Raises:
            DataError: The mask cannot be used; the message names the crop.
        """
        hidden = masks.read(sample.path, image.size)
        if hidden is None and guess:
            hidden = self.guess(image)
            hidden = hidden if hidden.mean() <= MOST_HIDDEN else None
        if hidden is None or not hidden.any():
            return image, 0.0
        try:
            return self.fill(image, hidden), float(hidden.mean())
        except DataError as error:
            raise DataError(f"{sample.path}: {error}") from error


def _small(image: Image.Image) -> Tensor:
    """Resize a crop to (3, 64, 32) uint8, as in training."""
    resized = image.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def _small_mask(hidden: BoolArray) -> Tensor:
    """Resize a mask to (1, 1, 64, 32) bool.

    A position is hidden where any of its pixels is, so that no part of an occluder counts; where nothing would stay
    visible, it is hidden where half of its pixels are.
    """
    share = torch.from_numpy(hidden.astype(np.float32))[None, None]
    touched = functional.interpolate(share, (HEIGHT, WIDTH), mode="area") > 0
    touched |= functional.interpolate(share, (HEIGHT, WIDTH), mode="nearest") > 0
    return touched if not bool(touched.all()) else functional.interpolate(share, (HEIGHT, WIDTH), mode="area") >= 0.5


def _is_colourless(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bool:
    return bool((pixels[..., :1] == pixels[..., 1:]).all())


def _enlarged(
    filled: Tensor, size: tuple[int, int], colourless: bool
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Enlarge a completed crop (1, 3, 64, 32) to the size of its image: (H, W, 3) uint8."""
    if colourless:
        filled = filled.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    whole = functional.interpolate(filled, (size[1], size[0]), mode="bilinear")
    pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = to_pixels(whole)[0].permute(1, 2, 0).numpy()
    return pixels
