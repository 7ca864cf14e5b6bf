"""Transformers of re-identification: any number of images, each by itself, and cameras in any order."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reid.models.networks.semantic_swin import SemanticSwin, SwinShape
from reid.models.networks.transformers import TransformerOptions, parse_transformer, transformer_name
from reid.models.networks.vision_transformer import TokenShape, VisionTransformer, jigsaw_order
from reid.norm import Given, extract
from reid.norm.convert import take_rows

SMALL = TokenShape(32, depth=2, heads=4, hidden=64)
IMAGES = torch.randn(3, 3, 64, 32, generator=torch.Generator().manual_seed(0))


def network(shape: TokenShape = SMALL) -> nn.Module:
    """A small TransReID of two cameras."""
    torch.manual_seed(0)
    plain = VisionTransformer(shape, 64, 32, 12, has_cameras=True, jigsaw=0 if shape.is_clip else 5)
    converted = take_rows(plain, ("door", "yard"), [None, None])
    nn.init.normal_(converted.get_parameter("cameras.vectors"))
    return converted.eval()


NETWORKS = {
    "transreid": lambda: extract(network(), "yard"),
    "clipreid": lambda: extract(network(TokenShape(32, depth=2, heads=4, hidden=64, projection=8)), "yard"),
    "solider": lambda: SemanticSwin(SwinShape(16, (2, 2), (2, 4)), 0.2).eval(),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_an_exported_network_takes_any_number_of_images(name: str) -> None:
    plain = NETWORKS[name]()
    program = torch.export.export(plain, (IMAGES[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(IMAGES), plain(IMAGES))


@pytest.mark.parametrize("name", NETWORKS)
def test_an_image_does_not_change_another(name: str) -> None:
    plain = NETWORKS[name]()
    with torch.inference_mode():
        together = plain(IMAGES)
        for row in range(len(IMAGES)):
            torch.testing.assert_close(plain(IMAGES[row : row + 1]), together[row : row + 1], rtol=1e-4, atol=1e-5)


def test_cameras_in_any_order_are_each_its_own() -> None:
    """Sorted or not, by name or by index, and as weights: a row is what its camera alone gives."""
    converted = network()
    given = Given(converted)
    names = ["yard", "door", "yard"]
    with torch.inference_mode():
        alone = torch.cat([given(IMAGES[row : row + 1], name) for row, name in enumerate(names)])
        assert float((alone - given(IMAGES, "door")).abs().max()) > 1e-3
        for domain in (names, torch.tensor([1, 0, 1]), torch.eye(2)[[1, 0, 1]]):
            torch.testing.assert_close(given(IMAGES, domain), alone, rtol=1e-4, atol=1e-5)
        yard = extract(converted, "yard")
        torch.testing.assert_close(yard(IMAGES), given(IMAGES, "yard"))


@pytest.mark.parametrize(("patches", "shift"), [(8, 5), (15, 5), (128, 5), (210, 5), (441, 8)])
def test_jigsaw_patches_are_all_there_once(patches: int, shift: int) -> None:
    order = jigsaw_order(patches, shift)
    assert len(order) == patches + patches % 2
    assert set(order) == set(range(patches))
    assert order[0] == (shift - 1) % patches


def test_a_name_is_read_as_it_is_written() -> None:
    options = TransformerOptions((384, 128), 12, 3.0, jigsaw=8)
    name = transformer_name("transreid_vit_base", options)
    assert name == "transreid_vit_base+384x128+stride12+sie+jpm8"
    assert parse_transformer(name) == ("transreid_vit_base", options)
    assert transformer_name("solider_swin_tiny", TransformerOptions(part=0.2)) == "solider_swin_tiny+semantic0.2"
    assert parse_transformer("clipreid_vit_b16+sie")[1].camera_factor == 1.0
