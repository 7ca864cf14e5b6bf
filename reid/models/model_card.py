"""Cards: how images are prepared for a model that another program runs.

Such a model does not state its image preparation, and one that gets wrong colours still returns vectors; so nothing is
guessed.  The preparation stands in a card beside the model, or is known by the model's name.  A card is
a small TOML file, ``model.toml`` beside ``model.onnx`` or ``model.xml``::

    colours = "BGR"          # order of the input's channels
    scale = 1                # pixels of 0..255 are divided by it first: 255 for values of 0..1
    mean = [0, 0, 0]         # is subtracted next, in the order of the channels
    std = [1, 1, 1]          # divides last
    height = 256             # only where the model takes any size
    width = 128
    interpolation = "bilinear"  # may be left out

    [int8]                   # only where "reid export --int8" wrote it: what that cost, for people to read
    crops = 128
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from reid.data.transforms import INTERPOLATIONS, EvaluationTransform, Triple
from reid.errors import ConfigError, WeightsError, unknown_name
from reid.structured_text import read_toml

ORDERS = {"RGB": (0, 1, 2), "BGR": (2, 1, 0)}  # which of R, G, B each channel of the input is
EXAMPLE = 'colours = "RGB", scale = 255, mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225]'
FIGURES = "int8"  # table of a card with what a quantization to int8 cost; it changes nothing
Sides = tuple[int | None, int | None]  # height and width in pixels; None where the model takes any


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Card:
    """The image preparation of one model.

    Args:
        colours: The order of the input's channels: "RGB" or "BGR".
        scale: Divides pixels of 0..255.
        mean: Is subtracted from scaled pixels, in the order of ``colours``.
        std: Divides after that, in the order of ``colours``.
        height: Pixels; None where the model has a fixed height or takes any.
        width: Pixels; None where the model has a fixed width or takes any.
        interpolation: How images are resized.

    Raises:
        ConfigError: If a value cannot be used.

    Example:
        >>> card = Card("BGR", 1, (0, 0, 0), (1, 1, 1))
        >>> card.channels
        (2, 1, 0)
        >>> transform = card.transform((256, 128))
        >>> transform.height, transform.width
        (256, 128)
    """

    colours: str
    scale: float
    mean: Triple
    std: Triple
    height: int | None = None
    width: int | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.colours not in ORDERS:
            raise ConfigError(f'colours: expected "RGB" or "BGR", got {self.colours!r}')
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, (list, tuple)) or len(values) != 3 or not all(map(_is_number, values)):
                raise ConfigError(f"{name}: expected three numbers, got {values!r}")
        if not all(value > 0 for value in self.std):
            raise ConfigError(f"std: expected three numbers above 0, got {list(self.std)}")
        if not isinstance(self.interpolation, str) or self.interpolation not in INTERPOLATIONS:
            raise ConfigError(unknown_name("interpolation", str(self.interpolation), INTERPOLATIONS))
        if not _is_number(self.scale) or not self.scale > 0:
            raise ConfigError(f"scale: expected a number above 0, such as 1 or 255, got {self.scale!r}")
        for name in ("height", "width"):
            side = getattr(self, name)
            if side is not None and (not isinstance(side, int) or isinstance(side, bool)):
                raise ConfigError(f"{name}: expected a whole number of pixels, got {side!r}")

    @property
    def channels(self) -> tuple[int, ...]:
        """Which of R, G, B (0, 1, 2) each channel of the model's input is, in their order."""
        return ORDERS[self.colours]

    def transform(self, fixed: Sides, asked: Sides = (None, None)) -> EvaluationTransform:
        """Return the image preparation that gives the model the range and the size that it expects.

        Args:
            fixed: The sides that the model's input has.
            asked: The sides that the user asks for.

        Raises:
            ConfigError: If sides contradict each other, or a side is not known at all.
        """
        height = _choose_side("height", fixed[0], asked[0], self.height)
        width = _choose_side("width", fixed[1], asked[1], self.width)
        # (x / scale - mean) / std as (x / 255 - mean') / std'
        unit = self.scale / 255
        mean, std = (tuple(unit * values[channel] for channel in self.channels) for values in (self.mean, self.std))
        return EvaluationTransform(height, width, _triple(mean), _triple(std), self.interpolation)


# Intel's Open Model Zoo: blue first, 0..255, resized bilinearly (each model's README.md and accuracy-check.yml).
INTEL = Card("BGR", 1, (0, 0, 0), (1, 1, 1), 256, 128)
KNOWN_MODELS = {f"person-reidentification-retail-{number}": INTEL for number in ("0277", "0286", "0287", "0288")}


def read_card(model: Path) -> Card:
    """Read the card beside a model, or look it up by the model's name.

    Args:
        model: The file of the model; its card has the same name with the suffix ``.toml``.

    Raises:
        WeightsError: If there is no card, or the card cannot be used.
    """
    path = beside(model, ".toml")
    if not path.is_file():
        if model.stem in KNOWN_MODELS:
            return KNOWN_MODELS[model.stem]
        raise WeightsError(
            f"{model}: does not say how it wants its images, and nothing is guessed; write it into {path}, such as"
            f" {EXAMPLE}, one a line (docs/your-cameras.md explains them)"
        )
    try:
        return _parse_card(read_toml(path))
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}") from error
    except (OSError, ValueError) as error:  # not TOML, or not text
        raise WeightsError(
            f"{path}: this card of {model.name} is not TOML ({error}); a card has {EXAMPLE}, one a line"
        ) from error


def beside(model: Path, suffix: str) -> Path:
    """Find the file with another suffix beside a model, or beside the file that a link to the model leads to.

    Args:
        model: The file of the model.
        suffix: The suffix in small letters; a file with capitals is found too.

    Returns:
        The path, which may not exist.
    """
    for name in (model, *([model.resolve()] if model.is_symlink() else [])):
        for form in (suffix, suffix.upper()):
            if name.with_suffix(form).is_file():
                return name.with_suffix(form)
    return model.with_suffix(suffix)


def _parse_card(values: Mapping[str, Any]) -> Card:
    known = [field.name for field in fields(Card)]
    values = {key: value for key, value in values.items() if key != FIGURES or not isinstance(value, dict)}
    for key in values:
        if key not in known:
            raise ConfigError(unknown_name("key of a card", key, known))
    missing = [key for key in ("colours", "scale", "mean", "std") if key not in values]
    if missing:
        raise ConfigError(f"{', '.join(missing)} not said; a card needs all of: {EXAMPLE}")
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Card(**given)


def _choose_side(name: str, fixed: int | None, asked: int | None, stated: int | None) -> int:
    """The fixed side of a model, or the one that the user or the card gives; raises where they disagree."""
    for source, side in (("--size", asked), ("its card", stated)):
        if fixed is not None and side not in (None, fixed):
            raise ConfigError(f"{name}: the model takes {fixed} pixels and no others, {source} says {side}")
    side = fixed or asked or stated
    if side is None:
        raise ConfigError(f"{name}: the model takes any; say it in its card, or give --size")
    return side


def _triple(values: tuple[float, ...]) -> Triple:
    return values[0], values[1], values[2]
