"""Help, version and mistakes are answered before PyTorch and other heavy libraries are imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reid.cli import app
from reid.records import Embeddings, Sample
from reid.retrieval.gallery import Gallery

HEAVY = ("torch", "torchvision", "faiss", "gradio", "pandas", "pyarrow", "matplotlib")
# Runs the command line in a new process, and prints to stderr which heavy libraries it imported.
WRAPPER = f"""
import sys
from reid.cli import main
try:
    main(sys.argv[1:])
finally:
    print("imported:", *[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""
# Runs "--help" of each command that it gets as JSON.
HELP_OF_ALL = f"""
import json, sys
from reid.cli import main
for words in json.loads(sys.argv[1]):
    try:
        main([*words, "--help"])
    except SystemExit as stop:
        if stop.code:
            raise
print("imported:", *[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""
GROUPS = {
    "cameras": ("report", "watch", "merge", "center", "probe"),
    "index": ("build", "erase"),
    "identify": (
        "list",
        "same",
        "different",
        "confirm",
        "split",
        "name",
        "undo",
        "history",
        "export",
        "import",
        "handoff",
    ),
    "weights": ("list", "get"),
}


def run(folder: Path, *words: object) -> tuple[int, str, list[str], list[str]]:
    """Run a command in ``folder``: exit code, stdout, lines of stderr, heavy libraries."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", WRAPPER, *map(str, words)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    *lines, last = done.stderr.splitlines()
    assert last.startswith("imported:"), done.stderr
    return done.returncode, done.stdout, lines, last.split()[1:]


def names_of_commands() -> list[tuple[str, ...]]:
    single = [str(entry.name or getattr(entry.callback, "__name__", "")) for entry in _registered()]
    return [(name,) for name in single] + [(group, name) for group, names in GROUPS.items() for name in names]


def _registered():
    return [command for group in app.registered_groups for command in group.typer_instance.registered_commands]


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """A folder with a manifest whose second image is missing."""
    (tmp_path / "query.jpg").write_bytes(b"not read")
    (tmp_path / "manifest.csv").write_text(
        "path,identity,camera,split\nquery.jpg,anna,door,query\nmissing.jpg,anna,yard,gallery\n", encoding="utf-8"
    )
    (tmp_path / "whole.csv").write_text(
        "path,identity,camera,split\nquery.jpg,anna,door,query\nquery.jpg,anna,door,gallery\n", encoding="utf-8"
    )
    return tmp_path


def test_help_and_version(tmp_path: Path) -> None:
    code, out, err, heavy = run(tmp_path, "--help")
    assert (code, err, heavy) == (0, [], [])
    assert "sweep" in out
    assert "compare" not in out
    code, out, _, heavy = run(tmp_path, "--version")
    assert (code, heavy) == (0, [])
    assert out.startswith("reid 0.")


def test_the_help_of_every_command(tmp_path: Path) -> None:
    commands = names_of_commands()
    assert {("sweep",), ("diff",), ("serve",), ("index", "build")} <= set(commands)
    done = subprocess.run(
        [sys.executable, "-c", HELP_OF_ALL, json.dumps(commands)], capture_output=True, text=True, check=False
    )
    assert done.stderr.split() == ["imported:"]
    assert " ".join(done.stdout.split()).count("Example: reid ") == len(commands)


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (("nonsense",), "nonsense"),
        (("evaluate", "--nonsense"), "--nonsense"),
        (("search",), "image"),
        (("calibrate", "--out", "p", "--prior", "inf"), "--prior"),
    ],
)
def test_misspelt_commands(tmp_path: Path, words: tuple[str, ...], word: str) -> None:
    code, out, err, heavy = run(tmp_path, *words)
    assert (code, out, len(err), heavy) == (2, "", 1, [])
    assert word in err[0]


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (("evaluate", "--data", "none.csv"), "none.csv"),
        (("evaluate", "--data", "manifest.csv"), "missing.jpg"),
        (("evaluate", "--data", "manifest.csv", "--unseen-camera", "guess"), "guess"),
        (("evaluate", "--data", "whole.csv", "--weights", "none.pth"), "none.pth"),
        (("evaluate", "--data", "whole.csv", "--profiles", "none.st"), "none.st"),
        (("embed", "--data", "manifest.csv", "--out", "e.st"), "missing.jpg"),
        (("embed", "--data", "whole.csv", "--out", "e.st", "--weights", "none.pth"), "none.pth"),
        (("embed", "--data", "whole.csv", "--out", "manifest.csv"), "manifest.csv"),
        (("calibrate", "--data", "none.csv", "--out", "p.st"), "none.csv"),
        (("calibrate", "--data", "whole.csv", "--out", "p.st", "--by", "camra"), "camra"),
        (("calibrate", "--data", "whole.csv", "--out", "p.st", "--prior-from", "me"), "me"),
        (("calibrate", "--data", "whole.csv", "--out", "p.st", "--weights", "none.pth"), "none.pth"),
        (("index", "build", "--data", "none.csv"), "none.csv"),
        (("index", "build", "--data", "manifest.csv"), "missing.jpg"),
        (("index", "build", "--data", "whole.csv", "--weights", "none.pth"), "none.pth"),
        (("index", "erase", "none", "anna"), "none"),
        (("search", "query.jpg", "--gallery", "none"), "none"),
        (("search", "query.jpg", "--gallery", "."), "not a gallery"),
        (("search", "query.jpg", "--unseen-camera", "guess"), "guess"),
        (("cameras", "report", "--data", "none.csv"), "none.csv"),
        (("cameras", "report", "--plot", "curve.png"), "curve.png"),
        (("cameras", "report", "--data", "whole.csv", "--weights", "none.pth"), "none.pth"),
        (("cameras", "watch", "--data", "none.csv", "--reference", "whole.csv"), "none.csv"),
        (("cameras", "probe", "--data", "none.csv"), "none.csv"),
        (("cameras", "probe", "--data", "whole.csv", "--weights", "none.pth"), "none.pth"),
        (("cameras", "merge", "none.st", "none.st", "--out", "p.st"), "none.st"),
        (("validate", "--data", "none.csv"), "none.csv"),
        (("diff", "none.json", "none.json"), "none.json"),
        (("init", "none"), "none"),
        (("train", "none.toml"), "none.toml"),
        (("train", "none.toml", "--set", "train.epochs"), "none.toml"),
        (("sweep", "none.toml"), "none.toml"),
        (("export", "--weights", "none.pth", "--out", "n.onnx"), "none.pth"),
        (("ingest", "none.mp4", "--camera", "north", "--out", "crops"), "none.mp4"),
    ],
)
def test_wrong_input(crops: Path, words: tuple[str, ...], word: str) -> None:
    code, out, err, heavy = run(crops, *words)
    assert (code, out, len(err), heavy) == (1, "", 1, []), err
    assert err[0].startswith("error: ")
    assert word in err[0]


def test_a_missing_image_of_a_search(crops: Path) -> None:
    rows = Embeddings((Sample(crops / "1.jpg", "anna"),), np.eye(1, 4, dtype=np.float32), "f00d")
    Gallery.build(rows).save(crops / "gallery")
    for words, word in ((("missing.jpg",), "missing.jpg"), (("query.jpg", "--weights", "none.pth"), "none.pth")):
        code, _, err, heavy = run(crops, "search", *words, "--gallery", "gallery")
        assert (code, len(err), heavy) == (1, 1, [])
        assert word in err[0]


def test_two_results_are_compared(tmp_path: Path) -> None:
    results = Path(__file__).parents[1] / "data" / "version_0_1_0" / "scores.json"
    code, out, err, heavy = run(tmp_path, "diff", results, results, "--json", "change.json")
    assert (code, err, heavy) == (0, [], [])
    assert "mAP" in out
    assert json.loads((tmp_path / "change.json").read_text())["pairs"]
