"""The documentation is right: links lead to files, tests it names exist, its Python and its configs run."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
import torch

from reid.config import parse_config
from reid.norm import SYSTEMS, DomainPolicy, camera_batchnorm, domain_batchnorm, modality_batchnorm

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md")))
TEST_FILES = sorted((ROOT / "tests").rglob("*.py"))
GUIDE = ROOT / "docs" / "normalization.md"
SYSTEMS_PAGE = ROOT / "docs" / "normalization-systems.md"
RERANKING_PAGE = ROOT / "docs" / "re-ranking.md"

LINK = re.compile(r"\]\(([^)\s]+)\)")
TEST = re.compile(r"([\w./-]+\.py)::(\w+)")
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE_LINK = re.compile(r"\[`([\w./-]+\.py)`?((?: `?[\w`, ]+)?)\]\(([^)\s]+)\)")
POLICY = r"(?:camera_batchnorm|modality_batchnorm|domain_batchnorm|DomainPolicy)\(.*\)"


def prose(page: Path) -> str:
    """The text of a page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def dead_links(page: Path, text: str) -> list[str]:
    """Relative links in ``text`` that lead to no file, from where ``page`` lies."""
    targets = (target.partition("#")[0] for target in LINK.findall(text))
    local = (target for target in targets if target and "://" not in target and not target.startswith("mailto:"))
    return [target for target in local if not (page.parent / target).exists()]


def missing_tests(text: str) -> list[str]:
    """Mentions ``path::name`` in ``text`` that are no test; a path may be shortened to its end where that is unique."""
    missing = []
    for path, name in TEST.findall(text):
        files = [file for file in TEST_FILES if f"/{file.as_posix()}".endswith(f"/{path}")]
        if len(files) != 1 or name not in functions_of(files[0]):
            missing.append(f"{path}::{name}")
    return missing


@cache
def functions_of(path: Path) -> set[str]:
    """The names of the functions and classes at the top of a file."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, kinds)}


def rows(text: str) -> list[list[str]]:
    """The cells of every row of every table."""
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")
    ]


def named(cell: str) -> str:
    """The system that the first cell of a row names in code, or ""."""
    found = re.match(r"`(\w+)`", cell)
    return found.group(1) if found else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    assert not dead_links(page, prose(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tests_that_are_named_exist(page: Path) -> None:
    assert not missing_tests(prose(page))


def test_the_checks_find_mistakes() -> None:
    assert dead_links(GUIDE, "[a](nowhere.md) [b](../README.md#results) [c](https://host/x)") == ["nowhere.md"]
    wrong = "test_docs.py::test_nothing, nowhere.py::test_a, unit/test_docs.py::test_the_checks_find_mistakes"
    assert missing_tests(wrong) == ["test_docs.py::test_nothing", "nowhere.py::test_a"]


def test_a_link_to_a_test_goes_to_its_file() -> None:
    found = re.findall(r"\[`([\w./-]+\.py)::\w+`\]\(([^)]+)\)", prose(SYSTEMS_PAGE))
    assert found
    assert not [(path, target) for path, target in found if not target.endswith(f"/{path}")]


def test_every_name_beside_a_link_stands_in_that_file() -> None:
    linked = [(path, re.findall(r"\w+", rest), target) for path, rest, target in CODE_LINK.findall(prose(SYSTEMS_PAGE))]
    assert len([names for _, names, _ in linked if names]) > len(SYSTEMS)
    for path, names, target in linked:
        assert target.endswith(f"/{path}"), target
        text = (SYSTEMS_PAGE.parent / target).read_text(encoding="utf-8")
        for name in names:
            assert re.search(rf"^(?:def |class )?{name}\b", text, re.MULTILINE), f"{target} does not define {name}"


def test_every_name_in_code_stands_somewhere_in_the_code() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "reid").rglob("*.py")))
    words = set(re.findall(r"\w+", sources))
    found = set(re.findall(r"`([A-Za-z_]\w+)(?:\(.*?\))?`", prose(SYSTEMS_PAGE)))
    assert "convert_norm" in found
    assert not found - words


def test_every_system_has_a_row_with_code_and_oracle() -> None:
    table = [row for row in rows(prose(SYSTEMS_PAGE)) if len(row) == 8 and named(row[0])]
    assert {named(row[0]) for row in table} == set(SYSTEMS)
    for row in table:
        assert all(row), row
        assert "](../reid/" in row[6], row[0]
        assert TEST.search(row[7]), row[0]
        assert "](../tests/" in row[7], row[0]


def test_every_line_of_usage_works() -> None:
    table = [row for row in rows(prose(SYSTEMS_PAGE)) if len(row) == 3 and re.match(f"`{POLICY}`$", row[1])]
    assert {named(row[0]) for row in table} == set(SYSTEMS)
    makers = (camera_batchnorm, modality_batchnorm, domain_batchnorm, DomainPolicy)
    for system, policy, config in table:
        made = eval(policy.strip("`"), {maker.__name__: maker for maker in makers})
        experiment = parse_config(tomllib.loads(f'{config.strip("`")}\ndata.manifests = ["m.csv"]'), system)
        assert made.system == experiment.norm.system == named(system)
        assert made.affine == experiment.norm.affine
        assert experiment.norm.axis in (made.axis, "batch")


def test_other_configs_are_read() -> None:
    listed = {row[2] for row in rows(prose(SYSTEMS_PAGE)) if len(row) == 3}
    configs = re.findall(r"`((?:norm|train) = \{[^`]*\})`", prose(SYSTEMS_PAGE))
    others = [config for config in configs if f"`{config}`" not in listed]
    assert others
    for config in others:
        parse_config(tomllib.loads(f'{config}\ndata.manifests = ["m.csv"]'), config)


@pytest.mark.parametrize("page", [GUIDE, SYSTEMS_PAGE, RERANKING_PAGE], ids=lambda page: page.stem)
def test_the_blocks_of_python_run(page: Path) -> None:
    """One after the other with the names of those before, as a reader runs them."""
    blocks = [code for language, code in FENCE.findall(page.read_text(encoding="utf-8")) if language == "python"]
    assert len(blocks) >= 2
    names: dict[str, object] = {"__name__": "docs"}
    with torch.random.fork_rng():
        for number, code in enumerate(blocks):
            exec(compile(code, f"{page.name}, block {number + 1}", "exec"), names)  # noqa: S102 (our own page)


def test_the_guide_has_a_config_for_each_system_that_it_recommends() -> None:
    configs = re.findall(r"`(norm = \{[^`]*\})`", prose(GUIDE))
    assert len(configs) > 5
    for config in configs:
        experiment = parse_config(tomllib.loads(f'{config}\ndata.manifests = ["m.csv"]'), config)
        assert experiment.norm.system in SYSTEMS
