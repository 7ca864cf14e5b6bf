"""Experiment files are read and written without loss, and refused in one line where they are wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reid.config import (
    Experiment,
    differences,
    leaf_names,
    load_config,
    parse_config,
    to_toml,
)
from reid.errors import ConfigError

FILES = sorted((Path(__file__).parents[2] / "scripts" / "experiments").glob("*.toml"))
EXPERIMENTS = [path for path in FILES if "[[variation]]" not in path.read_text(encoding="utf-8")]
SMALL = {"data": {"manifests": ["a/manifest.csv"]}}


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(tmp_path: Path, text: str, *sets: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text), sets)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_experiment_has_at_most_fifty_leaves() -> None:
    assert len(leaf_names()) <= 50
    assert len(set(leaf_names())) == len(leaf_names())


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_committed_experiments_load_and_say_their_command(path: Path) -> None:
    experiment = load_config(path)
    header = path.read_text(encoding="utf-8").partition("[")[0]
    assert f"python scripts/train.py scripts/experiments/{path.name}" in header
    assert parse_config(tomllib.loads(to_toml(experiment)), "copy") == experiment


def test_there_are_committed_experiments() -> None:
    assert {"street", "street-small-batch", "street-small-camera", "street-small-modality"} <= {
        path.stem for path in EXPERIMENTS
    }


def test_values_come_from_the_file_and_the_rest_from_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, '[data]\nmanifests = ["m.csv"]\nsize = [64, 32]\n[train]\nepochs = 7\n')
    experiment = load_config(path)
    assert experiment.data.size == (64, 32)
    assert experiment.train.epochs == 7
    assert experiment.train.seed == Experiment.model_validate(SMALL).train.seed


def test_overrides_are_typed_and_the_last_one_wins(tmp_path: Path) -> None:
    path = write(tmp_path, '[data]\nmanifests = ["m.csv"]\n')
    sets = ["train.epochs=3", "train.epochs=5", "network.backbone=resnet18", 'data.categories=["person"]']
    experiment = load_config(path, [*sets, "train.learning_rate = 1e-4", "train.triplet_margin=soft"])
    assert experiment.train.epochs == 5
    assert experiment.network.backbone == "resnet18"
    assert experiment.data.categories == ("person",)
    assert experiment.train.learning_rate == 1e-4
    assert experiment.train.triplet_margin == "soft"


def test_an_unknown_key_names_the_nearest_known_one(tmp_path: Path) -> None:
    message = refusal(tmp_path, '[data]\nmanifests = ["m.csv"]\n[train]\nlearning_rat = 1\n')
    assert '"train.learning_rat"' in message
    assert 'did you mean "train.learning_rate"?' in message
    assert 'did you mean "train.epochs"?' in refusal(tmp_path, "[data]\n", "train.epoch=3")
    assert '"trian"' in refusal(tmp_path, "[trian]\nepochs = 3\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "data: "),
        ("[data]\n", "data.manifests: "),
        ("[data]\nmanifests = []\n", "data.manifests"),
        ('data = "m.csv"\n', "data: "),
        ('[data]\nmanifests = ["m"]\nsize = [0, 64]\n', "got 0"),
        ('[data]\nmanifests = ["m"]\n[train]\nepochs = 0\n', "train.epochs: "),
        ('[data]\nmanifests = ["m"]\n[train]\nepochs = "many"\n', "got 'many'"),
        ('[data]\nmanifests = ["m"]\n[train]\nlearning_rate = nan\n', "train.learning_rate: "),
        ('[data]\nmanifests = ["m"]\n[train]\ntriplet_margin = "hard"\n', "train.triplet_margin"),
        ('[data]\nmanifests = ["m"]\n[train]\nidentities_per_batch = 1\n', "train.identities_per_batch: "),
        ('[data]\nmanifests = ["m"]\n[norm]\naxis = "instance"\n', "'batch', 'camera', 'modality' or 'category'"),
        (
            '[data]\nmanifests = ["m"]\n[norm]\naxis = "camera"\ndomain_fields = ["category"]\n',
            "domain_fields = ['category']",
        ),
        ('[data]\nmanifests = ["m"]\n[norm]\ndomain_fields = ["camera"]\n', "domain_fields = ['camera']"),
        ("[data\n", "TOML"),
        # absurd values: each would end in a crash, without memory, or in numbers that are not finite
        ('[data]\nmanifests = ["m"]\n[train]\nthreads = 1000000\n', "got 1000000"),
        ('[data]\nmanifests = ["m"]\n[train]\nlearning_rate = 1e300\n', "got 1e+300"),
        ('[data]\nmanifests = ["m"]\n[train]\nweight_decay = 1e300\n', "train.weight_decay: "),
        ('[data]\nmanifests = ["m"]\n[train]\nwarmup_epochs = 1e300\n', "train.warmup_epochs: "),
        ('[data]\nmanifests = ["m"]\n[train]\ntriplet_margin = 1e300\n', "train.triplet_margin: "),
        (f'[data]\nmanifests = ["m"]\n[train]\nseed = {2**63}\n', "train.seed: "),
        (f'[data]\nmanifests = ["m"]\n[train]\nepochs = {"9" * 3000}\n', "train.epochs: "),
        ('[data]\nmanifests = ["m"]\n[train]\nvisits = 1000000000\n', "train.visits: "),
        ('[data]\nmanifests = ["m"]\n[train]\nidentities_per_batch = 8000\nimages_per_identity = 3\n', "24000"),
        ('[data]\nmanifests = ["m"]\nsize = [1, 1]\n', "got 1"),
        ('[data]\nmanifests = ["m"]\nsize = [60000, 128]\n', "got 60000"),
        ('[data]\nmanifests = ["m"]\nsize = [128, -64]\n', "got -64"),
        ('[data]\nmanifests = ["m"]\n[augment]\npad = 1000000\n', "augment.pad: "),
        (f'[data]\nmanifests = ["m"]\ncategories = "{"x" * 100_000}"\n', "data.categories: "),
        (f"a = {'[' * 5000}{']' * 5000}\n", "nested too deep"),
        (f"{'a.' * 100_000}a = 1\n", "nested too deep"),
        ("#" * 2**21, "too large"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, text: str, expected: str) -> None:
    message = refusal(tmp_path, text)
    assert expected in message
    assert message.startswith(str(tmp_path / "small.toml"))
    assert len(message) - len(str(tmp_path)) < 400


def test_bad_overrides_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    assert "--set train.epochs" in refusal(tmp_path, "[data]\n", "train.epochs")
    assert "train.epochs" in refusal(tmp_path, '[data]\nmanifests = ["m"]\n', f"train.epochs={'[' * 5000}")
    assert "[train]" in refusal(tmp_path, 'train = 3\n[data]\nmanifests = ["m"]\n', "train.epochs=3")
    with pytest.raises(ConfigError, match=r"none\.toml"):
        load_config(tmp_path / "none.toml")


@given(
    manifests=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=3),
    rate=st.floats(1e-12, 1e6, exclude_min=True),
    margin=st.one_of(st.just("soft"), st.floats(1e-6, 10)),
    seed=st.integers(0, 2**62),
)
def test_written_and_read_again_it_is_the_same(
    manifests: list[str], rate: float, margin: float | str, seed: int
) -> None:
    table = {
        "data": {"manifests": manifests},
        "train": {"learning_rate": rate, "triplet_margin": margin, "seed": seed},
    }
    experiment = parse_config(table, "random")
    text = to_toml(experiment)
    assert parse_config(tomllib.loads(text), "copy") == experiment
    assert len([line for line in text.splitlines() if " = " in line]) >= len(leaf_names())


def test_differences_name_every_changed_key() -> None:
    one = parse_config(SMALL, "one")
    other = parse_config({**SMALL, "train": {"epochs": 30}, "norm": {"axis": "camera"}}, "other")
    assert differences(one, one) == []
    assert differences(one, other) == ['norm.axis: "batch", now "camera"', f"train.epochs: {one.train.epochs}, now 30"]


def test_an_experiment_is_frozen() -> None:
    experiment = parse_config(SMALL, "one")
    with pytest.raises(ValueError, match="frozen"):
        experiment.train.epochs = 3  # type: ignore[misc]


def test_a_system_may_name_a_loss_on_unlabelled_rows_behind_a_plus() -> None:
    norm = parse_config({**SMALL, "norm": {"axis": "domain", "system": "dwt+mec"}}, "test").norm
    assert (norm.layers, norm.target_loss) == ("dwt", "mec")
    plain = parse_config(SMALL, "test").norm
    assert (plain.layers, plain.target_loss) == ("batch", "")
