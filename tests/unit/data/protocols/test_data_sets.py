"""Published data sets are read in the layouts of their authors, and errors name what is missing."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import published_layouts
from reid.data.manifest import check_files, write_manifest
from reid.data.protocols.data_sets import count_differences, known_protocols, load_protocol, protocol_samples, read_data
from reid.data.protocols.protocol_table import Count, fill
from reid.errors import DataError
from reid.records import Modality, Sample, Split

BUILDERS: dict[str, Callable[[Path], Path]] = {
    "market1501": published_layouts.market1501,
    "msmt17": published_layouts.msmt17,
    "regdb": published_layouts.regdb,
    "sysu_mm01": published_layouts.sysu_mm01,
}


def of(samples: tuple[Sample, ...], split: Split) -> list[Sample]:
    return [sample for sample in samples if sample.split is split]


def test_known_protocols_have_a_table_and_a_card() -> None:
    assert {"market1501", "msmt17", "regdb", "street", "sysu_mm01", "llcm", "cuhk03_np"} <= set(known_protocols())
    folder = Path(__file__).parents[4] / "datasets"
    for name in known_protocols():
        protocol = load_protocol(name)
        card = (folder / name / "card.md").read_text(encoding="utf-8")
        assert protocol.name == name
        assert f"# {protocol.title.split(' (')[0]}\n" in card
        assert "**Licence**" in card
        assert "**Source**" in card
        assert "**How to get it**" in card or name == "street"
        for words in [protocol.choose({})] + [
            protocol.choose({k: c}) for k, v in protocol.variants.items() for c in v.choices
        ]:
            protocol.scoring(words)  # raises if the rule is wrong
            for count in protocol.counts.values():
                for number in (count.images, count.identities):
                    assert number is None or f"{int(fill(str(number), words)):,}" in card


def test_a_withdrawn_data_set_has_a_card_and_is_not_offered() -> None:
    assert "dukemtmc_reid" not in known_protocols()
    with pytest.raises(DataError, match=r"datasets/dukemtmc_reid/card\.md"):
        read_data("dukemtmc_reid", Path())


@pytest.mark.parametrize("name", BUILDERS)
def test_every_file_read_exists(name: str, tmp_path: Path) -> None:
    protocol = load_protocol(name)
    check_files(protocol_samples(protocol, BUILDERS[name](tmp_path / "data set")))


@pytest.mark.parametrize("name", BUILDERS)
def test_samples_are_in_the_order_of_names(name: str, tmp_path: Path) -> None:
    protocol = load_protocol(name)
    first = protocol_samples(protocol, BUILDERS[name](tmp_path / "one"))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    second = protocol_samples(protocol, tmp_path / "two")
    assert [s.path.relative_to(tmp_path / "one") for s in first] == [
        s.path.relative_to(tmp_path / "two") for s in second
    ]


def test_market1501(tmp_path: Path) -> None:
    samples = protocol_samples(load_protocol("market1501"), published_layouts.market1501(tmp_path))
    train, query, gallery = (of(samples, split) for split in Split)
    assert Counter(s.identity for s in train) == {"0002": 3, "0007": 3, "0010": 3}
    assert {s.camera for s in train} == {"c1", "c3", "c6"}
    assert [(s.path.name, s.identity, s.camera) for s in query] == [
        ("0001_c1s1_001051_00.jpg", "0001", "c1"),
        ("0003_c1s1_001051_00.jpg", "0003", "c1"),
    ]
    assert Counter(s.identity for s in gallery) == {"0001": 3, "0003": 3, "0000": 2}  # no -1
    assert {s.modality for s in samples} == {Modality.VISIBLE}
    assert {s.category for s in samples} == {"person"}


def test_market1501_counts_are_compared_without_distractors(tmp_path: Path) -> None:
    protocol = load_protocol("market1501")
    samples = protocol_samples(protocol, published_layouts.market1501(tmp_path))
    assert count_differences(protocol, samples) == [
        "Market-1501, train: expected 12936 images, found 9",
        "Market-1501, train: expected 751 identities, found 3",
        "Market-1501, query: expected 3368 images, found 2",
        "Market-1501, query: expected 750 identities, found 2",
        "Market-1501, gallery: expected 15913 images, found 8",
        "Market-1501, gallery: expected 750 identities, found 2",
    ]
    small = protocol.model_copy(update={"counts": {Split.GALLERY: Count(images=8, identities=2)}})
    assert count_differences(small, samples) == []


def test_msmt17_gives_train_and_test_identities_different_names(tmp_path: Path) -> None:
    samples = protocol_samples(load_protocol("msmt17"), published_layouts.msmt17(tmp_path))
    train, query, gallery = (of(samples, split) for split in Split)
    assert [(s.identity, s.camera) for s in train] == [
        ("train_0", "c01"),
        ("train_0", "c14"),
        ("train_1", "c02"),
        ("train_0", "c07"),  # list_val.txt
    ]
    assert [(s.identity, s.camera) for s in query] == [("test_0", "c15"), ("test_2", "c03")]
    assert len(gallery) == 3
    assert train[0].path == tmp_path / "train/0000/0000_000_01_0303morning_0008_0_ex.jpg"


def test_msmt17_v2(tmp_path: Path) -> None:
    protocol = load_protocol("msmt17")
    published_layouts.msmt17(tmp_path, "mask_train_v2", "mask_test_v2", ending="")
    samples = protocol_samples(protocol, tmp_path, version="v2")
    assert {s.path.relative_to(tmp_path).parts[0] for s in samples} == {"mask_train_v2", "mask_test_v2"}
    check_files(samples)
    with pytest.raises(DataError, match=r"the folder train .*ask the authors"):
        protocol_samples(protocol, tmp_path)


def test_sysu_mm01(tmp_path: Path) -> None:
    samples = protocol_samples(load_protocol("sysu_mm01"), published_layouts.sysu_mm01(tmp_path))
    train, query, gallery = (of(samples, split) for split in Split)
    assert {s.identity for s in train} == {"0001", "0002", "0005"}  # train_id.txt and val_id.txt
    assert len(train) == (3 * 6 - 1) * 2
    assert Counter(s.camera for s in query) == {"cam3": 4, "cam6": 4}
    assert Counter(s.camera for s in gallery) == {"cam1": 4, "cam2": 4, "cam4": 4, "cam5": 4}
    assert {s.identity for s in query} == {s.identity for s in gallery} == {"0006", "0010"}
    for sample in samples:
        infrared = sample.camera in ("cam3", "cam6")
        assert sample.modality is (Modality.INFRARED if infrared else Modality.VISIBLE)


def test_sysu_mm01_indoor(tmp_path: Path) -> None:
    samples = protocol_samples(load_protocol("sysu_mm01"), published_layouts.sysu_mm01(tmp_path), search="indoor")
    assert {s.camera for s in of(samples, Split.GALLERY)} == {"cam1", "cam2"}
    assert {s.camera for s in of(samples, Split.QUERY)} == {"cam3", "cam6"}


def test_sysu_mm01_names_the_list_whose_identities_have_no_images(tmp_path: Path) -> None:
    published_layouts.sysu_mm01(tmp_path)
    (tmp_path / "exp/test_id.txt").write_text("300,301\n")
    with pytest.raises(DataError, match=r"cam\[36\].*exp/test_id\.txt"):
        protocol_samples(load_protocol("sysu_mm01"), tmp_path)


@pytest.mark.parametrize("trial", [1, 2])
def test_regdb(trial: int, tmp_path: Path) -> None:
    samples = protocol_samples(load_protocol("regdb"), published_layouts.regdb(tmp_path), trial=trial)
    train, query, gallery = (of(samples, split) for split in Split)
    assert Counter((s.identity, s.camera) for s in train) == {
        (identity, camera): 3 for identity in ("train_0", "train_1") for camera in ("visible", "thermal")
    }
    people = {s.path.parent.name for s in query}
    assert people == {str(4 * (trial - 1) + 2), str(4 * (trial - 1) + 3)}
    assert {(s.camera, s.modality) for s in query} == {("visible", Modality.VISIBLE)}
    assert {(s.camera, s.modality) for s in gallery} == {("thermal", Modality.INFRARED)}
    assert {s.identity for s in query} == {s.identity for s in gallery} == {"test_0", "test_1"}


def test_regdb_from_thermal_to_visible(tmp_path: Path) -> None:
    published_layouts.regdb(tmp_path)
    samples = read_data("regdb:trial=2,direction=thermal-to-visible", tmp_path)
    assert {s.modality for s in of(samples, Split.QUERY)} == {Modality.INFRARED}
    assert {s.modality for s in of(samples, Split.GALLERY)} == {Modality.VISIBLE}


def test_regdb_has_ten_trials(tmp_path: Path) -> None:
    protocol = load_protocol("regdb")
    assert list(protocol.variants["trial"].choices) == [str(trial) for trial in range(1, 11)]
    with pytest.raises(DataError, match='trial "11"'):
        protocol_samples(protocol, published_layouts.regdb(tmp_path), trial=11)


def test_a_line_listed_twice(tmp_path: Path) -> None:
    published_layouts.regdb(tmp_path)
    path = tmp_path / "idx/test_visible_1.txt"
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")
    with pytest.raises(DataError, match="split query"):
        protocol_samples(load_protocol("regdb"), tmp_path)


@pytest.mark.parametrize(
    ("name", "gone", "expected"),
    [
        ("market1501", "query", "Market-1501: .* folder query "),
        ("msmt17", "list_gallery.txt", r"MSMT17: .* list_gallery\.txt "),
        ("msmt17", "test", "MSMT17: .* folder test "),
        ("sysu_mm01", "exp", "SYSU-MM01: .* folder exp "),
        ("sysu_mm01", "exp/val_id.txt", r"SYSU-MM01: .* exp/val_id\.txt "),
        ("sysu_mm01", "cam3", "SYSU-MM01: .* folder cam3 "),
        ("regdb", "Thermal", "RegDB: .* folder Thermal "),
        ("regdb", "idx/train_visible_1.txt", r"RegDB: .* idx/train_visible_1\.txt "),
    ],
)
def test_a_missing_part(name: str, gone: str, expected: str, tmp_path: Path) -> None:
    protocol = load_protocol(name)
    root = BUILDERS[name](tmp_path)
    where = root / gone
    shutil.rmtree(where) if where.is_dir() else where.unlink()
    with pytest.raises(DataError, match=expected) as caught:
        protocol_samples(protocol, root)
    assert str(root) in str(caught.value)
    assert protocol.obtain in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_folder(tmp_path: Path) -> None:
    root = published_layouts.market1501(tmp_path)
    for path in (root / "query").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"Market-1501: .* query/\*\.jpg "):
        protocol_samples(load_protocol("market1501"), root)


@pytest.mark.parametrize("name", [*BUILDERS, "street"])
def test_a_missing_root(name: str, tmp_path: Path) -> None:
    protocol = load_protocol(name)
    with pytest.raises(DataError, match="nowhere") as caught:
        protocol_samples(protocol, tmp_path / "nowhere")
    assert protocol.title in str(caught.value)
    assert protocol.obtain in str(caught.value)


@pytest.mark.parametrize(
    ("name", "file", "text"),
    [
        ("market1501", "query/0001_camera1_7.jpg", None),
        ("market1501", "query/0001_c9s1_001051_00.jpg", None),  # there is no camera 9
        ("msmt17", "list_query.txt", "0000/0000_000_01_0303morning_0008_0_ex.jpg\n"),
        ("sysu_mm01", "cam1/0001/first.jpg", None),
        ("regdb", "idx/test_thermal_1.txt", "Visible 0\n"),
    ],
)
def test_a_name_that_the_pattern_does_not_match(name: str, file: str, text: str | None, tmp_path: Path) -> None:
    root = BUILDERS[name](tmp_path)
    if text is None:
        published_layouts.write_image(root / file)
    else:
        (root / file).write_text(text)
    protocol = load_protocol(name)
    with pytest.raises(DataError, match=protocol.title) as caught:
        protocol_samples(protocol, root)
    assert "such as " in str(caught.value)
    assert "(?P" not in str(caught.value)


def test_errors_about_variants_and_choices_list_the_known_ones(tmp_path: Path) -> None:
    protocol = load_protocol("sysu_mm01")
    with pytest.raises(DataError, match=r'variant "serch".*"search"'):
        protocol_samples(protocol, tmp_path, serch="all")
    with pytest.raises(DataError, match=r'search "outdoor".*all, indoor'):
        protocol_samples(protocol, tmp_path, search="outdoor")


def street(root: Path, site: str) -> tuple[Sample, ...]:
    path = root / f"street-{site}/images/0.jpg"
    published_layouts.write_image(path)
    sample = Sample(path, "p1", f"{site}5", Modality.INFRARED, "vehicle", Split.QUERY)
    write_manifest([sample], root / f"street-{site}/manifest.csv")
    return (sample,)


def test_street_is_read_from_its_manifests(tmp_path: Path) -> None:
    site_a, site_b = street(tmp_path, "a"), street(tmp_path, "b")
    assert read_data("street", tmp_path) == site_a
    assert read_data("street:site=b", tmp_path) == site_b


def test_a_street_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"street-a/manifest\.csv .*reid synth"):
        read_data("street", tmp_path)


def test_read_data_takes_a_manifest_or_its_folder(tmp_path: Path) -> None:
    samples = street(tmp_path, "a")
    assert read_data(str(tmp_path / "street-a/manifest.csv")) == samples
    assert read_data(str(tmp_path / "street-a")) == samples


def test_read_data_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="market1501"):
        read_data("market1502")
    with pytest.raises(DataError, match=r"Market-1501: .*root"):
        read_data("market1501")
    with pytest.raises(DataError, match="name:key=value,key=value"):
        read_data("regdb:3", tmp_path)
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/manifest.csv")):
        read_data(str(tmp_path))
    with pytest.raises(DataError, match='"duke"'):
        load_protocol("duke")


def test_a_list_that_is_not_text(tmp_path: Path) -> None:
    published_layouts.regdb(tmp_path)
    (tmp_path / "idx/test_visible_1.txt").write_bytes(b"Visible/0/m\xe4nnlich.bmp 0")
    with pytest.raises(DataError, match=r"test_visible_1\.txt"):
        protocol_samples(load_protocol("regdb"), tmp_path)


def test_an_installed_wheel_reads_the_tables_inside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheel carries datasets/ as reid/_datasets; there is no checkout beside it."""
    shutil.copytree(Path(__file__).parents[4] / "datasets/regdb", tmp_path / "_datasets/regdb")
    monkeypatch.setattr("reid.data.protocols.data_sets.resources.files", {"reid": tmp_path}.__getitem__)
    assert known_protocols() == ["regdb"]
    assert load_protocol("regdb").title == "RegDB"
