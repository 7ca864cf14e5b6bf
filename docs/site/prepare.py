"""Prepare the pages of the documentation site: copy the guides, generate the references, redirect links to sources.

``python docs/site/prepare.py FOLDER`` writes the folder that mkdocs builds. All that is particular to this project
happens here, in plain Markdown, so that another site builder can take the place of mkdocs.
"""

from __future__ import annotations

import inspect
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import typer.main

import reid
from reid.cli import app

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
# Each page of the reference: its title, and the packages and modules whose public names it documents.
REFERENCE = {
    "norm": ("Normalization: reid.norm", ("reid.norm", "reid.norm.specialised")),
    "models": ("Networks and weights: reid.models", ("reid.models", "reid.models.networks", "reid.models.weights")),
    "retrieval": ("Search: reid.retrieval", ("reid.retrieval", "reid.retrieval.persons", "reid.retrieval.stores")),
    "evaluation": (
        "Evaluation: reid.evaluation",
        ("reid.evaluation", "reid.evaluation.analysis", "reid.evaluation.reports"),
    ),
    "data": ("Data: reid.data", ("reid.data", "reid.data.corruptions", "reid.data.protocols", "reid.data.video")),
    "street": ("The synthetic street: reid.data.street", ("reid.data.street",)),
    "robustness": ("Attacks: reid.robustness", ("reid.robustness",)),
    "training": ("Training: reid.training", ("reid.training",)),
    "adaptation": ("Adaptation to a site: reid.adaptation", ("reid.adaptation",)),
    "generation": ("Networks that write crops: reid.generation", ("reid.generation",)),
    "edge": ("Small computers: reid.edge", ("reid.edge",)),
    "program": (
        "Records, files and the program",
        (
            "reid.records",
            "reid.errors",
            "reid.files",
            "reid.structured_text",
            "reid.torch_files",
            "reid.onnx_sessions",
            "reid.config",
            "reid.old_names",
            "reid.pipeline",
            "reid.app",
        ),
    ),
}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((\.\./[^)\s]+)\)")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
WORDS = {"str": "TEXT", "int": "N", "float": "NUMBER", "Path": "PATH"}


def prepare(folder: Path) -> None:
    """Write all pages of the site into ``folder``, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DOCS, folder, ignore=shutil.ignore_patterns("site", "__pycache__"))
    for page in sorted(DOCS.rglob("*.md")):
        text = redirected_links(page.read_text(encoding="utf-8"), page)
        (folder / page.relative_to(DOCS)).write_text(text, encoding="utf-8")
    fill(folder / "cli.md", "<!-- generated: commands -->", commands_text())
    fill(folder / "reference" / "index.md", "<!-- generated: public names -->", public_names_table())
    for name, (title, packages) in REFERENCE.items():
        (folder / "reference" / f"{name}.md").write_text(api_page(title, packages), encoding="utf-8")


def fill(page: Path, mark: str, text: str) -> None:
    """Replace ``mark`` on a page by generated text."""
    before, found, after = page.read_text(encoding="utf-8").partition(mark)
    if not found:
        raise SystemExit(f"{page}: expected a line {mark}")
    page.write_text(before + text + after, encoding="utf-8")


def redirected_links(text: str, page: Path) -> str:
    """Lead links that leave docs/ to the reference; where there is none, keep their text without the link.

    In the repository such a link opens a file. The site holds no sources: a module leads to its place in the
    reference, and a test or a table of data keeps its text, which names the file.
    """

    def redirected(link: re.Match[str]) -> str:
        target = (page.parent / link[3].partition("#")[0]).resolve()
        if target.is_relative_to(DOCS) or link[1]:
            return link[0]
        if not target.exists():
            raise SystemExit(f"{page.relative_to(ROOT)}: the link to {link[3]} leads to no file")
        module = ".".join(target.relative_to(ROOT).with_suffix("").parts)
        return f"[{link[2]}][{module}]" if module in documented_modules() else link[2]

    parts = FENCE.split(text)  # text and blocks of code in turns
    return "".join(part if part.startswith("```") else LINK.sub(redirected, part) for part in parts)


def documented_modules() -> set[str]:
    """The names of all packages and modules that a page of the reference documents."""
    return {module for _, packages in REFERENCE.values() for package in packages for module in modules_of(package)}


def modules_of(package: str) -> Iterator[str]:
    """The name of a package or module, then the names of the modules directly in it."""
    yield package
    folder = ROOT.joinpath(*package.split("."))
    if folder.is_dir():
        yield from (f"{package}.{path.stem}" for path in sorted(folder.glob("[!_]*.py")))


def api_page(title: str, packages: tuple[str, ...]) -> str:
    """The page of some packages: every module with its public functions and classes."""
    lines = [f"# {title}", ""]
    for package in packages:
        for module in modules_of(package):
            # A package lists what it takes from its modules; these names are documented where they are defined.
            is_package = ROOT.joinpath(*module.split(".")).is_dir()
            lines += [f"::: {module}", *(["    options:", "      members: false"] if is_package else []), ""]
    return "\n".join(lines)


def public_names_table() -> str:
    """What ``import reid`` offers: one row a name, with a link to its full description."""
    lines = ["| name | what it is for |", "|---|---|"]
    for name in sorted((name for name in dir(reid) if not name.startswith("_")), key=str.lower):
        value = getattr(reid, name)
        if hasattr(value, "__qualname__"):
            sentence = re.split(r"(?<=\.)\s", inspect.getdoc(value) or "")[0].replace("\n", " ").replace("|", "\\|")
            lines.append(f"| [`{name}`][{value.__module__}.{value.__qualname__}] | {sentence} |")
        else:  # a type of a few words, such as the policies for unseen cameras
            lines.append(f"| `{name}` | One of {', '.join(f'`{word}`' for word in get_args(value))}. |")
    return "\n".join(lines) + "\n"


def commands_text() -> str:
    """A section for each command, from the texts that ``--help`` shows."""
    program: Any = typer.main.get_command(app)
    lines: list[str] = []
    for words, command in commands_of(program, "reid"):
        lines += [f"## {words}", "", inspect.cleandoc(command.help or ""), ""]
        if command.epilog:
            lines += ["```sh", command.epilog.removeprefix("Example:").strip(), "```", ""]
        lines += ["| option | meaning | default |", "|---|---|---|"]
        lines += [option_row(option) for option in command.params if not option.hidden and option.name != "help"]
        lines.append("")
    return "\n".join(lines)


def commands_of(group: Any, words: str) -> Iterator[tuple[str, Any]]:
    """Every command below ``group`` that users are shown, with the words that call it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands_of(command, f"{words} {name}")
        elif not command.hidden:
            yield f"{words} {name}", command


def option_row(option: Any) -> str:
    """The row of one option or argument in the table of its command."""
    is_option = option.opts[0].startswith("-")
    is_flag = is_option and option.is_flag
    name = ", ".join(option.opts) if is_option else option.metavar or option.name.upper()
    if is_option and not is_flag:
        name += f" {option.metavar or value_words(option.type_descriptor.annotation)}"
    default = option.default
    shown = "" if default is None or is_flag or callable(default) or default == "" else f"`{default}`"
    text = re.sub(r"([|*_<\[\]])", r"\\\1", option.help or "")
    return f"| `{name}` | {text} | {'required' if option.required else shown} |"


def value_words(annotation: Any) -> str:
    """What stands behind an option of a type, such as "N N" for a pair of integers."""
    inner = [part for part in get_args(annotation) if part is not type(None)]
    if get_origin(annotation) is tuple:
        return " ".join(value_words(part) for part in inner)
    return value_words(inner[0]) if inner else WORDS.get(getattr(annotation, "__name__", ""), "TEXT")


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))
