"""The experiments of published results: where they are, what they reach and what their headers state."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reid.config import Experiment, load_config
from reid.data.crop_folder import init_protocol
from reid.errors import ConfigError, DataError, unknown_name

_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class PublishedRecipe:
    """A published experiment.

    Attributes:
        name: Its name, such as "market1501-cbn".
        path: The experiment file.
        target: The published figure and its paper, in a sentence.
        remarks: The other paragraphs of the header: what was not run here, and what differs from the paper.
        experiment: The experiment, with paths as the file has them.
        protocol: The protocol of its data set, such as "market1501" or "regdb:trial=1".
    """

    name: str
    path: Path
    target: str
    remarks: tuple[str, ...]
    experiment: Experiment
    protocol: str


def recipe_folder() -> Path:
    """Return the folder of the experiment files: in a checkout, or inside the package of an installed wheel."""
    in_checkout = _PACKAGE.parent / "scripts" / "experiments" / "published"
    return in_checkout if in_checkout.is_dir() else _PACKAGE / "_recipes"


def recipe_names() -> tuple[str, ...]:
    """Return the names of all published recipes.

    Example:
        >>> "market1501-cbn" in recipe_names()
        True
    """
    return tuple(sorted(path.stem for path in recipe_folder().glob("*.toml")))


def read_recipe(name: str) -> PublishedRecipe:
    """Read a published recipe.

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in recipe_names():
        raise ConfigError(unknown_name("recipe", name, recipe_names()))
    path = recipe_folder() / f"{name}.toml"
    lines = path.read_text(encoding="utf-8").split("\n\n[")[0].splitlines()
    paragraphs = _paragraphs([line.removeprefix("#") for line in lines])
    target = next(text for text in paragraphs if text.startswith("Target: "))
    remarks = tuple(text for text in paragraphs[1:] if text != target)
    words = next(line.split() for line in lines if "--protocol" in line)
    protocol = words[words.index("--protocol") + 1]
    return PublishedRecipe(name, path, target, remarks, load_config(path), protocol)


def write_manifest(recipe: PublishedRecipe, root: Path) -> None:
    """Write the manifest of a recipe's data set, where the folder does not have it yet.

    Raises:
        DataError: The folder does not hold the data set.
    """
    if not all((root / Path(path).name).is_file() for path in recipe.experiment.data.manifests):
        init_protocol(root, recipe.protocol, overwrite=False)


def with_root(recipe: PublishedRecipe, root: Path, weights: Path | None = None) -> Experiment:
    """Return the experiment of a recipe on the data set in a folder.

    Args:
        recipe: The recipe.
        root: The folder of the published data set, in which ``reid init`` wrote ``manifest.csv``.
        weights: The initial weights, where they are not at the path of the recipe.

    Raises:
        DataError: The folder holds no manifest.
        ConfigError: The initial weights are missing.
    """
    experiment = recipe.experiment
    manifests = tuple(str(root / Path(path).name) for path in experiment.data.manifests)
    for path in manifests:
        if not Path(path).is_file():
            raise DataError(f'{path}: no such file; write it with "reid init {root} --protocol {recipe.protocol}"')
    file = Path(weights or experiment.network.weights)
    if not file.is_file():
        raise ConfigError(
            f'{file}: no such weights; fetch them with "reid weights get {Path(experiment.network.weights).stem}", or'
            " name a file with --from"
        )
    return experiment.model_copy(
        update={
            "data": experiment.data.model_copy(update={"manifests": manifests}),
            "network": experiment.network.model_copy(update={"weights": str(file)}),
        }
    )


def _paragraphs(lines: list[str]) -> list[str]:
    """Join the lines of each paragraph; lines that are commands stay out."""
    found: list[list[str]] = [[]]
    for line in lines:
        if not line.strip():
            found.append([])
        elif not line.startswith("   reid "):
            found[-1].append(line.strip())
    return [" ".join(part) for part in found if part]
