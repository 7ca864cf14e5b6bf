"""Smaller data sets and those of vehicles, products and birds are read in the layouts of their authors."""

from __future__ import annotations

import runpy
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from helpers import published_layouts
from reid.data.protocols.data_sets import all_choices, count_differences, load_protocol, open_data, read_data
from reid.errors import DataError
from reid.evaluation.analysis.validation import validate
from reid.records import Modality, Sample, Split

ROOT = Path(__file__).parents[4]
COMPLETE: dict[str, Callable[[Path], Path]] = {  # builders of trees with as many files as the authors counted
    "viper": published_layouts.viper,
    "prid2011": published_layouts.prid2011,
    "grid": published_layouts.grid,
    "ilids": published_layouts.ilids,
}


def of(samples: tuple[Sample, ...], split: Split) -> list[Sample]:
    return [sample for sample in samples if sample.split is split]


def test_veri776(tmp_path: Path) -> None:
    train, query, gallery = (of(read_data("veri776", published_layouts.veri776(tmp_path)), split) for split in Split)
    assert Counter(s.identity for s in train) == {"0001": 2, "0003": 2}
    assert [(s.identity, s.camera, s.category) for s in query] == [
        ("0002", "c004", "vehicle"),
        ("0005", "c004", "vehicle"),
    ]
    assert {s.camera for s in gallery} == {"c001", "c019"}


def test_cuhk03_new_protocol(tmp_path: Path) -> None:
    published_layouts.cuhk03_np(tmp_path)
    detected, labelled = open_data("cuhk03_np", tmp_path), open_data("cuhk03_np:boxes=labelled", tmp_path)
    assert {s.path.relative_to(tmp_path).parts[0] for s in detected.samples} == {"detected"}
    assert {s.path.relative_to(tmp_path).parts[0] for s in labelled.samples} == {"labeled"}
    assert (len(of(detected.samples, Split.TRAIN)), len(of(labelled.samples, Split.TRAIN))) == (6, 7)
    assert {s.camera for s in of(detected.samples, Split.QUERY)} == {"c1", "c2"}
    protocol = load_protocol("cuhk03_np")
    for data, images in ((detected, 7365), (labelled, 7368)):  # each variant has counts of its own
        lines = count_differences(protocol, data.samples, **data.scoring.variant)
        assert lines[0].startswith(f"CUHK03, new protocol, train: expected {images} images")


@pytest.mark.parametrize("name", COMPLETE)
def test_divided_sets_have_the_published_counts(name: str, tmp_path: Path) -> None:
    """The counts agree in every split, no identity is both for training and testing, and the splits differ."""
    root = COMPLETE[name](tmp_path)
    protocol = load_protocol(name)
    trained = []
    for spec in all_choices(f"{name}:split=all")[:3]:
        data = open_data(spec, root)
        assert count_differences(protocol, data.samples, **data.scoring.variant) == []
        train, query, gallery = ({s.identity for s in of(data.samples, split)} for split in Split)
        assert not train & (query | gallery)
        assert query <= gallery
        trained.append(frozenset(train))
        assert open_data(spec, root) == data
    assert len(set(trained)) == 3


def spread(images: int, people: int) -> list[int]:
    """Divide ``images`` as evenly as possible; return for each the number of its identity, from 0."""
    return [number % people for number in range(images)]


def complete_market1501(root: Path) -> str:
    """Write as many files as the authors counted: 750 test identities, and distractors and junk in the gallery."""
    for folder, images, people in (("bounding_box_train", 12936, 751), ("query", 3368, 750)):
        (root / folder).mkdir()
        for number, who in enumerate(spread(images, people)):
            (root / folder / f"{who + 1:04d}_c{number % 6 + 1}s1_{number:06d}_00.jpg").touch()
    (root / "bounding_box_test").mkdir()
    names = [f"{who + 1:04d}" for who in spread(13115, 750)] + ["0000"] * 2798 + ["-1"] * 3819
    for number, name in enumerate(names):
        (root / "bounding_box_test" / f"{name}_c{number % 6 + 1}s1_{number:06d}_00.jpg").touch()
    return "market1501"


def write_list(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def complete_msmt17(root: Path) -> str:
    lists = {"train": (30248, 1041), "val": (2373, 1041), "query": (11659, 3060), "gallery": (82161, 3060)}
    for name, (images, people) in lists.items():
        lines = [f"{who:04d}/{who:04d}_{i:03d}_01_{name}_{i}.jpg {who}" for i, who in enumerate(spread(images, people))]
        write_list(root / f"list_{name}.txt", lines)
    (root / "mask_train_v2").mkdir()
    (root / "mask_test_v2").mkdir()
    return "msmt17:version=v2"


def complete_regdb(root: Path) -> str:
    for folder in ("Visible", "Thermal"):
        (root / folder).mkdir()
    for split, kind in ((split, kind) for split in ("train", "test") for kind in ("visible", "thermal")):
        lines = [f"{kind.title()}/{who}/{split}{i}.bmp {who}" for i, who in enumerate(spread(2060, 206))]
        write_list(root / f"idx/{split}_{kind}_7.txt", lines)
    return "regdb:trial=7,direction=thermal-to-visible"


def complete_sop(root: Path) -> str:
    for name, images, people, first in (("train", 59551, 11318, 1), ("test", 60502, 11316, 11319)):
        lines = [f"{i} {who + first} 1 chair_final/{i}.JPG" for i, who in enumerate(spread(images, people), start=1)]
        write_list(root / f"Ebay_{name}.txt", ["image_id class_id super_class_id path", *lines])
    return "sop"


def touch_all(folder: Path, names: Iterable[str]) -> None:
    """Write empty files of these names, which may contain folders."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def complete_sysu_mm01(root: Path) -> str:
    """395 identities train in six cameras (296 and 99 in the two lists); 96 are queried in cameras 3 and 6."""
    train, test = range(1, 396), range(396, 492)
    for name, people in (("train_id", train[:296]), ("val_id", train[296:]), ("test_id", test)):
        write_list(root / f"exp/{name}.txt", [",".join(map(str, people))])
    touch_all(
        root, (f"cam{i // 395 % 6 + 1}/{1 + who:04d}/{i // 395:04d}.jpg" for i, who in enumerate(spread(34167, 395)))
    )
    touch_all(root, (f"cam{(3, 6)[i // 96 % 2]}/{396 + who:04d}/{i:04d}.jpg" for i, who in enumerate(spread(3803, 96))))
    touch_all(root, (f"cam{camera}/{who:04d}/0001.jpg" for camera in (1, 2, 4, 5) for who in test))
    return "sysu_mm01"


def complete_llcm(root: Path) -> str:
    """The counts of the paper: train and test images, visible and infrared."""
    write_list(root / "idx/test_id.txt", [",".join(map(str, range(714, 1065)))])
    for light, train, test in (("vis", 16946, 8680), ("nir", 13975, 7166)):
        names = (f"{1 + who:04d}/{1 + who:04d}_c01_s1_f{i}_{light}.jpg" for i, who in enumerate(spread(train, 713)))
        write_list(root / f"idx/train_{light}.txt", [f"{light}/{name} 0" for name in names])
        people = enumerate(spread(test, 351))
        touch_all(root / f"test_{light}", (f"cam{i % 9 + 1}/{714 + who:04d}/{i}_{light}.jpg" for i, who in people))
    return "llcm:direction=visible-to-infrared"


def complete_veri776(root: Path) -> str:
    """The images, and 2,021 tracks as the gallery of the track search."""
    parts = {"image_train": (37778, 576, 201), "image_query": (1678, 200, 1), "image_test": (11579, 200, 1)}
    for folder, (images, vehicles, first) in parts.items():
        people = enumerate(spread(images, vehicles))
        touch_all(root / folder, (f"{first + who:04d}_c{i % 20 + 1:03d}_{i:08d}_0.jpg" for i, who in people))
    shown = sorted(path.name for path in (root / "image_test").iterdir())
    write_list(root / "test_track.txt", [" ".join([f"track{i}", *shown[i::2021]]) for i in range(2021)])
    return "veri776:search=track"


def complete_occluded_reid(root: Path) -> str:
    for folder in ("occluded_body_images", "whole_body_images"):
        people = enumerate(spread(1000, 200))
        touch_all(root / folder, (f"{1 + who:03d}/{1 + who:03d}_{i // 200 + 1:02d}.tif" for i, who in people))
    return "occluded_reid"


def complete_cub200(root: Path) -> str:
    for images, first in ((5864, 1), (5924, 101)):
        birds = enumerate(spread(images, 100), start=first * 10000)
        touch_all(root / "images", (f"{first + bird:03d}.Bird/Bird_{i}.jpg" for i, bird in birds))
    return "cub200"


def complete_cuhk03_np(root: Path) -> str:
    folders = {"bounding_box_train": (7368, 767, 1), "query": (1400, 700, 768), "bounding_box_test": (5328, 700, 768)}
    for folder, (images, people, first) in folders.items():
        rows = enumerate(spread(images, people))
        touch_all(root / "labeled" / folder, (f"{first + who:04d}_c{i // people % 2 + 1}_{i}.png" for i, who in rows))
    return "cuhk03_np:boxes=labelled"


def complete_cars196(root: Path) -> str:
    cars = [1 + car for car in spread(8054, 98)] + [99 + car for car in spread(8131, 98)]
    runpy.run_path(str(ROOT / "datasets/cars196/prepare.py"))["main"](published_layouts.cars196(root, cars))
    return "cars196"


BUILDS = [
    complete_market1501,
    complete_msmt17,
    complete_regdb,
    complete_sop,
    complete_sysu_mm01,
    complete_llcm,
    complete_veri776,
]
BUILDS += [complete_occluded_reid, complete_cub200, complete_cuhk03_np, complete_cars196]


@pytest.mark.parametrize("build", BUILDS)
def test_only_a_complete_copy_has_the_published_counts(build: Callable[[Path], str], tmp_path: Path) -> None:
    """``reid validate`` does not count junk, and it counts distractors as images without an identity."""
    data = open_data(build(tmp_path), tmp_path)

    def count_messages(samples: tuple[Sample, ...]) -> list[str]:
        found = validate(replace(data, samples=samples), images=False)
        return [finding.message for finding in found if "published" in finding.message]

    assert data.protocol is not None
    assert count_messages(data.samples) == [f"all counts are those published for {data.protocol.title}"]
    assert count_messages(data.samples[1:]) == ["1 counts differ from the published ones, so scores are not comparable"]


def test_prid_numbers_beyond_200_are_different_people_in_the_two_cameras(tmp_path: Path) -> None:
    """Person 0201 of camera A is not person 0201 of camera B: the first is not read, the second a distractor."""
    published_layouts.prid2011(tmp_path)
    samples = read_data("prid2011:split=4", tmp_path)
    assert max(s.identity for s in samples if s.camera == "cam_a") == "0200"
    assert "0201" in {s.identity for s in of(samples, Split.GALLERY)}


def test_grid_uses_the_authors_partitions(tmp_path: Path) -> None:
    """Partition k of the layout trains on people k to k + 124."""
    published_layouts.grid(tmp_path)
    for split in (1, 10):
        samples = read_data(f"grid:split={split}", tmp_path)
        assert {int(s.identity) for s in of(samples, Split.TRAIN)} == set(range(split, split + 125))
    assert Counter(s.identity for s in of(samples, Split.GALLERY))["0000"] == 775
    (tmp_path / "features_and_partitions.mat").write_bytes(
        (tmp_path / "features_and_partitions.mat").read_bytes()[:200]
    )
    with pytest.raises(DataError, match=r"features_and_partitions\.mat"):
        read_data("grid", tmp_path)


def test_ilids_pairs_are_two_images(tmp_path: Path) -> None:
    samples = read_data("ilids", published_layouts.ilids(tmp_path))
    query, gallery = of(samples, Split.QUERY), of(samples, Split.GALLERY)
    assert [s.identity for s in query] == [s.identity for s in gallery]
    assert not {s.path for s in query} & {s.path for s in gallery}
    assert {s.camera for s in samples} == {""}


def test_too_few_people_to_divide(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"20 .*316"):
        read_data("viper", published_layouts.viper(tmp_path, people=20))


def test_occluded_reid(tmp_path: Path) -> None:
    samples = read_data("occluded_reid", published_layouts.occluded_reid(tmp_path))
    assert Counter((s.split, s.camera) for s in samples) == {(Split.QUERY, "occluded"): 6, (Split.GALLERY, "whole"): 6}
    assert {s.identity for s in samples} == {"001", "002", "200"}


def test_llcm(tmp_path: Path) -> None:
    data = open_data("llcm", published_layouts.llcm(tmp_path))
    train, query, gallery = (of(data.samples, split) for split in Split)
    assert [(s.identity, s.camera) for s in train] == [
        (person, f"cam1-{light}") for light in ("vis", "nir") for person in ("0001", "0002")
    ]
    assert {(s.camera, s.modality) for s in query} == {(f"cam{c}-nir", Modality.INFRARED) for c in (1, 2)}
    assert {(s.camera, s.modality) for s in gallery} == {(f"cam{c}-vis", Modality.VISIBLE) for c in (1, 2)}
    assert {s.identity for s in query} == {"0003", "0007"}  # 0008 is not listed
    assert data.scoring.locations["cam1-nir"] == "cam1-vis"  # one camera, two lights
    other = read_data("llcm:direction=visible-to-infrared", tmp_path)
    assert {s.modality for s in of(other, Split.QUERY)} == {Modality.VISIBLE}


def test_cub200(tmp_path: Path) -> None:
    data = open_data("cub200", published_layouts.cub200(tmp_path))
    assert {s.identity for s in of(data.samples, Split.TRAIN)} == {"001", "099", "100"}
    assert Counter(s.identity for s in of(data.samples, Split.GALLERY)) == {"101": 2, "200": 2}
    assert data.scoring.rule.ignore == "itself"


def test_sop(tmp_path: Path) -> None:
    samples = read_data("sop", published_layouts.sop(tmp_path))
    assert Counter((s.split, s.identity) for s in samples) == {
        (Split.TRAIN, "1"): 2, (Split.TRAIN, "2"): 2, (Split.GALLERY, "11319"): 2, (Split.GALLERY, "11320"): 2,
    }  # fmt: skip


def test_cars196(tmp_path: Path) -> None:
    published_layouts.cars196(tmp_path)
    with pytest.raises(DataError, match=r"manifest\.csv .*datasets/cars196/prepare\.py"):
        read_data("cars196", tmp_path)
    runpy.run_path(str(ROOT / "datasets/cars196/prepare.py"))["main"](tmp_path)
    samples = read_data("cars196", tmp_path)
    assert Counter((s.split, s.identity) for s in samples) == {
        (Split.TRAIN, "001"): 2, (Split.TRAIN, "098"): 2, (Split.GALLERY, "099"): 2, (Split.GALLERY, "196"): 2,
    }  # fmt: skip
    assert all(s.path.is_file() for s in samples)


def test_rule_settings_in_a_name(tmp_path: Path) -> None:
    published_layouts.market1501(tmp_path)
    rule = open_data("market1501:precision=trapezoid", tmp_path, {"unmatched": "zero"}).scoring.rule
    assert rule.text() == "market precision=trapezoid unmatched=zero"
    assert open_data("market1501", tmp_path).scoring.rule.text() == "market"
    with pytest.raises(DataError, match=r'"precison".*"precision"'):
        open_data("market1501:precison=trapezoid", tmp_path)
    with pytest.raises(DataError, match=r'precision "smooth".*rectangle, trapezoid'):
        open_data("market1501:precision=smooth", tmp_path)
    with pytest.raises(DataError, match='trials "0"'):
        open_data("market1501:trials=0", tmp_path)
    with pytest.raises(DataError, match=r'"ignored".*"ignore"'):
        open_data("market1501", tmp_path, {"ignored": "itself"})


def test_all_choices() -> None:
    assert all_choices("regdb:trial=all") == [f"regdb:trial={trial}" for trial in range(1, 11)]
    both = all_choices("regdb:trial=all,direction=all")
    assert len(both) == 20
    assert both[-1] == "regdb:trial=10,direction=thermal-to-visible"
    assert all_choices("sysu_mm01:search=all") == ["sysu_mm01:search=all"]  # a choice of that name
    assert all_choices("market1501") == ["market1501"]


def test_a_table_of_version_0_1_0_beside_the_data(tmp_path: Path) -> None:
    """It calls locations places."""
    (tmp_path / "protocol.toml").write_text(
        'name = "mine"\ntitle = "Mine"\nsource = "s"\nlicence = "l"\nobtain = "o"\nmanifest = "rows.csv"\n'
        'rule = { ignore = "place", cmc = "identity" }\n[places]\nyard = "door"\n'
    )
    (tmp_path / "rows.csv").write_text("path,identity,split,camera\na.jpg,a,query,yard\nb.jpg,a,gallery,door\n")
    data = open_data(str(tmp_path / "protocol.toml"))
    assert (data.name, data.scoring.rule.ignore, data.scoring.locations) == ("mine", "location", {"yard": "door"})
    assert len(data.samples) == 2


@pytest.mark.parametrize(("name", "setting"), [("leave_one_out", "ignore=itself"), ("mixed", "modalities=mixed")])
def test_protocols_for_any_manifest(name: str, setting: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("path,identity,split\na.jpg,a,gallery\n")
    data = open_data(name, tmp_path)
    assert (data.name, len(data.samples), data.scoring.rule.text()) == (name, 1, f"market {setting}")
    assert open_data(str(tmp_path), rule=dict([setting.split("=")])).scoring.rule == data.scoring.rule
