"""Cards: the image preparation of a model, stated or known by its name, and never guessed.

Every transform is compared with a loop over pixels.  Caught: colours in the order of the image, a mean in the order
of the image instead of the model's, a scale that is left out, a size that contradicts the model's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from reid.errors import ConfigError, WeightsError
from reid.models.model_card import KNOWN_MODELS, Card, read_card

CAFFE = Card("BGR", 1, (104, 117, 123), (1, 2, 4), 3, 2)
TORCH = Card("RGB", 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 3, 2)


def image(height: int = 3, width: int = 2) -> Tensor:
    return torch.randint(0, 256, (1, 3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def fed(card: Card, pixels: Tensor) -> np.ndarray:
    """(1, 3, H, W) as the program feeds it to a model."""
    transform = card.transform((None, None))
    return transform.normalise(pixels)[:, list(card.channels)].numpy()


def by_hand(card: Card, pixels: Tensor) -> np.ndarray:
    """The same, pixel by pixel as a card is read."""
    found = np.empty(pixels.shape, np.float32)
    for channel, colour in enumerate(card.colours):
        for y in range(pixels.shape[2]):
            for x in range(pixels.shape[3]):
                value = float(pixels[0, "RGB".index(colour), y, x])
                found[0, channel, y, x] = (value / card.scale - card.mean[channel]) / card.std[channel]
    return found


@pytest.mark.parametrize("card", [CAFFE, TORCH, *KNOWN_MODELS.values()])
def test_images_are_prepared_as_the_card_states(card: Card) -> None:
    np.testing.assert_allclose(fed(card, image()), by_hand(card, image()), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        Card("RGB", 1, CAFFE.mean, CAFFE.std, 3, 2),  # colours as they are in the image
        Card("BGR", 1, CAFFE.mean[::-1], CAFFE.std, 3, 2),  # the mean in the order of the image
        Card("BGR", 255, CAFFE.mean, CAFFE.std, 3, 2),  # pixels of 0..1
    ],
)
def test_the_loop_refuses_wrong_preparations(wrong: Card) -> None:
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(fed(wrong, image()), by_hand(CAFFE, image()), rtol=1e-2, atol=1e-2)


def test_intels_models_are_known_by_name_and_others_need_a_card(tmp_path: Path) -> None:
    card = read_card(tmp_path / "person-reidentification-retail-0288.xml")
    assert (card.colours, card.scale, card.transform((256, 128)).interpolation) == ("BGR", 1, "bilinear")
    with pytest.raises(WeightsError, match=r"model\.toml.*colours = "):
        read_card(tmp_path / "model.xml")


def test_a_card_beside_the_file_counts_before_its_name(tmp_path: Path) -> None:
    name = "person-reidentification-retail-0288"
    (tmp_path / f"{name}.toml").write_text(
        'colours = "RGB"\nscale = 255\nmean = [0.5, 0.5, 0.5]\nstd = [1, 1, 1]\ninterpolation = "bicubic"\n'
    )
    card = read_card(tmp_path / f"{name}.xml")
    assert card == Card("RGB", 255, (0.5, 0.5, 0.5), (1, 1, 1), interpolation="bicubic")


FULL = {"colours": '"RGB"', "scale": "255", "mean": "[0, 0, 0]", "std": "[1, 1, 1]"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"colours": '"GBR"'}, '"RGB" or "BGR"'),
        ({"colours": "[1]"}, '"RGB" or "BGR"'),
        ({"scale": "0"}, "scale: "),
        ({"scale": "nan"}, "scale: "),
        ({"scale": '"1"'}, "scale: "),
        ({"mean": "[1, 2]"}, "mean: "),
        ({"mean": "0.5"}, "mean: "),
        ({"std": '["a", 1, 1]'}, "std: "),
        ({"std": "[1, 0, 1]"}, "model.toml: std: expected three numbers above 0, got [1, 0, 1]"),
        ({"mean": "[nan, 0, 0]"}, "model.toml: mean: "),
        ({"height": "64.5"}, "height: "),
        ({"width": "true"}, "width: "),
        ({"interpolation": '"bilinea"'}, 'did you mean "bilinear"'),
        ({"interpolation": "[1]"}, "interpolation"),
        ({"color": '"RGB"'}, 'did you mean "colours"'),
        ({"mean": None, "std": None}, "mean, std"),
        ({"scale": "= 1"}, "model.toml: this card of model.onnx is not TOML"),
    ],
)
def test_a_card_that_cannot_be_right_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, str | None], expected: str
) -> None:
    lines = {**FULL, **changes}
    text = "\n".join(f"{key} = {value}" for key, value in lines.items() if value is not None)
    (tmp_path / "model.toml").write_text(text)
    with pytest.raises((WeightsError, ConfigError)) as caught:
        read_card(tmp_path / "model.onnx").transform((64, 32))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sides_of_the_model_of_the_user_and_of_the_card() -> None:
    plain, sized = Card("RGB", 1, (0, 0, 0), (1, 1, 1)), Card("RGB", 1, (0, 0, 0), (1, 1, 1), 64, 32)

    def sides(card: Card, *given: tuple[int | None, int | None]) -> tuple[int, int]:
        transform = card.transform(*given)
        return transform.height, transform.width

    assert sides(plain, (256, 128)) == sides(plain, (None, None), (256, 128)) == (256, 128)
    assert sides(sized, (None, None)) == sides(sized, (64, None)) == sides(sized, (64, 32), (64, 32)) == (64, 32)
    assert sides(sized, (None, None), (128, 64)) == (128, 64)  # the size of the user counts before the card
    for card, given, expected in (
        (plain, ((None, 128),), "^height: "),
        (sized, ((64, 128),), "^width: .*128 pixels.*card says 32"),
        (plain, ((64, 32), (64, 48)), "^width: .*32 pixels.*--size says 48"),
    ):
        with pytest.raises(ConfigError, match=expected):
            sides(card, *given)
