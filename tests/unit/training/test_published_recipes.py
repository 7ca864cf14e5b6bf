"""The published recipes by name: what they state, and how they find their data."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import published_layouts
from reid.errors import ConfigError, DataError
from reid.training.published_recipes import read_recipe, recipe_names, with_root, write_manifest


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_states_its_target_and_that_it_was_not_run(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.target.startswith("Target: ")
    assert "rank-1" in recipe.target
    assert any("not run here" in remark for remark in recipe.remarks)
    assert not [remark for remark in recipe.remarks if "reid init" in remark]


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="market1501-cbn"):
        read_recipe("market1501-cbm")


def test_the_data_set_gets_its_manifest_once(tmp_path: Path) -> None:
    root, recipe = published_layouts.market1501(tmp_path / "market1501"), read_recipe("market1501-cbn")
    write_manifest(recipe, root)
    before = (root / "manifest.csv").stat().st_mtime_ns
    write_manifest(recipe, root)
    assert (root / "manifest.csv").stat().st_mtime_ns == before
    weights = tmp_path / "w.pth"
    with pytest.raises(ConfigError, match="resnet50_imagenet"):
        with_root(recipe, root, weights)
    weights.touch()
    experiment = with_root(recipe, root, weights)
    assert experiment.data.manifests == (str(root / "manifest.csv"),)
    assert experiment.network.weights == str(weights)
    assert experiment.train == recipe.experiment.train
    with pytest.raises(DataError, match="reid init"):
        with_root(recipe, tmp_path, weights)


def test_a_trial_of_a_data_set_keeps_its_manifest(tmp_path: Path) -> None:
    root, recipe = published_layouts.regdb(tmp_path / "regdb"), read_recipe("regdb-mbn")
    write_manifest(recipe, root)
    assert (root / "manifest-trial-1.csv").is_file()
