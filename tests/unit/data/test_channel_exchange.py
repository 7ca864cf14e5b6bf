"""Channel exchange agrees with a loop over pixels, and its choices have the published frequencies."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reid.data.channel_exchange import GREY, UNCHANGED, draw_exchanges, exchange_channels
from reid.errors import DataError


def by_pixel(image: torch.Tensor, choice: int) -> torch.Tensor:
    result = image.clone()
    for row in range(image.shape[1]):
        for column in range(image.shape[2]):
            red, green, blue = (int(value) for value in image[:, row, column])
            if choice == GREY:
                result[:, row, column] = round(0.299 * red + 0.587 * green + 0.114 * blue)
            elif choice != UNCHANGED:
                result[:, row, column] = (red, green, blue)[choice]
    return result


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=0, max_size=6), st.integers(0, 99))
def test_it_agrees_with_a_loop_over_pixels(choices: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (len(choices), 3, 5, 4), dtype=torch.uint8, generator=generator)
    kept = images.clone()
    exchanged = exchange_channels(images, torch.tensor(choices, dtype=torch.int64))
    assert torch.equal(images, kept)
    for image, result, choice in zip(images, exchanged, choices, strict=True):
        difference = (by_pixel(image, choice).int() - result.int()).abs().max()
        assert int(difference) <= int(choice == GREY)  # ties of rounding


def test_the_choices_have_the_published_frequencies() -> None:
    """R, G and B a quarter each, and of the last quarter one half grey; not a fifth each."""
    drawn = draw_exchanges(40_000, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=5) / len(drawn)
    assert shares.tolist() == pytest.approx([0.25, 0.25, 0.25, 0.125, 0.125], abs=0.01)
    assert (shares - 0.2).abs().min() > 0.04
    assert torch.equal(drawn, draw_exchanges(40_000, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.uint8)])
def test_other_images_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(DataError):
        exchange_channels(images, torch.tensor([0]))


@pytest.mark.parametrize("choices", [[5], [-1], [0, 1]])
def test_choices_that_do_not_fit_are_refused(choices: list[int]) -> None:
    with pytest.raises(DataError):
        exchange_channels(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.tensor(choices))
