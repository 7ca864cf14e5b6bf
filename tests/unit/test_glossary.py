"""The glossary holds: public names use its words with its meanings, and a value has one name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
ALIASES = {"reid.old_names"}  # this module maps the names of version 0.1.0, so it spells them
VALUES_OF = ("reid.norm", "reid.models", "reid.retrieval", "reid.data.loading")
WORDS = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")


@dataclass(frozen=True)
class PublicName:
    """A name that users of a module may write; ``is_value``: a parameter or an attribute."""

    module: str
    name: str
    is_value: bool

    @property
    def words(self) -> list[str]:
        return [word.lower() for word in WORDS.findall(self.name)]


def table(heading: str) -> list[list[str]]:
    """The cells of the rows of the table under a heading, the heading of the table left out."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines[2:]]


def in_code(cell: str) -> list[str]:
    """What a cell has in code."""
    return re.findall(r"`([^`]+)`", cell)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def public_names(tree: ast.Module, module: str) -> Iterator[PublicName]:
    """The module, its public functions and classes, their parameters, methods and attributes."""
    yield PublicName(module, module.rpartition(".")[2], False)
    yield from names_in(tree.body, module)


def names_in(body: list[ast.stmt], module: str) -> Iterator[PublicName]:
    for node in body:
        if isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name == "__init__"):
            yield PublicName(module, node.name, any(is_property(decorator) for decorator in node.decorator_list))
            arguments = node.args
            for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
                yield PublicName(module, argument.arg, True)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield PublicName(module, node.name, False)
            yield from names_in(node.body, module)
        elif (
            isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not node.target.id.startswith("_")
        ):
            yield PublicName(module, node.target.id, True)


def is_property(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Name) and decorator.id in ("property", "cached_property")


@cache
def all_names() -> list[PublicName]:
    paths = sorted((ROOT / "reid").rglob("*.py"))
    found = [
        name for path in paths for name in public_names(ast.parse(path.read_text(encoding="utf-8")), module_of(path))
    ]
    return [name for name in found if name.module not in ALIASES]


def within(module: str, packages: list[str] | tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def uses(name: PublicName, row: list[str]) -> bool:
    """Whether a name uses the word of a row of the last table."""
    (word,), exceptions = in_code(row[0]), [name for name in in_code(row[2]) if name.startswith("reid")]
    if within(name.module, exceptions):
        return False
    if "the whole name" in row[0]:
        return name.name.lower() == word
    return f"_{word}_" in f"_{'_'.join(name.words)}_"


@pytest.mark.parametrize("row", table("Words that are not used"), ids=lambda row: in_code(row[0])[0])
def test_no_public_name_uses_a_word_that_has_gone(row: list[str]) -> None:
    assert sorted({f"{name.module}: {name.name}" for name in all_names() if uses(name, row)}) == []


@pytest.mark.parametrize("row", table("Names of values"), ids=lambda row: in_code(row[0])[0])
def test_a_value_has_one_name(row: list[str]) -> None:
    others = set(in_code(row[2]))
    assert others
    found = {
        f"{name.module}: {name.name}"
        for name in all_names()
        if name.is_value and name.name in others and within(name.module, VALUES_OF)
    }
    assert sorted(found) == []


@pytest.mark.parametrize("row", table("Names of values"), ids=lambda row: in_code(row[0])[0])
def test_the_names_of_values_are_in_use(row: list[str]) -> None:
    in_use = {name.name for name in all_names() if name.is_value}
    assert set(in_code(row[0])) <= in_use


@pytest.mark.parametrize("heading", ["Words", "Names of values", "Names of version 0.1.0", "Words that are not used"])
def test_every_entry_has_a_meaning(heading: str) -> None:
    rows = table(heading)
    assert len(rows) > 5
    assert not [row for row in rows if not row[0] or not row[1]]
    assert len({row[0] for row in rows}) == len(rows)


def test_words_are_sorted() -> None:
    words = [row[0].lower() for row in table("Words")]
    assert words == sorted(words)


def test_the_check_finds_words_in_names() -> None:
    source = "class Film:\n    place: str\n    def meet(self, by): ...\ndef sort_by_camera(unmet): ...\n"
    names = list(public_names(ast.parse(source), "reid.x"))
    rows = {in_code(row[0])[0]: row for row in table("Words that are not used")}
    assert {word for word, row in rows.items() if any(uses(name, row) for name in names)} == {
        "film",
        "place",
        "meet",
        "by",
    }
