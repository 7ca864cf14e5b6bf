"""The twenty corruptions of the re-identification benchmark (Chen et al., NeurIPS 2021, arXiv 2111.00880).

An image is corrupted as it comes, before it is resized.  What is random follows from the pixels of the image and a
seed, so the same image is corrupted in the same way in every folder and in every order.  An infrared image stays
without colour: its noise is that of one sensor.  It gets every corruption but the one that changes colours only.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from reid.data.corruptions import blur_corruptions as blur
from reid.data.corruptions import digital_corruptions as digital
from reid.data.corruptions import noise_corruptions as noise
from reid.data.corruptions import weather_corruptions as weather
from reid.data.corruptions.pixel_filters import Pixels, Random
from reid.errors import ConfigError, unknown_name
from reid.records import Modality, Sample

CORRUPTIONS: dict[str, Callable[[Pixels, int, Random], Pixels]] = {
    "gaussian_noise": noise.add_gaussian_noise,
    "shot_noise": noise.add_shot_noise,
    "impulse_noise": noise.add_impulse_noise,
    "speckle_noise": noise.add_speckle_noise,
    "defocus_blur": blur.blur_defocus,
    "glass_blur": blur.blur_glass,
    "motion_blur": blur.blur_motion,
    "zoom_blur": blur.blur_zoom,
    "gaussian_blur": blur.blur_gaussian,
    "snow": weather.add_snow,
    "frost": weather.add_frost,
    "fog": weather.add_fog,
    "brightness": weather.brighten,
    "spatter": weather.add_spatter,
    "rain": weather.add_rain,
    "contrast": digital.lower_contrast,
    "elastic_transform": digital.bend,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.compress_jpeg,
    "saturate": digital.change_saturation,
}
COLOUR_ONLY = frozenset({"saturate"})  # corruptions that an infrared camera cannot have
SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Corruption:
    """What happens to one image: a key of ``CORRUPTIONS`` and a severity of 0..5, where 0 leaves it as it is."""

    name: str
    severity: int


def corrupt_image(
    image: Image.Image, corruption: Corruption, seed: int = 0, modality: Modality = Modality.VISIBLE
) -> Image.Image:
    """Corrupt an image.

    Args:
        image: The image in mode RGB; it does not change.
        corruption: What to do.
        seed: Decides, with the pixels of the image, everything that is random.
        modality: An infrared image is corrupted as one channel and stays grey.

    Returns:
        An image of the same size in mode RGB.

    Raises:
        ConfigError: The corruption is unknown, its severity is not in 0..5, or no infrared camera can have it.

    Example:
        >>> grey = Image.new("RGB", (4, 8), (100, 100, 100))
        >>> corrupt_image(grey, Corruption("brightness", 1)).getpixel((0, 0))  # 0.1 of 255 brighter
        (126, 126, 126)
    """
    check_corruptions([corruption.name])
    if corruption.severity not in (0, *SEVERITIES):
        raise ConfigError(f"corruption {corruption.name}: expected a severity of 0..5, got {corruption.severity}")
    is_grey = modality is Modality.INFRARED
    if is_grey and corruption.name in COLOUR_ONLY:
        raise ConfigError(f"corruption {corruption.name}: changes colours only, which an infrared camera has not")
    if corruption.severity == 0:
        return image.copy()
    values = np.asarray(image, np.uint8)
    random = _generator(values, seed, corruption.name, corruption.severity)
    pixels = values.astype(np.float64) / 255
    if is_grey:
        pixels = np.asarray(image.convert("L"), np.float64)[:, :, None] / 255
    return digital.to_image(CORRUPTIONS[corruption.name](pixels, corruption.severity, random)).convert("RGB")


def check_corruptions(names: Sequence[str]) -> None:
    """Refuse an unknown corruption."""
    for name in names:
        if name not in CORRUPTIONS:
            raise ConfigError(unknown_name("corruption", name, CORRUPTIONS))


@dataclass(frozen=True)
class CorruptionPlan:
    """Which corruption every image gets: as the benchmark has it, one of all types and severities by chance.

    Args:
        names: The corruptions to draw from; () means all.
        severity: The severity of all images; None draws one of 1..5 for each.
        seed: Decides the draws.

    Raises:
        ConfigError: A corruption is unknown, a severity is not in 0..5, or the seed is negative.

    Example:
        >>> plan = CorruptionPlan(("fog",), 3)
        >>> plan.draw(Image.new("RGB", (4, 8)), Modality.VISIBLE)
        Corruption(name='fog', severity=3)
    """

    names: tuple[str, ...] = ()
    severity: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_corruptions(self.names)
        if self.severity is not None and self.severity not in (0, *SEVERITIES):
            raise ConfigError(f"corruption: expected a severity of 0..5, got {self.severity}")
        if self.seed < 0:
            raise ConfigError(f"corruption: expected a seed of 0 or more, got {self.seed}")

    def draw(self, image: Image.Image, modality: Modality) -> Corruption:
        """Draw the corruption of an image; an infrared one draws among those that an infrared camera can have.

        Args:
            image: The image in mode RGB.
            modality: The light that its camera records.

        Raises:
            ConfigError: All corruptions of the plan change colours only, and the image is infrared.
        """
        infrared = modality is Modality.INFRARED
        known = [name for name in self.names or CORRUPTIONS if not (infrared and name in COLOUR_ONLY)]
        if not known:
            raise ConfigError(
                f"corruption {', '.join(self.names)}: changes colours only, which infrared cameras have not;"
                " name further corruptions, or leave the infrared images out"
            )
        random = _generator(np.asarray(image, np.uint8), self.seed, "draw")
        name = known[int(random.integers(len(known)))]
        drawn = SEVERITIES[int(random.integers(len(SEVERITIES)))]
        return Corruption(name, drawn if self.severity is None else self.severity)

    def apply(self, sample: Sample, image: Image.Image) -> Image.Image:
        """Draw the corruption of a sample's image, and apply it."""
        corruption = self.draw(image, sample.modality)
        return corrupt_image(image, corruption, self.seed, sample.modality)

    def text(self) -> str:
        """Describe the plan in a line, as in "all types, severity 1-5, seed 0"."""
        names = ", ".join(self.names) or "all types"
        return f"{names}, severity {'1-5' if self.severity is None else self.severity}, seed {self.seed}"


def _generator(values: np.typing.NDArray[np.uint8], seed: int, *words: object) -> Random:
    """Create the generator of an image: it follows from its pixels, the seed and the words."""
    content = np.ascontiguousarray(values)
    keys = [zlib.crc32(content.data), *content.shape[:2], *(zlib.crc32(str(word).encode()) for word in words)]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *keys])))
