"""The package keeps its structure: imports go one way, a name stands for one thing, a heavy library for one file."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "reid"
ORDER = (
    "errors",
    "records",
    "old_names",
    "files",
    "structured_text",
    "torch_files",
    "onnx_sessions",
    "config",
    "data",
    "norm",
    "models",
    "retrieval",
    "evaluation",
    "robustness",
    "training",
    "adaptation",
    "generation",
    "edge",
    "pipeline",
    "app",
    "cli",
)
LEVEL = {name: max(level, 1) for level, name in enumerate(ORDER)}  # errors and records are one layer
SOURCES = sorted(PACKAGE.rglob("*.py"))
ONE_FILE = {
    "faiss": ["reid/retrieval/faiss_index.py"],
    "pymilvus": ["reid/retrieval/stores/milvus_client.py"],
    "timm": ["reid/models/networks/timm_backbones.py"],
}
PARTS_OF_COMMANDS = (
    "budget_export",
    "camera_probe",
    "camera_repair",
    "corruption_options",
    "options",
    "old_usage",
    "gallery_options",
    "gate_warning",
    "generation_options",
    "identify_answers",
    "index_erasure",
    "index_exchange",
    "index_milvus",
    "index_tuning",
    "int8_export",
    "network_options",
    "own_data",
    "rerank_options",
    "shared_embedding",
    "start_manifest",
    "start_steps",
    "start_up",
    "search_messages",
)  # in reid/cli
FACES = ("__init__", "__main__")  # modules that every package may have

sources = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, top: ast.AST | None = None) -> Iterator[str]:
    """Yield every module that a file imports, at the top or inside a function."""
    for node in ast.walk(top or tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def layer_of_module(module: str) -> str | None:
    """Return the layer of an imported module; None where it is not a module inside reid."""
    parts = module.split(".")
    return parts[1] if parts[0] == "reid" and len(parts) > 1 else None


def layer_of_file(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def repeated(places: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: files for name, files in places.items() if len(files) > 1}


@sources
def test_imports_go_one_way(path: Path) -> None:
    own = layer_of_file(path)
    if own == "__init__":
        return
    for module in imports(path):
        other = layer_of_module(module)
        if other is not None:
            assert LEVEL[other] <= LEVEL[own], f"{path.name} ({own}) imports {module}"


def test_import_reid_imports_the_package_for_type_checkers_only() -> None:
    path = PACKAGE / "__init__.py"
    blocks = [node for node in tree_of(path).body if not isinstance(node, ast.If)]
    imported = {module for block in blocks for module in imports(path, block)}
    assert imported == {"__future__", "importlib"}


def test_every_layer_has_its_place_in_the_order() -> None:
    layers = {layer_of_file(path) for path in SOURCES if not path.name.startswith("__") or path.parent != PACKAGE}
    assert layers == set(ORDER)
    assert LEVEL["pipeline"] < LEVEL["app"] < LEVEL["cli"]


def test_a_module_name_stands_for_one_module() -> None:
    """The commands are left out: each is named like the command, and many commands like what they call."""
    places = defaultdict(list)
    for path in SOURCES:
        if path.stem not in FACES and path.parent != PACKAGE / "cli":
            places[path.stem].append(str(path.relative_to(ROOT)))
    assert repeated(places) == {}


def test_a_class_name_stands_for_one_class() -> None:
    places = defaultdict(list)
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert repeated(places) == {}


def test_a_command_is_named_like_its_file() -> None:
    from reid.cli import app

    names = set()
    for registered in app.registered_groups:
        commands = registered.typer_instance
        assert commands is not None
        for command in commands.registered_commands:
            names.add(command.name or getattr(command.callback, "__name__", ""))
        names |= {str(group.name) for group in commands.registered_groups}
    files = {path.stem for path in (PACKAGE / "cli").glob("*.py")} - {*FACES, *PARTS_OF_COMMANDS}
    assert names == files


@pytest.mark.parametrize("library", ONE_FILE)
def test_a_library_is_imported_in_one_file(library: str) -> None:
    users = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if any(module.split(".")[0] == library for module in imports(path))
    ]
    assert users == ONE_FILE[library]


def test_only_the_application_imports_gradio() -> None:
    users = {path for path in SOURCES if any(module.split(".")[0] == "gradio" for module in imports(path))}
    assert users
    assert all(path.is_relative_to(PACKAGE / "app") for path in users)


def test_only_reid_is_a_package() -> None:
    for folder in ("datasets", "scripts", "demo"):
        assert not (ROOT / folder / "__init__.py").exists()
    assert not [path for path in (ROOT / "datasets").rglob("*.py") if path.name != "prepare.py"]


@sources
def test_library_code_neither_asserts_nor_prints(path: Path) -> None:
    tree = tree_of(path)
    assert ast.get_docstring(tree), "no module docstring"
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: assert"
        called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        assert called != "print", f"line {node.lineno}: print"
