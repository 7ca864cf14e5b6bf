"""What a training is made of: rows, labels, and the defaults that depend on the data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from reid.config import Experiment, parse_config
from reid.data.transforms import EvaluationTransform
from reid.errors import DataError
from reid.records import Modality, Sample, Split
from reid.training.folder import samples_digest
from reid.training.material import Material, load_training_set, resolve, training_samples

MANIFEST = """path,identity,camera,modality,domain,split
a.png,1,a1,visible,person,train
b.png,1,a5,infrared,person,train
c.png,1,a1,visible,vehicle,train
d.png,2,a1,visible,vehicle,query
"""


def experiment(path: Path, **sections: dict[str, object]) -> Experiment:
    table = {**sections, "data": {"manifests": [str(path)], "size": [4, 2], **sections.get("data", {})}}
    return parse_config(table, "test")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "manifest.csv"
    path.write_text(MANIFEST, encoding="utf-8")
    for value, name in enumerate("abcd"):
        Image.new("RGB", (2, 4), (value, 10, 20)).save(tmp_path / f"{name}.png")
    return path


def test_only_training_rows_of_the_wanted_domains(manifest: Path) -> None:
    assert [s.path.name for s in training_samples(experiment(manifest))] == ["a.png", "b.png", "c.png"]
    vehicles = training_samples(experiment(manifest, data={"domains": ["vehicle"]}))
    assert [s.path.name for s in vehicles] == ["c.png"]


def test_an_unknown_domain_and_an_empty_split_are_refused(manifest: Path) -> None:
    with pytest.raises(DataError, match='no row has domain "boat"; the manifests have person, vehicle'):
        training_samples(experiment(manifest, data={"domains": ["boat"]}))
    manifest.write_text(MANIFEST.replace(",train", ",gallery"), encoding="utf-8")
    with pytest.raises(DataError, match='no row of split "train"'):
        training_samples(experiment(manifest))


@pytest.mark.parametrize(
    ("kind", "domains", "by"),
    [
        ("batch", [], ()),
        ("camera", [], ("domain", "camera")),
        ("modality", [], ("domain", "modality")),
        ("domain", [], ("domain",)),
        ("camera", ["person"], ("camera",)),
        ("modality", ["person"], ("modality",)),
    ],
)
def test_the_fields_of_a_norm_domain_follow_from_the_data(
    manifest: Path, kind: str, domains: list[str], by: tuple[str, ...]
) -> None:
    given = experiment(manifest, norm={"kind": kind, "affine": "domain"}, data={"domains": domains})
    resolved = resolve(given, training_samples(given))
    assert resolved.norm.by == by
    assert resolved.norm.affine == "domain"
    assert resolve(resolved, training_samples(given)) == resolved


def test_fields_that_are_given_stay(manifest: Path) -> None:
    given = experiment(manifest, norm={"kind": "camera", "by": ["modality", "camera"]})
    assert resolve(given, training_samples(given)) == given


def test_labels_and_crops_in_memory(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    material = Material(training_samples(experiment(manifest)), ("domain", "camera"))
    assert material.classes[1] == (("person", "1"), ("vehicle", "1"))
    assert material.names == ("person/a1", "person/a5", "vehicle/a1")
    data = load_training_set(material, EvaluationTransform(4, 2), threads=1, progress=False)
    assert data.crops.dtype == torch.uint8
    assert data.crops[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert data.targets.tolist() == [0, 0, 1]
    assert data.modalities.tolist() == [0, 1, 0]
    assert data.domains is not None
    assert data.domains.tolist() == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_plain_norm_has_no_domains(manifest: Path) -> None:
    material = Material(training_samples(experiment(manifest)), ())
    assert material.names == ()
    assert load_training_set(material, EvaluationTransform(4, 2), threads=1, progress=False).domains is None


def test_rows_without_a_camera_cannot_have_camera_norms() -> None:
    samples = (Sample(Path("a.png"), "1", "", split=Split.TRAIN), Sample(Path("b.png"), "1", "a1", split=Split.TRAIN))
    with pytest.raises(DataError, match="1 of 2 training rows have no camera"):
        _ = Material(samples, ("camera",)).names


def test_the_digest_follows_labels_and_order_but_not_the_folder() -> None:
    one, two = Sample(Path("x/a.png"), "1", "a1"), Sample(Path("x/b.png"), "1", "a1")
    moved = (Sample(Path("y/a.png"), "1", "a1"), Sample(Path("y/b.png"), "1", "a1"))
    assert samples_digest((one, two)) == samples_digest(moved)
    infrared = Sample(Path("x/b.png"), "1", "a1", Modality.INFRARED)
    assert len({samples_digest(rows) for rows in ((one, two), (two, one), (one,), (one, infrared))}) == 4
