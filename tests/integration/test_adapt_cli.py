"""``reid adapt``: one file that works everywhere, one line where it cannot work, and nothing lost."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path

import pytest

from helpers.drawn_sites import draw_site
from helpers.small_checkpoints import plain_network, save_network
from reid.adaptation import site_adaptation
from reid.adaptation.adaptation_state import save_state, state_file
from reid.cli.adapt import METHODS
from reid.data.manifest import write_manifest
from reid.models.checkpoint import load_checkpoint


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_adaptation, "STEPS", 1)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    write_manifest(draw_site(folder, people=8), folder / "manifest.csv")
    return folder / "manifest.csv"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("weights"), plain_network())


def test_the_adapted_weights_work_in_every_command(reid, fails, site: Path, weights: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "site.safetensors", tmp_path / "page.html"
    code, text, _ = reid(
        "adapt", "--data", site, "--weights", weights, "--epochs", 1, "--out", out, "--report", page, "--json"
    )
    assert code == 0
    found = json.loads(text)
    checkpoint = load_checkpoint(out)
    assert found["fingerprint"] == checkpoint.fingerprint
    assert found["domains"] == ["door", "yard"]
    assert [epoch["epoch"] for epoch in found["epochs"]] == [0, 1]
    assert out.stat().st_mode & 0o777 == page.stat().st_mode & 0o777 == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {out.name, page.name}
    html = page.read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", html)
    assert "<h3>Largest clusters</h3>" in html
    assert reid("index", "build", "--data", site, "--weights", weights, "--out", tmp_path / "old")[0] == 0
    image = next(site.parent.glob("*door*.png"))
    message = fails("search", image, "--camera", "door", "--gallery", tmp_path / "old", "--weights", out)
    assert checkpoint.fingerprint in message
    assert reid("index", "build", "--data", site, "--weights", out, "--out", tmp_path / "new")[0] == 0
    code, text, _ = reid("search", image, "--camera", "door", "--gallery", tmp_path / "new")
    assert code == 0
    assert len(text.splitlines()) == 10


def test_the_command_knows_the_methods() -> None:
    assert tuple(site_adaptation.METHODS) == METHODS  # it names them without importing torch


def test_an_interrupted_run_goes_on_to_the_same_weights(
    reid, site: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("adapt", "--data", site, "--weights", weights, "--epochs", 2, "--out")
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    assert reid(*common, whole)[0] == 0

    def interrupt(*arguments: object) -> None:
        save_state(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(site_adaptation, "save_state", interrupt)
        code, _, err = reid(*common, stopped)
        assert code == 130
        assert "same command continues" in err
    assert state_file(stopped).exists()
    assert not stopped.exists()
    assert reid(*common, stopped)[0] == 0
    assert not state_file(stopped).exists()
    assert load_checkpoint(stopped).fingerprint == load_checkpoint(whole).fingerprint


def test_a_full_disk_is_one_line_and_the_old_file_stays(
    fails, reid, site: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "site.safetensors"
    common = ("adapt", "--data", site, "--weights", weights, "--out", out)
    assert reid(*common, "--method", "statistics")[0] == 0
    before = out.read_bytes()

    def full(path: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(site_adaptation, "save_state", full)
    assert "No space left" in fails(*common, "--epochs", 1)
    assert out.read_bytes() == before


def test_ten_crops_give_the_calibrated_network_and_one_line(reid, weights: Path, tmp_path: Path) -> None:
    write_manifest(draw_site(tmp_path / "ten", people=1, crops=5), tmp_path / "ten" / "manifest.csv")
    out = tmp_path / "w.safetensors"
    code, text, _ = reid("adapt", "--data", tmp_path / "ten" / "manifest.csv", "--weights", weights, "--out", out)
    assert code == 0
    assert len(text.splitlines()) == 1
    assert "10 crops are too few" in text
    assert load_checkpoint(out).domains == ("door", "yard")


def test_mistakes_are_one_line_before_any_work(fails, site: Path, weights: Path, tmp_path: Path) -> None:
    common = ("adapt", "--data", site, "--weights", weights)
    out = tmp_path / "w.safetensors"
    assert "known: cluster" in fails(*common, "--out", out, "--method", "clusters")
    assert "something else" in fails(*common, "--out", site)
    assert str(tmp_path / "none.pth") in fails(
        "adapt", "--data", site, "--weights", tmp_path / "none.pth", "--out", out
    )
    assert "same file" in fails(*common, "--out", out, "--report", out)
    assert weights.name in fails(*common, "--out", weights)
    assert "cluster" in fails(*common, "--out", out, "--method", "statistics", "--labelled", site)
