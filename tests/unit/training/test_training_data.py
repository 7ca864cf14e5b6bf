"""What a training reads: rows, labels, and the settings that depend on the data.

Wrong variants that these tests refuse: unlabelled rows that keep their identities, or come from queries; a labelled
site that shares the domain of the unlabelled one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from reid.config import Experiment, parse_config
from reid.data.transforms import EvaluationTransform
from reid.errors import ConfigError, DataError
from reid.records import Modality, Sample, Split
from reid.training.run_folder import samples_digest
from reid.training.training_data import (
    UNKNOWN,
    TrainingRows,
    choose_domain_fields,
    load_training_set,
    read_training_rows,
    training_samples,
    unlabelled_samples,
)

MANIFEST = """path,identity,camera,modality,domain,split
a.png,1,a1,visible,person,train
b.png,1,a5,infrared,person,train
c.png,1,a1,visible,vehicle,train
d.png,2,a1,visible,vehicle,query
"""


def experiment(path: Path, **sections: dict[str, object]) -> Experiment:
    table = {**sections, "data": {"manifests": [str(path)], "size": [8, 8], **sections.get("data", {})}}
    return parse_config(table, "test")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "manifest.csv"
    path.write_text(MANIFEST, encoding="utf-8")
    for value, name in enumerate("abcd"):
        Image.new("RGB", (2, 4), (value, 10, 20)).save(tmp_path / f"{name}.png")
    return path


def test_only_training_rows_of_the_wanted_categories_are_read(manifest: Path) -> None:
    assert [s.path.name for s in training_samples(experiment(manifest))] == ["a.png", "b.png", "c.png"]
    vehicles = training_samples(experiment(manifest, data={"categories": ["vehicle"]}))
    assert [s.path.name for s in vehicles] == ["c.png"]


def test_an_unknown_category_and_an_empty_split_are_refused(manifest: Path) -> None:
    with pytest.raises(DataError, match=r'"boat".*person, vehicle'):
        training_samples(experiment(manifest, data={"categories": ["boat"]}))
    manifest.write_text(MANIFEST.replace(",train", ",gallery"), encoding="utf-8")
    with pytest.raises(DataError, match='split "train"'):
        training_samples(experiment(manifest))


@pytest.mark.parametrize(
    ("axis", "categories", "domain_fields"),
    [
        ("batch", [], ()),
        ("camera", [], ("category", "camera")),
        ("modality", [], ("category", "modality")),
        ("category", [], ("category",)),
        ("camera", ["person"], ("camera",)),
        ("modality", ["person"], ("modality",)),
    ],
)
def test_the_fields_of_a_norm_domain_follow_from_the_data(
    manifest: Path, axis: str, categories: list[str], domain_fields: tuple[str, ...]
) -> None:
    given = experiment(manifest, norm={"axis": axis, "affine": "domain"}, data={"categories": categories})
    resolved = choose_domain_fields(given, training_samples(given))
    assert resolved.norm.domain_fields == domain_fields
    assert resolved.norm.affine == "domain"
    assert choose_domain_fields(resolved, training_samples(given)) == resolved


def test_fields_that_are_given_stay(manifest: Path) -> None:
    given = experiment(manifest, norm={"kind": "camera", "by": ["modality", "camera"]})
    assert choose_domain_fields(given, training_samples(given)) == given


def test_labels_and_crops_in_memory(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = TrainingRows(training_samples(experiment(manifest)), ("category", "camera"))
    assert rows.classes[1] == (("person", "1"), ("vehicle", "1"))
    assert rows.domains == ("person/a1", "person/a5", "vehicle/a1")
    data = load_training_set(rows, EvaluationTransform(4, 2), threads=1, progress=False)
    assert data.crops.dtype == torch.uint8
    assert data.crops[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert data.targets.tolist() == [0, 0, 1]
    assert data.modalities.tolist() == [0, 1, 0]
    assert data.domains is not None
    assert data.domains.tolist() == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_plain_batch_normalization_has_no_domains(manifest: Path) -> None:
    rows = TrainingRows(training_samples(experiment(manifest)), ())
    assert rows.domains == ()
    assert load_training_set(rows, EvaluationTransform(4, 2), threads=1, progress=False).domains is None


def test_rows_without_a_camera_cannot_have_camera_norms() -> None:
    samples = (Sample(Path("a.png"), "1", "", split=Split.TRAIN), Sample(Path("b.png"), "1", "a1", split=Split.TRAIN))
    with pytest.raises(DataError, match=r"1 of 2 .*camera"):
        _ = TrainingRows(samples, ("camera",)).domains


def test_the_digest_follows_labels_and_order_but_not_the_folder() -> None:
    one, two = Sample(Path("x/a.png"), "1", "a1"), Sample(Path("x/b.png"), "1", "a1")
    moved = (Sample(Path("y/a.png"), "1", "a1"), Sample(Path("y/b.png"), "1", "a1"))
    assert samples_digest((one, two)) == samples_digest(moved)
    infrared = Sample(Path("x/b.png"), "1", "a1", Modality.INFRARED)
    assert len({samples_digest(rows) for rows in ((one, two), (two, one), (one,), (one, infrared))}) == 4


OTHER = """path,identity,camera,modality,domain,split
a.png,7,{0}1,visible,person,train
b.png,8,{0}2,infrared,person,gallery
c.png,7,{0}1,visible,vehicle,train
d.png,9,{0}1,visible,person,query
"""


@pytest.fixture
def other(manifest: Path) -> Path:
    """The manifest of another site, with the same images."""
    path = manifest.with_name("other.csv")
    path.write_text(OTHER.format("b"), encoding="utf-8")
    return path


def test_unlabelled_rows_are_those_of_training_without_their_identities(manifest: Path, other: Path) -> None:
    given = experiment(manifest, data={"unlabelled": [str(other)]})
    found = unlabelled_samples(given)
    assert [(s.path.name, s.identity, s.camera) for s in found] == [("a.png", "", "b1"), ("c.png", "", "b1")]
    people = experiment(manifest, data={"unlabelled": [str(other)], "categories": ["person"]})
    assert [s.path.name for s in unlabelled_samples(people)] == ["a.png"]
    assert unlabelled_samples(experiment(manifest)) == ()


def test_without_a_training_split_the_gallery_is_taken_and_queries_never_are(manifest: Path, other: Path) -> None:
    given = experiment(manifest, data={"unlabelled": [str(other)]})
    other.write_text(OTHER.format("b").replace(",train", ",gallery"), encoding="utf-8")
    assert [s.path.name for s in unlabelled_samples(given)] == ["a.png", "b.png", "c.png"]
    other.write_text(OTHER.replace(",train", ",query").replace(",gallery", ",query"), encoding="utf-8")
    with pytest.raises(DataError, match=r"other\.csv.*data\.unlabelled"):
        unlabelled_samples(given)


@pytest.mark.parametrize(
    ("axis", "cameras", "names"),
    [
        ("batch", "b", ()),
        ("camera", "b", ("a1", "a5", "b1")),
        ("camera", "a", ("a1", "source/a1", "source/a5")),
        ("modality", "b", ("source/infrared", "source/visible", "visible")),
        ("category", "b", ("person", "source/person")),
    ],
)
def test_a_site_has_its_own_domains_and_the_unlabelled_one_keeps_the_names(
    manifest: Path, other: Path, axis: str, cameras: str, names: tuple[str, ...]
) -> None:
    other.write_text(OTHER.format(cameras), encoding="utf-8")
    data = {"unlabelled": [str(other)], "categories": ["person"]}
    _, rows = read_training_rows(experiment(manifest, norm={"axis": axis}, data=data))
    assert rows.domains == names
    prefix = "source/" if any("source/" in name for name in names) else ""
    if names:
        field = {"camera": ("a1", "a5"), "modality": ("visible", "infrared"), "category": ("person", "person")}[axis]
        assert rows.domain_names[:2] == tuple(prefix + label for label in field)
        assert rows.domain_names[2] == {"camera": f"{cameras}1", "modality": "visible", "category": "person"}[axis]


def test_unlabelled_crops_are_the_last_and_have_no_class(manifest: Path, other: Path) -> None:
    data = {"unlabelled": [str(other)], "categories": ["person"]}
    _, rows = read_training_rows(experiment(manifest, norm={"axis": "category"}, data=data))
    loaded = load_training_set(rows, EvaluationTransform(4, 2), threads=1, progress=False)
    assert loaded.targets.tolist() == [0, 0, UNKNOWN]
    assert loaded.targets.dtype == torch.int64
    assert loaded.crops[:, 0, 0, 0].tolist() == [0, 1, 0]
    assert loaded.modalities.tolist() == [0, 1, 0]
    assert loaded.domains is not None
    assert [rows.domains[i] for i in loaded.domains] == ["source/person", "source/person", "person"]
    assert rows.digest != TrainingRows(rows.samples, rows.domain_fields).digest


@pytest.mark.parametrize(
    ("norm", "adapts", "line"),
    [
        ({"system": "dwt+mce", "axis": "category"}, True, '"mce".*"mec"'),
        ({"system": "dtw+mec", "axis": "category"}, True, '"dtw".*"dwt"'),
        ({"system": "dwt+mec", "axis": "category"}, False, "data.unlabelled"),
        (
            {"affine": "domain", "axis": "category"},
            True,
            'norm.affine = "shared".*"batch\\+entropy"',
        ),
    ],
)
def test_norms_that_unlabelled_rows_cannot_train_are_refused_in_one_line(
    manifest: Path, other: Path, norm: dict[str, str], adapts: bool, line: str
) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        read_training_rows(experiment(manifest, norm=norm, data={"unlabelled": [str(other)] if adapts else []}))
    assert "\n" not in str(caught.value)
    allowed = {"system": "batch+entropy", "affine": "domain", "axis": "category"}
    read_training_rows(experiment(manifest, norm=allowed, data={"unlabelled": [str(other)]}))
