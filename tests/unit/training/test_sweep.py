"""Sweep files and the runs of a sweep.

Wrong variants that these tests refuse: a variation that changes the keys of another; a score of other weights or rows
that counts as finished.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.training_loops import score
from reid.errors import ConfigError, DataError
from reid.training.sweep import Cost, SweepOutcome, _choose_directions, _held, page, run_sweep
from reid.training.sweep_file import Sweep, load_sweep, make_slug

ROOT = Path(__file__).parents[3]
FILE = """
title = "Two norms"
about = "A test."
seeds = 2

[experiment.data]
manifests = ["{street}/street-a/manifest.csv"]
categories = ["person"]
size = [32, 16]

[experiment.train]
epochs = 1
identities_per_batch = 3
images_per_identity = 6
warmup_epochs = 0
threads = 1

[[evaluation]]
name = "seen"
manifest = "{street}/street-a/manifest.csv"

[[evaluation]]
name = "never seen"
manifest = "{street}/street-b/manifest.csv"

[[variation]]
name = "BN"

[[variation]]
name = "Camera BN"
norm.axis = "camera"
statistics = ["measured", "mixture"]
"""


@pytest.fixture
def file(tmp_path: Path, tiny_street: Path) -> Path:
    path = tmp_path / "two.toml"
    path.write_text(FILE.format(street=tiny_street.as_posix()), encoding="utf-8")
    return path


def changed(file: Path, old: str, new: str) -> Path:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")
    return file


def test_a_variation_changes_its_own_keys_only(file: Path) -> None:
    sweep = load_sweep(file)
    plain, camera = sweep.variations
    assert (plain.experiment.norm.axis, camera.experiment.norm.axis) == ("batch", "camera")
    assert replace(camera, experiment=plain.experiment).experiment == plain.experiment
    assert camera.experiment.model_copy(update={"norm": plain.experiment.norm}) == plain.experiment
    assert (plain.statistics, camera.statistics) == (("kept", "measured"), ("measured", "mixture"))
    assert [plain.of_seed(n).train.seed for n in range(sweep.seeds)] == [0, 1]
    assert load_sweep(file, 5).seeds == 5
    sweep.check()


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('norm.axis = "camera"', 'norm.axi = "camera"', '"Camera BN": .*"norm.axi"'),
        ('norm.axis = "camera"', 'norms.axis = "camera"', '"norms"'),
        ('"mixture"]', '"mixed"]', '"mixed".*"mixture"'),
        ('name = "Camera BN"', 'name = "bn"', '"bn"'),
        ("seeds = 2", "seeds = 0", "two.toml: seeds"),
        ("seeds = 2", "sedes = 2", "two.toml: sedes"),
        ("seeds = 2", "seeds 2", "two.toml: .*TOML"),
    ],
)
def test_a_wrong_file_is_an_error_of_one_line(file: Path, old: str, new: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        load_sweep(changed(file, old, new))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('"measured", "mixture"]', '"kept"]', "Camera BN.*never seen.*b1"),
        ('name = "BN"', 'name = "BN"\nstatistics = ["ensemble"]', '"BN".*"ensemble"'),
        ('norm.axis = "camera"', 'norm.system = "wbn"', '"Camera BN".*"measured"'),
        ('norm.axis = "camera"', 'norm.axis = "camera"\nnorm.system = "transnorm"', "2 domains, got 6"),
        ('norm.axis = "camera"', 'norm.axis = "camera"\nnorm.system = "dwt+mec"', "data.unlabelled"),
    ],
)
def test_what_does_not_fit_is_an_error_before_the_first_training(file: Path, old: str, new: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        load_sweep(changed(file, old, new)).check()


def test_a_domain_is_not_added_with_unlabelled_rows(file: Path) -> None:
    added = """
[[variation]]
name = "vehicles"
add_domain = { base = "BN" }
data.categories = ["vehicle"]
norm = { axis = "category", affine = "domain" }
statistics = ["kept"]
"""
    path = changed(file, '[[variation]]\nname = "Camera BN"', f'{added}[[variation]]\nname = "Camera BN"')
    assert load_sweep(path).variations[1].addition is not None
    changed(
        file, 'data.categories = ["vehicle"]', 'data.categories = ["vehicle"]\ndata.unlabelled = ["b/manifest.csv"]'
    )
    with pytest.raises(ConfigError, match=r'"vehicles": .*data\.unlabelled'):
        load_sweep(path)


def test_missing_data_and_unknown_names_are_one_line(file: Path) -> None:
    with pytest.raises(ConfigError, match='"camera"'):
        load_sweep(file).only(["camera"])
    with pytest.raises(ConfigError, match=r"none\.toml"):
        load_sweep(file.with_name("none.toml"))
    with pytest.raises(DataError, match="street-c"):
        load_sweep(changed(file, "street-b", "street-c")).check()


@pytest.mark.parametrize("name", ["adapt-site", "compare-norms", "multi-domain"])
def test_the_committed_files_are_read(name: str) -> None:
    sweep = load_sweep(ROOT / "scripts" / "experiments" / f"{name}.toml")
    assert sweep.seeds == 3
    assert all("street" in str(site.manifest) for site in sweep.sites)


def test_the_committed_norms_are_those_of_the_family() -> None:
    sweep = load_sweep(ROOT / "scripts" / "experiments" / "compare-norms.toml")
    found = {v.name: v.experiment for v in sweep.variations}
    assert len(found) == 13
    recipes = {e.model_copy(update={"norm": found["BN"].norm, "train": found["BN"].train}) for e in found.values()}
    assert len(recipes) == 1
    trains = {e.train for name, e in found.items() if name != "ISW"}
    assert trains == {found["BN"].train}
    assert found["ISW"].norm == found["BN"].norm.model_copy(update={"system": "isw"})
    assert len({(e.norm, e.train) for e in found.values()}) == 13


@pytest.mark.parametrize("key", ["add_domain", "apart"])
def test_a_sweep_file_may_use_the_old_key_of_an_added_domain(file: Path, key: str) -> None:
    added = f"""
[[variation]]
name = "vehicles"
{key} = {{ base = "BN", adapters = "series" }}
data.categories = ["vehicle"]
norm = {{ axis = "category", affine = "domain" }}
statistics = ["kept"]
"""
    text = file.read_text(encoding="utf-8")
    file.write_text(text + added, encoding="utf-8")
    vehicles = load_sweep(file).variations[-1]
    assert vehicles.addition is not None
    assert (vehicles.addition.base, vehicles.addition.adapters) == ("BN", "series")
    other = {"apart": "add_domain", "add_domain": "apart"}[key]
    file.write_text(text + added + f'{other} = {{ base = "BN" }}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="apart is the old name of add_domain"):
        load_sweep(file)


def test_a_page_shows_costs_failures_and_its_provenance(file: Path) -> None:
    outcome = SweepOutcome(
        (score("BN", 0, 0.2),),
        (Cost("BN", 1234567, {"a": 0}, 2.0), Cost("D", 9, {"a": 1, "b": 2}, 3.0)),
        ("DIAL: diverged",),
    )
    text = page(load_sweep(file), outcome, {"command": "`reid sweep two.toml`"})
    for part in (
        "# Two norms",
        "A test.",
        "over 2 seeds",
        "1,234,567",
        "a 1, b 2",
        "Missing: DIAL: diverged",
        "two.toml",
    ):
        assert part in text
    assert json.loads(json.dumps(outcome.to_json()))["results"][0]["rank1"] == [0.2]


def test_an_interrupted_sweep_continues_with_what_is_missing(file: Path, tmp_path: Path) -> None:
    sweep, out = load_sweep(file, 1), tmp_path / "runs"
    lines: list[str] = []
    first = run_sweep(sweep.only(["BN"]), out, say=lines.append)
    assert lines == ["BN, seed 0 (1 of 1)"]
    assert [score.row for score in first.scores] == ["BN, kept", "BN, kept", "BN, measured", "BN, measured"] * 2
    whole = run_sweep(sweep, out)
    assert whole.scores[: len(first.scores)] == first.scores
    assert {score.row for score in whole.scores} == {
        "BN, kept",
        "BN, measured",
        "Camera BN, measured",
        "Camera BN, mixture",
    }
    assert {score.direction for score in whole.scores} == {"visible->visible", "infrared->visible"}
    assert [cost.name for cost in whole.costs] == ["BN", "Camera BN"]

    files = [path for path in out.rglob("*") if path.is_file() and path.name != ".lock"]
    times = {path: path.stat().st_mtime_ns for path in files}
    gone, stale = out / "bn-0" / "seen.kept.json", out / "bn-0" / "never-seen.measured.json"
    gone.unlink()
    report = json.loads(stale.read_text(encoding="utf-8"))
    report["results"][0]["made"]["weights"] = "of another training"
    report["results"][0]["mAP"] = 2.0
    stale.write_text(json.dumps(report), encoding="utf-8")
    assert run_sweep(sweep, out) == whole  # a score of other weights would be 2.0
    again = {path for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert again == {gone, stale}


def test_a_network_keeps_its_statistics_at_the_unlabelled_site(file: Path, tiny_street: Path, tmp_path: Path) -> None:
    """A row has the name of its statistics only if they are not those of the file."""
    changed(file, "seeds = 2", 'seeds = 1\nstatistics = ["kept"]')
    changed(file, 'name = "BN"', 'name = "BN"\nstatistics = ["kept", "measured"]')
    there = f'data.unlabelled = ["{tiny_street.as_posix()}/street-b/manifest.csv"]'
    changed(file, 'norm.axis = "camera"', f'norm.axis = "category"\nnorm.system = "dial"\n{there}')
    sweep = load_sweep(changed(file, '["measured", "mixture"]', '["kept"]'))
    sweep.check()
    found = run_sweep(sweep, tmp_path / "runs")
    assert not found.missing
    assert {score.row for score in found.scores} == {"BN", "BN, measured", "Camera BN"}
    assert {score.site for score in found.scores if score.row == "Camera BN"} == {"seen", "never seen"}


def test_a_run_that_fails_or_is_busy_is_listed_and_the_others_go_on(file: Path, tmp_path: Path) -> None:
    sweep: Sweep = load_sweep(
        changed(file, 'norm.axis = "camera"', 'norm.axis = "camera"\ntrain.learning_rate = 1e30'), 1
    )
    out = tmp_path / "runs"
    found = run_sweep(sweep, out)
    assert {score.row for score in found.scores} == {"BN, kept", "BN, measured"}
    assert len(found.missing) == 1
    assert found.missing[0].startswith("Camera BN, seed 0: the loss became")
    with _held(out / "bn-0"):
        lines: list[str] = []
        busy = run_sweep(sweep.only(["BN"]), out, say=lines.append)
    assert not busy.scores
    assert [line for line in lines if line.startswith("BN")] == ["BN, seed 0 (1 of 1)"] * 2  # tried again at the end
    assert "another process" in busy.missing[0]
    assert run_sweep(sweep.only(["BN"]), out).scores == found.scores


def test_names_of_folders() -> None:
    assert [make_slug(name) for name in ("BN", "IBN + ISW", "  a/b ")] == ["bn", "ibn-isw", "a-b"]


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"visible->visible"}, "visible->visible"),
        ({"infrared->infrared"}, "all"),  # otherwise the tables would leave it out
        ({"visible->visible", "infrared->infrared"}, "all"),
    ],
)
def test_data_of_one_modality_have_the_column_of_their_direction(own: set[str], expected: str) -> None:
    scores = [score("BN", 0, 0.2, "all"), score("BN", 0, 0.1, "infrared->visible")]
    assert [s.direction for s in _choose_directions(scores, ["visible->visible"], own)] == [expected]
