"""Weights as other projects publish them: every tensor gets its own name, and the network computes what theirs does.

Caught, because the plain forwards of the helpers give other numbers for them: a ReLU too many or too few in the stem,
pooling that starts elsewhere, a last stage of the wrong stride, halves of IBN swapped, non-local blocks in the
wrong positions or order, mean instead of GeM, features before the neck instead of behind it, instance norm on the
wrong side of the shortcut, and any two tensors of one shape exchanged.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import published_tables as tables
from helpers.published_cases import CASES, EXCHANGED, baseline, fastreid
from helpers.published_tables import Table, blank, filled
from reid.data.transforms import EvaluationTransform
from reid.errors import ConfigError, WeightsError
from reid.models.checkpoint import load_checkpoint
from reid.models.embedder import Embedder, NetworkSpec
from reid.models.networks.backbones import build_backbone
from reid.models.networks.resnet_changes import CHANGES
from reid.models.weights.families import FAMILIES, PUBLISHED_NAMES, recognise
from reid.models.weights.tensor_tables import load_strictly, table_of
from reid.norm import Given, camera_batchnorm, convert_norm

IMAGES = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(1))
CLOSE = 5e-6  # of unit vectors; what is wrong differs by twenty times that
WRONG = 1e-4


def adapted(table: Table, backbone: str) -> Embedder:
    """The network of a published table, as :func:`load_checkpoint` builds it, without a file on the way."""
    origin = recognise(table, backbone)
    network = Embedder(origin.spec).eval()
    load_strictly(network, origin.tensors_for(network.backbone, table)[0], "here")
    return network


def saved(folder: Path, table: Table) -> Path:
    torch.save({"model": {f"module.{key}": tensor for key, tensor in table.items()}}, folder / "w.pth")
    return folder / "w.pth"


def farthest(one: Tensor, other: Tensor) -> float:
    return float((F.normalize(one) - F.normalize(other)).abs().max())


@pytest.mark.parametrize("name", CASES)
def test_the_network_computes_what_its_project_computes(name: str) -> None:
    case = CASES[name]
    table = case.make(filled)
    network = adapted(table, case.backbone)
    assert network.spec == case.spec
    with torch.inference_mode():
        embeddings = network(IMAGES)
        assert embeddings.isfinite().all()
        assert farthest(embeddings, case.forward(table, IMAGES)) < CLOSE
        for wrong in case.wrong:
            assert farthest(embeddings, case.forward(table, IMAGES, **wrong)) > WRONG, wrong
        for one, other in EXCHANGED.get(name, ()):
            assert table[one].shape == table[other].shape
            exchanged = table | {one: table[other], other: table[one]}
            assert farthest(embeddings, case.forward(exchanged, IMAGES)) > WRONG, one


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_but_the_classifiers_has_its_own_name(name: str) -> None:
    case = CASES[name]
    table = case.make(blank)
    origin = recognise(table, case.backbone)
    ours, left_out = origin.tensors_for(build_backbone(origin.spec.backbone), table)
    heads = ("classifier.", "heads.weight", "heads.classifier.", "pixel_")
    expected = {key for key in table if key.startswith(heads) or key in ("fc.weight", "fc.bias")}
    assert set(left_out) == expected
    kept = [table[key] for key in table if key not in expected]
    assert sorted(map(id, ours.values())) == sorted(map(id, kept))  # the very tensors, each once


TRUNK = build_backbone("resnet18")  # families other than torchreid's, torchvision's and timm's do not ask it


class TestPreparation:
    """Images as each family prepares them."""

    def transform(self, table: Table) -> EvaluationTransform:
        return recognise(table, "resnet50").transform_of(TRUNK, table)

    def test_fastreid_is_bicubic_and_its_stronger_baseline_tall(self) -> None:
        assert self.transform(fastreid()) == EvaluationTransform(interpolation="bicubic")
        assert self.transform(fastreid(strong=True)) == EvaluationTransform(384, 128, interpolation="bicubic")

    def test_mean_and_deviation_in_the_file_count(self) -> None:
        deviation = torch.tensor([51.0, 102.0, 25.5]).view(1, 3, 1, 1)
        transform = self.transform(fastreid(old=True) | {"pixel_std": deviation})
        assert transform.mean == pytest.approx((0.485, 0.456, 0.406), abs=1e-6)
        assert transform.std == pytest.approx((0.2, 0.4, 0.1), abs=1e-6)

    def test_a_mean_of_one_number_is_refused(self) -> None:
        with pytest.raises(WeightsError, match="pixel_mean"):
            self.transform(fastreid(old=True) | {"pixel_mean": torch.ones(1)})

    @pytest.mark.parametrize("name", ["strong baseline", "AGW", "behind backbone.", "torchreid resnet50"])
    def test_the_others_are_bilinear(self, name: str) -> None:
        assert self.transform(CASES[name].make(blank)) == EvaluationTransform(256, 128)

    def test_timm_states_its_own(self) -> None:
        timm = pytest.importorskip("timm", reason='the extra "timm" is not installed')
        published = timm.get_pretrained_cfg("mobilenetv3_small_050")
        transform = build_backbone("timm:mobilenetv3_small_050").transform
        assert (transform.mean, transform.std) == (published.mean, published.std)
        assert transform.interpolation == published.interpolation == "bicubic"
        assert (transform.height, transform.width) == (256, 128)


class TestFiles:
    """From a file to a checkpoint and back; a ResNet-18 with FastReID's keys is small enough."""

    def table(self) -> Table:
        trunk = {f"backbone.{key}": tensor for key, tensor in table_of(TRUNK).items()}
        neck = tables.filled(tables.batch_norm("heads.bottleneck.0", 512))
        return trunk | neck | {"heads.weight": torch.ones(11, 512), "heads.pool_layer.p": torch.tensor([2.0])}

    def refusal(self, folder: Path, table: Table) -> str:
        with pytest.raises(WeightsError) as caught:
            load_checkpoint(saved(folder, table), "resnet18")
        assert str(caught.value).startswith(f"{folder / 'w.pth'} into resnet18: ")
        return str(caught.value)

    def test_preparation_and_origin_are_saved_with_the_weights(self, tmp_path: Path) -> None:
        theirs = load_checkpoint(saved(tmp_path, self.table()), "resnet18")
        assert theirs.spec == NetworkSpec("resnet18+ceil", "gem", "bnneck")
        assert theirs.transform == EvaluationTransform(interpolation="bicubic")
        assert theirs.extra == {"family": "fastreid", "colours": "RGB", "left out": "heads.weight"}
        theirs.save(tmp_path / "ours.safetensors")
        ours = load_checkpoint(tmp_path / "ours.safetensors")
        assert (ours.transform, ours.extra, ours.fingerprint) == (theirs.transform, theirs.extra, theirs.fingerprint)
        assert torch.equal(ours.embed(IMAGES), theirs.embed(IMAGES))

    def test_a_reduced_embedding_is_refused(self, tmp_path: Path) -> None:
        table = self.table() | {"heads.bottleneck.0.weight": torch.zeros(64, 512, 1, 1)}
        assert "512 features to 64" in self.refusal(tmp_path, table)

    def test_two_tensors_for_one_name(self, tmp_path: Path) -> None:
        message = self.refusal(tmp_path, self.table() | {"heads.bnneck.weight": torch.ones(512)})
        assert "neck.weight" in message
        assert "heads.bnneck.weight" in message

    def test_lost_tensors_are_named_as_ours(self, tmp_path: Path) -> None:
        table = self.table()
        del table["heads.bottleneck.0.running_var"], table["backbone.layer4.1.bn2.bias"]
        assert "2 missing: backbone.layer4.1.bn2.bias, neck.running_var;" in self.refusal(tmp_path, table)

    def test_tensors_that_the_network_does_not_have_keep_their_names(self, tmp_path: Path) -> None:
        unknown = {"backbone.layer1.0.se.fc.0.weight": torch.zeros(4, 4), "b1_head.weight": torch.zeros(1)}
        message = self.refusal(tmp_path, self.table() | unknown)
        assert "2 unexpected: backbone.layer1.0.se.fc.0.weight, b1_head.weight;" in message


def test_changes_that_the_user_names_are_kept() -> None:
    assert recognise(baseline(blank, "base."), "resnet50+coarse").spec.backbone == "resnet50+coarse"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet50+ibm", 'unknown change of resnet50 "ibm"; did you mean "ibn"'),
        ("resnet18+nonlocal", "expected a ResNet with bottleneck blocks"),
        ("osnet_x1_0+ibn", "only a ResNet takes changes"),
        ("resnet55+ibn", 'did you mean "resnet50"'),
    ],
)
def test_changes_that_do_not_exist(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_backbone(name)


def test_every_family_and_change_is_tested() -> None:
    found = [recognise(case.make(blank), case.backbone) for case in CASES.values()]
    elsewhere = {"MiewID"}  # in test_animal_networks.py, with a file of its own form
    assert {origin.family.name for origin in found} | elsewhere == {family.name for family in FAMILIES}
    assert {change for origin in found for change in origin.spec.backbone.split("+")[1:]} == set(CHANGES)


def test_names_of_other_projects_can_be_built() -> None:
    for name in set(PUBLISHED_NAMES.values()):
        assert build_backbone(name).channels == 2048


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_ibn_b_removes_gain_and_offset_of_an_image(name: str) -> None:
    """After the first stage and whatever the image's contrast; with IBN-a, half of the channels keep it."""
    torch.manual_seed(0)

    def change(network: str) -> float:
        net = build_backbone(network).eval()
        first = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1)
        with torch.inference_mode():
            return float((first(IMAGES) - first(IMAGES * 3)).abs().max())

    assert change(f"{name}+ibnb") < 1e-3 < 0.1 < change(f"{name}+ibn")


def test_only_batchnorm_becomes_norms_of_cameras() -> None:
    """IBN's second half and the norms of the non-local blocks become cameras', the instance norms stay."""
    torch.manual_seed(0)
    plain_network = Embedder(NetworkSpec("resnet50+ibn+nonlocal+ceil", "gem")).eval()
    converted = convert_norm(plain_network, camera_batchnorm(["a", "b"])).eval()
    with torch.inference_mode():
        same = Given(converted)(IMAGES, torch.tensor([0, 1]))
        torch.testing.assert_close(same, plain_network(IMAGES), rtol=1e-4, atol=1e-5)
    kept = {key for key in converted.state_dict() if key.endswith("running_mean")}
    assert {f"backbone.layer1.0.bn1.{half}.running_mean" in kept for half in ("BN", "IN")} == {True, False}
    assert "backbone.layer2.attention0.W.1.running_mean" in kept
