"""The documentation site: it is complete, loads nothing from elsewhere, and describes every public name."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main
import yaml

import reid
from reid.cli import app

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SETTINGS = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
# What torch calls of a layer: its meaning is the class's, and torch documents the method.
OF_TORCH = {"forward", "extra_repr", "get_extra_state", "set_extra_state", "train", "__init__"}


def script(name: str) -> ModuleType:
    """A program of docs/site as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_site_{name}", DOCS / "site" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages_of(nav: list[Any]) -> Iterator[str]:
    """The pages of a table of contents, those of its chapters included."""
    for entry in nav:
        if isinstance(entry, str):
            yield entry
        else:
            for part in entry.values():
                yield from pages_of(part if isinstance(part, list) else [part])


def undocumented(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    """The public functions, classes and methods of a body of code that have no docstring."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node) and node.name not in OF_TORCH:
                yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from undocumented(node.body, f"{prefix}{node.name}.")


def test_the_contents_list_every_page_once() -> None:
    listed = list(pages_of(SETTINGS["nav"]))
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    generated = {f"reference/{name}.md" for name in script("prepare").REFERENCE}
    assert len(listed) == len(set(listed))
    assert set(listed) == written | generated


def test_the_site_is_strict_and_asks_no_other_host() -> None:
    assert SETTINGS["strict"] is True
    assert SETTINGS["theme"]["font"] is False
    assert {"extra_javascript", "extra_css", "repo_url", "edit_uri"}.isdisjoint(SETTINGS)
    assert "analytics" not in SETTINGS.get("extra", {})
    assert "://" not in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def test_the_check_of_the_site_finds_what_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    harmless = (
        '<a href="https://host/page">a link</a><img src="images/own.png"><link rel="canonical" href="https://h/">'
    )
    (tmp_path / "good.html").write_text(harmless, encoding="utf-8")
    check = script("check_site")
    assert not list(check.remote_loads(tmp_path))
    loads = (
        '<script src="https://host/a.js"></script>',
        '<link rel="stylesheet" href="//host/b.css">',
        '<link rel="preconnect" href="https://fonts.host">',
        '<img src="https://host/c.png">',
        '<img srcset="own.png 1x, https://host/d.png 2x">',
        "<style>@import url(https://host/e.css);</style>",
        '<p style="background: url(//host/f.png)">',
        '<pre class="mermaid">graph</pre>',
    )
    for text in loads:
        (tmp_path / "good.html").write_text(text, encoding="utf-8")
        assert len(list(check.remote_loads(tmp_path))) == 1, text
    (tmp_path / "good.html").write_text(harmless, encoding="utf-8")
    (tmp_path / "style.css").write_text("@font-face { src: url('https://host/g.woff2') }", encoding="utf-8")
    assert [path.name for path, _ in check.remote_loads(tmp_path)] == ["style.css"]


@pytest.mark.parametrize("path", sorted((ROOT / "reid").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_public_name_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert not list(undocumented(tree.body))


def test_every_module_has_a_place_in_the_reference() -> None:
    """All of them but those of the program itself: its commands and pages are documented as such."""
    described = script("prepare").documented_modules()
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "reid").rglob("*.py")
    }
    missing = {module for module in modules - described if not module.startswith(("reid.cli", "reid.app.pages"))}
    assert missing <= {"reid"}


def test_every_public_name_stands_in_the_reference() -> None:
    prepare = script("prepare")
    described = prepare.documented_modules()
    page = prepare.public_names_table()
    names = [name for name in dir(reid) if not name.startswith("_")]
    assert len(names) > 10
    for name in names:
        link = re.search(rf"^\| \[`{name}`\]\[([\w.]+)\.\w+\] \| .", page, re.MULTILINE)
        assert link or f"| `{name}` |" in page, name
        assert not link or link[1] in described, name


def test_every_command_and_option_has_help() -> None:
    prepare = script("prepare")
    commands = dict(prepare.commands_of(typer.main.get_command(app), "reid"))
    assert "reid evaluate" in commands
    for words, command in commands.items():
        assert command.help, words
        assert command.epilog, f"{words}: no example"
        assert not [option.name for option in command.params if not option.help and not option.hidden], words


def test_the_reference_of_commands_lists_every_option() -> None:
    prepare = script("prepare")
    page = "\n" + prepare.commands_text()
    for words, command in prepare.commands_of(typer.main.get_command(app), "reid"):
        section = page.partition(f"\n## {words}\n")[2].partition("\n## ")[0]
        for option in command.params:
            is_option = option.opts[0].startswith("-")
            shown = option.opts[0] if is_option else option.metavar or option.opts[0]
            assert option.hidden or option.name == "help" or shown.lower() in section.lower(), (words, option)


def test_links_to_sources_lead_to_the_reference() -> None:
    redirected = script("prepare").redirected_links
    page = DOCS / "normalization.md"
    assert redirected("[`a.py` `B`](../reid/norm/convert.py)", page) == "[`a.py` `B`][reid.norm.convert]"
    assert redirected("[a test](../tests/unit/test_site.py)", page) == "a test"
    assert redirected("[a page](results/norms.md)", page) == "[a page](results/norms.md)"
    code = "```diff\n+[a test](../tests/nowhere.py)\n```\n"
    assert redirected(code, page) == code
    with pytest.raises(SystemExit) as caught:
        redirected("[nowhere](../reid/nowhere.py)", page)
    assert "../reid/nowhere.py" in str(caught.value)
