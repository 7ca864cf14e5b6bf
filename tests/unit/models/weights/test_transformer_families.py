"""Weights of TransReID, CLIP-ReID and SOLIDER: every file loads, computes what its project computes, or is refused.

Caught, because the slow forwards of the helpers give other numbers for them: a camera embedding on the wrong tokens or
without its factor, jigsaw patches of another shift or in their own order, local features that are not divided by four,
the wrong GELU, a missing projection, windows that see beyond their border, joined patches in another order, and another
part of meaning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from helpers import transformer_forwards as forwards
from helpers import transformer_tables as tables
from helpers.published_tables import Shapes, Table, blank, filled
from reid.errors import ConditionError, ConfigError, WeightsError
from reid.models.checkpoint import Checkpoint, load_checkpoint
from reid.models.embedder import Embedder
from reid.models.networks.backbones import build_backbone
from reid.models.networks.transformers import TRANSFORMERS
from reid.models.weights.transformer_families import camera_names, recognise_transformer
from reid.norm import Given

CLOSE, WRONG = 2e-5, 2e-4  # of unit vectors
CAMERAS = [4, 0]


@dataclass(frozen=True)
class Published:
    """A file as a project publishes it, and what the project computes with it."""

    backbone: str
    shapes: Shapes
    forward: Callable[..., Tensor]
    size: tuple[int, int]
    ways: dict[str, Any] = field(default_factory=dict)
    wrong: tuple[dict[str, Any], ...] = ()
    cameras: bool = False

    def images(self) -> Tensor:
        return torch.randn(2, 3, *self.size, generator=torch.Generator().manual_seed(1))

    def expected(self, table: Table, **changes: Any) -> Tensor:
        given = (CAMERAS,) if self.cameras else ()
        return functional.normalize(self.forward(table, self.images(), *given, **{**self.ways, **changes}))


FILES = {
    "TransReID with cameras and jigsaw patches": Published(
        "transreid_deit_small",
        tables.transreid(patches=10, cameras=6, jpm=True),
        forwards.transreid,
        (64, 32),
        {"stride": 12},
        ({"factor": 1.0}, {"shift": 6}, {"shuffled": False}, {"quarter": False}, {"everywhere": False}),
        cameras=True,
    ),
    "TransReID with an odd number of patches": Published(
        "transreid_deit_small+jpm8",
        tables.transreid(patches=15, jpm=True),
        forwards.transreid,
        (80, 48),
        {"shift": 8},
        ({"shift": 5},),
    ),
    "TransReID of its small ViT": Published(
        "transreid_vit_small",
        tables.transreid(768, 8, 2304, patches=8, qkv_bias=False),
        forwards.transreid,
        (64, 32),
        {"heads": 8, "scale": 768**-0.5},
        ({"scale": None}, {"heads": 12}),
    ),
    "CLIP-ReID with cameras": Published(
        "clipreid_vit_b16",
        tables.clip_reid(patches=10, cameras=6),
        forwards.clip_reid,
        (64, 32),
        {"stride": 12},
        ({"factor": 3.0}, {"everywhere": True}, {"quick": False}),
        cameras=True,
    ),
    "CLIP-ReID of its ResNet": Published(
        "clipreid_rn50",
        tables.clip_resnet(patches=8),
        forwards.clip_resnet,
        (64, 32),
        {},
        ({"strided": True}, {"last_stride": 2}, {"from_mean": False}),
    ),
    "SOLIDER": Published(
        "solider_swin_tiny",
        tables.solider(),
        forwards.solider,
        (96, 48),
        {},
        ({"masked": False}, {"by_columns": True}, {"part": 1.0}, {"part": None}),
    ),
    "SOLIDER without controller": Published(
        "solider_swin_tiny", tables.solider(controller=False), forwards.solider, (64, 32), {"part": None}
    ),
}


def table_of(name: str) -> Table:
    """Random numbers in the shapes of a file; a branch of a block is kept small, as it is after training."""
    table = filled(FILES[name].shapes)
    for key, tensor in table.items():
        if key.endswith(
            ("bn3.weight", "attn.proj.weight", "fc2.weight", "c_proj.weight", "out_proj.weight", "ffn.layers.1.weight")
        ):
            table[key] = tensor * 0.5
        elif key.endswith("q_proj.weight"):
            table[key] = tensor * 10  # attention that prefers some positions
        elif key.endswith("relative_position_index"):
            table[key] = torch.zeros(tensor.shape, dtype=torch.int64)
    return table


def saved(folder: Path, table: Table) -> Path:
    torch.save(
        {key if key.startswith("base") else f"module.{key}": tensor for key, tensor in table.items()}, folder / "w.pth"
    )
    return folder / "w.pth"


def embedded(checkpoint: Checkpoint, images: Tensor) -> Tensor:
    return checkpoint.embed(images, torch.tensor(CAMERAS) if checkpoint.domains else None)


@pytest.mark.parametrize("name", FILES)
def test_a_file_loads_and_computes_what_its_project_computes(name: str, tmp_path: Path) -> None:
    file, table = FILES[name], table_of(name)
    checkpoint = load_checkpoint(saved(tmp_path, table), file.backbone, size=file.size)
    found = embedded(checkpoint, file.images())
    assert float((found - file.expected(table)).abs().max()) < CLOSE
    for wrong in file.wrong:
        assert float((found - file.expected(table, **wrong)).abs().max()) > WRONG, wrong
    assert checkpoint.domains == (camera_names(6) if file.cameras else ())


@pytest.mark.parametrize("name", ["TransReID with cameras and jigsaw patches", "SOLIDER"])
def test_it_is_saved_with_its_cameras(name: str, tmp_path: Path) -> None:
    file = FILES[name]
    checkpoint = load_checkpoint(saved(tmp_path, table_of(name)), file.backbone, size=file.size)
    found = embedded(checkpoint, file.images())
    checkpoint.save(tmp_path / "ours.safetensors")
    again = load_checkpoint(tmp_path / "ours.safetensors")
    assert (again.fingerprint, again.domains) == (checkpoint.fingerprint, checkpoint.domains)
    assert torch.equal(embedded(again, file.images()), found)


@pytest.mark.parametrize("name", FILES)
def test_every_tensor_has_its_own_name_or_is_not_needed(name: str) -> None:
    file = FILES[name]
    table = blank(file.shapes)
    origin = recognise_transformer(table, file.backbone, file.size)
    with torch.device("meta"):
        network = Embedder(origin.spec)
    ours, left_out = origin.tensors_for(network.backbone, table)
    assert set(ours) == set(network.state_dict()) - {"backbone.transformer.cameras._extra_state"}
    assert len(ours) + len(left_out) == len(table)
    needed = (".qkv", "in_proj", "patch_embed", "cls_token", "pos", "sie_embed", "cv_embed", "b1.", "b2.")
    unused = (".3.", "_index", "fc.", "prompt", "blocks.11.")
    assert not [key for key in left_out if any(word in key for word in needed) and not any(w in key for w in unused)]
    added = {"base.new.weight": torch.zeros(3), "else.weight": torch.zeros(3)}
    assert len(origin.tensors_for(network.backbone, table | added)[0]) == len(ours) + 2, "for the loader to refuse"


@pytest.mark.parametrize("name", FILES)
def test_another_file_is_one_line(name: str, tmp_path: Path) -> None:
    """The beginning of a file of another project, another network of the same project, and a file that was cut off."""
    file, is_solider = FILES[name], "SOLIDER" in name
    other = tables.transreid(patches=8) if is_solider else tables.solider("backbone.")
    wider = file.shapes | {key: (7,) for key in file.shapes if key.endswith("bias")}
    cut = dict(list(file.shapes.items())[:9]) | {k: s for k, s in file.shapes.items() if "positional" in k}
    for shapes, word in ((other, "expected keys of"), (wider, "of another size"), (cut, "parameters, and the file")):
        if shapes is wider and "CLIP" in name:
            continue  # 300 MB for the same answer
        table = {key: torch.zeros(shape) for key, shape in list(shapes.items())[: None if shapes is wider else 40]}
        with pytest.raises(WeightsError) as caught:
            load_checkpoint(saved(tmp_path, table), file.backbone, size=file.size)
        assert "\n" not in str(caught.value)
        assert word in str(caught.value)
        assert str(tmp_path / "w.pth") in str(caught.value)


@pytest.mark.parametrize(
    ("patches", "size", "cameras", "jpm", "expected"),
    [
        (128, None, 0, False, "+256x128+stride16"),
        (210, None, 15, True, "+256x128+stride12+sie+jpm5"),
        (192, None, 6, False, "+384x128+stride16+sie"),
        (441, None, 20, True, "+256x256+stride12+sie+jpm8"),
        (162, None, 0, False, "+256x128+stride14"),
        (16 * 16, (256, 256), 0, True, "+256x256+stride16+jpm8"),
        (20 * 8, (320, 128), 0, False, "+320x128+stride16"),
    ],
)
def test_size_and_stride_follow_from_the_positions(
    patches: int, size: tuple[int, int] | None, cameras: int, jpm: bool, expected: str
) -> None:
    table = blank(tables.transreid(patches=patches, cameras=cameras, jpm=jpm))
    origin = recognise_transformer(table, "transreid_deit_small", size)
    assert origin.spec.backbone == "transreid_deit_small" + expected
    assert origin.spec.neck == "none"
    assert origin.cameras == camera_names(cameras)


def test_other_positions_are_refused_with_the_cure() -> None:
    table = blank(tables.transreid(patches=131))
    with pytest.raises(WeightsError, match=r"131 positions.*--backbone"):
        recognise_transformer(table, "transreid_deit_small")
    with pytest.raises(WeightsError, match=r"128 positions.*384x128"):
        recognise_transformer(blank(tables.transreid(patches=128)), "transreid_deit_small", (384, 128))


@pytest.fixture(scope="module")
def table() -> Table:
    return table_of(TestCameras.NAME)


@pytest.fixture(scope="module")
def checkpoint(table: Table, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(saved(tmp_path_factory.mktemp("w"), table), "transreid_deit_small", size=(64, 32))


class TestCameras:
    """What is known of a camera reaches its embedding, and what is not is decided by the policy."""

    NAME = "TransReID with cameras and jigsaw patches"

    def features(self, table: Table, vector: Tensor) -> Tensor:
        """What TransReID computes where both images have a camera of this vector."""
        changed = table | {"base.sie_embed": vector.reshape(1, 1, -1)}
        return functional.normalize(forwards.transreid(changed, FILES[self.NAME].images(), [0, 0], stride=12))

    def test_names_are_the_data_sets(self, checkpoint: Checkpoint, table: Table) -> None:
        assert checkpoint.domain_fields == ("camera",)
        images = FILES[self.NAME].images()
        with torch.inference_mode():
            found = Given(checkpoint.network)(images, "c3")
        assert float((found - self.features(table, table["base.sie_embed"][2])).abs().max()) < CLOSE
        assert [camera_names(count)[-1] for count in (6, 8, 15, 20, 3)] == ["c6", "c8", "c15", "c020", "c3"]

    def test_an_unknown_camera_is_refused_or_gets_the_mean(self, checkpoint: Checkpoint, table: Table) -> None:
        images, unknown = FILES[self.NAME].images(), torch.tensor([-1, -1])
        with pytest.raises(ConditionError):
            checkpoint.embed(images, unknown)
        prior = checkpoint.with_unseen_camera_policy("prior")
        assert prior.fingerprint != checkpoint.fingerprint
        expected = self.features(table, table["base.sie_embed"].mean(0))
        assert float((prior.embed(images, unknown) - expected).abs().max()) < CLOSE
        added = checkpoint.with_domains(["yard"])
        assert added.domains[-1] == "yard"
        assert float((added.embed(images, 6) - expected).abs().max()) < CLOSE

    def test_the_mixture_is_the_mean_of_all_cameras(self, checkpoint: Checkpoint, table: Table) -> None:
        mixed = checkpoint.with_unseen_camera_policy("mixture")
        each = torch.stack([self.features(table, vector) for vector in table["base.sie_embed"]])
        found = mixed.embed(FILES[self.NAME].images(), torch.tensor([-1, -1]))
        assert float((found - functional.normalize(each.mean(0))).abs().max()) < CLOSE

    def test_no_camera_is_nearest_without_statistics(self, checkpoint: Checkpoint) -> None:
        with pytest.raises(ConfigError, match="prior or mixture") as caught:
            checkpoint.with_unseen_camera_policy("nearest")
        assert "\n" not in str(caught.value)

    def test_factor_0_leaves_the_cameras_out(self, table: Table, tmp_path: Path) -> None:
        checkpoint = load_checkpoint(saved(tmp_path, table), "transreid_deit_small+sie0", size=(64, 32))
        assert checkpoint.domains == ()
        assert "base.sie_embed" in checkpoint.extra["left out"]
        images = FILES[self.NAME].images()
        expected = self.features(table, torch.zeros(384))
        assert float((checkpoint.embed(images) - expected).abs().max()) < CLOSE

    def test_views_of_a_camera_are_averaged(self, table: Table, tmp_path: Path) -> None:
        """VeRi-776 has an embedding for each camera and viewpoint; of a crop only the camera is known."""
        checkpoint = load_checkpoint(saved(tmp_path, table), "transreid_deit_small+sie1+views2", size=(64, 32))
        assert checkpoint.domains == ("c1", "c2", "c3")
        expected = self.features(table, table["base.sie_embed"][2:4].mean(0) / 3)
        assert float((checkpoint.embed(FILES[self.NAME].images(), 1) - expected).abs().max()) < CLOSE

    def test_another_size_is_one_line(self, checkpoint: Checkpoint) -> None:
        with pytest.raises(ConfigError, match="64x32 pixels, got 96x32"):
            checkpoint.embed(torch.zeros(1, 3, 96, 32), 0)


@pytest.mark.parametrize(
    "name",
    [
        "transreid_vit_base+jpn",
        "transreid_vit_base+jpm+jpm",
        "transreid_vit_base+8x8",
        "transreid_vit_base+256x128+stride0",
        "clipreid_vit_b16+jpm",
        "transreid_vit_base+semantic0.2",
        "clipreid_rn50+sie",
        "solider_swin_tiny+sie",
        "solider_swin_tiny+semantic2",
    ],
)
def test_options_that_a_network_does_not_have(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_backbone(name)
    assert f'backbone "{name}"' in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_sizes_are_those_of_the_projects(name: str) -> None:
    """Numbers of parameters of the trunk, counted from the published shapes."""
    wide = {"width": 768, "hidden": 3072}
    shapes = {
        "transreid_vit_base": tables.transreid(**wide, patches=128),
        "transreid_vit_small": tables.transreid(768, 8, 2304, patches=128, qkv_bias=False),
        "transreid_deit_small": tables.transreid(patches=128),
        "clipreid_vit_b16": tables.clip_reid(patches=128),
        "clipreid_rn50": tables.clip_resnet(patches=128),
        "solider_swin_tiny": tables.solider(),
        "solider_swin_small": tables.solider(depths=(2, 2, 18, 2)),
        "solider_swin_base": tables.solider(width=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32)),
    }[name]
    origin = recognise_transformer(blank(shapes), name)
    with torch.device("meta"):
        backbone = build_backbone(origin.spec.backbone)
    ours, _ = origin.tensors_for(backbone, blank(shapes))
    own = {f"backbone.{key}": tensor.shape for key, tensor in backbone.state_dict().items()}
    assert {key: tensor.shape for key, tensor in ours.items()} == own
