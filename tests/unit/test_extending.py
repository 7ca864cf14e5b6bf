"""The recipes of docs/extending.md work as they are written: a copy of the checkout is changed by their blocks, and the
recipes' own tests run there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "extending.md"
RECIPE = re.compile(r"^## Add an? (.*?)$\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r'^```(\w+) title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
MOST_FILES = 3
# The tables of systems are compared with the code.
DOCUMENTED = [
    f"tests/unit/test_docs.py::{name}"
    for name in ("test_every_system_has_a_row_with_code_and_oracle", "test_every_line_of_usage_works")
]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", ".hypothesis", "build", "site-packages")
Block = tuple[str, str, str]  # language, file, text


def recipes() -> dict[str, list[Block]]:
    """The blocks of every recipe, by what it adds."""
    return {name: BLOCK.findall(text) for name, text in RECIPE.findall(PAGE.read_text(encoding="utf-8"))}


def follow(block: Block, folder: Path) -> None:
    """Make the change of one block in a checkout: write a new file, or add lines to one that is there."""
    language, name, text = block
    path = folder / name
    if language != "diff":
        assert not path.exists(), f"{name} is not new"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    before = "".join(line[1:] for line in text.splitlines(keepends=True) if line.startswith(" "))
    after = "".join(line[1:] or line for line in text.splitlines(keepends=True))
    old = path.read_text(encoding="utf-8")
    assert f"\n{old}".count(f"\n{before}") == 1, f"{name} does not have this line once: {before}"
    path.write_text(f"\n{old}".replace(f"\n{before}", f"\n{after}")[1:], encoding="utf-8")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout in which all recipes have been followed."""
    folder = tmp_path_factory.mktemp("extended") / "reid"
    folder.mkdir()
    for name in ("reid", "tests", "docs", "datasets", "scripts", "demo", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=LEFT_OUT)
    for path in ROOT.glob("*.*"):
        if path.is_file():
            shutil.copy(path, folder)
    for blocks in recipes().values():
        for block in blocks:
            follow(block, folder)
    return folder


@pytest.fixture(scope="module")
def outcomes(checkout: Path) -> dict[str, list[str]]:
    """What pytest reports about every test file of the recipes and about the documentation, by file."""
    files = [name for blocks in recipes().values() for _, name, _ in blocks if name.startswith("tests/")]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-p",
        "no:cacheprovider",
        "--show-capture=no",
        "--continue-on-collection-errors",
        *files,
        *DOCUMENTED,
    ]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    found = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    lines = defaultdict(list)
    for file, result in re.findall(r"^(tests/\S+?\.py)(?:::.*?)? (PASSED|FAILED|ERROR)\b", found.stdout, re.MULTILINE):
        lines[file].append(result)
    lines["everything"] = [found.stdout + found.stderr]
    return lines


def test_there_are_seven_recipes() -> None:
    table = re.findall(r"^\| \[an? (.*?)\]\(#.*?\) \| (\d) \| (\d) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(table) == 7
    assert [name for name, _, _ in table] == list(recipes())


@pytest.mark.parametrize("recipe", recipes())
def test_a_recipe_touches_few_files(recipe: str) -> None:
    files = {name for _, name, _ in recipes()[recipe]}
    tests = {name for name in files if name.startswith("tests/")}
    assert len(files) <= MOST_FILES
    assert tests
    table = PAGE.read_text(encoding="utf-8").partition("\n## ")[0]
    assert re.search(rf"\[an? {recipe}\]\(#.*?\) \| {len(files)} \| {len(tests)} \|", table)


@pytest.mark.parametrize("recipe", recipes())
def test_the_test_of_a_recipe_passes_where_it_was_followed(recipe: str, outcomes: dict[str, list[str]]) -> None:
    for _, name, _ in recipes()[recipe]:
        if name.startswith("tests/"):
            assert outcomes[name], outcomes["everything"][0][-4000:]
            assert set(outcomes[name]) == {"PASSED"}, outcomes["everything"][0][-4000:]


def test_the_documentation_agrees_with_what_was_added(outcomes: dict[str, list[str]]) -> None:
    assert set(outcomes["tests/unit/test_docs.py"]) == {"PASSED"}, outcomes["everything"][0][-4000:]


def test_what_was_added_is_formatted(checkout: Path) -> None:
    files = [name for blocks in recipes().values() for _, name, _ in blocks if name.endswith(".py")]
    for words in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *words, *files]
        found = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
        assert not found.returncode, found.stdout
