"""The wheel, installed into an empty folder, holds all it needs: protocols, shipped weights and the command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the installed wheel, with nothing else of the project."""
    out, site = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", out, ROOT], check=True)
    (wheel,) = out.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", site, wheel], check=True)
    return site


def run(site: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=site, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_only_reid_is_installed(installed: Path) -> None:
    folders = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert folders == {"reid", "bin"}


def test_protocols_and_weights_are_inside(installed: Path) -> None:
    script = (
        "import reid, pathlib\n"
        "from reid.data.protocols.data_sets import known_protocols, load_protocol\n"
        "from reid.pipeline import shipped_weights, load_checkpoint\n"
        "print(pathlib.Path(reid.__file__).parent)\n"
        "print(sorted(known_protocols()), load_protocol('market1501').title)\n"
        "print(load_checkpoint().source)\n"
    )
    where, known, weights = run(installed, "-c", script).splitlines()
    assert Path(where) == installed / "reid"
    folders = sorted(path.parent.name for path in (ROOT / "datasets").glob("*/protocol.toml"))
    assert known == f"{folders} Market-1501"
    assert Path(weights).parent == installed / "reid" / "_weights"


def test_the_command_runs(installed: Path) -> None:
    assert "Usage: reid" in run(installed, "-m", "reid.cli", "evaluate", "--help")
