"""The layers import one way, heavy libraries stay in their corner, and only ``reid`` is importable."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDER = (
    "errors",
    "records",
    "old_names",
    "files",
    "config",
    "data",
    "norm",
    "models",
    "retrieval",
    "evaluation",
    "training",
    "pipeline",
    "app",
    "cli",
)
LEVEL = {name: max(level, 1) for level, name in enumerate(ORDER)}  # errors and records are one layer
SOURCES = sorted((ROOT / "reid").rglob("*.py"))
CORNERS = {
    "faiss": ["reid/retrieval/faiss_index.py"],
    "pymilvus": [],
    "timm": ["reid/models/networks/backbones.py"],
}


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, at the top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def layer(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "reid" and len(parts) > 1 else None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    own = path.relative_to(ROOT / "reid").with_suffix("").parts[0]
    if own == "__init__":
        assert not list(imports(path))
        return
    for module in imports(path):
        other = layer(module)
        if other is not None:
            assert LEVEL[other] <= LEVEL[own], f"{path.name} ({own}) imports {module}"


@pytest.mark.parametrize("library", CORNERS)
def test_libraries_stay_in_their_corner(library: str) -> None:
    users = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if any(module.split(".")[0] == library for module in imports(path))
    ]
    assert users == CORNERS[library]


def test_only_the_application_imports_gradio() -> None:
    users = {path for path in SOURCES if any(module.split(".")[0] == "gradio" for module in imports(path))}
    assert users
    assert all(path.is_relative_to(ROOT / "reid" / "app") for path in users)


def test_only_reid_is_a_package() -> None:
    for folder in ("datasets", "scripts", "demo"):
        assert not (ROOT / folder / "__init__.py").exists()
    assert not [path for path in (ROOT / "datasets").rglob("*.py") if path.name != "prepare.py"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_library_code_neither_asserts_nor_prints(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "no module docstring"
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: assert"
        called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        assert called != "print", f"line {node.lineno}: print"
