"""Check protocol tables and fill their templates: files, counts, variants, and the rule of scoring.

A table is the file ``datasets/<name>/protocol.toml``.  This module reads no other file of a data set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from reid.errors import DataError, unknown_name
from reid.old_names import PROTOCOL_KEYS, current_rule
from reid.records import Modality, Split
from reid.structured_text import parse_toml, read_toml


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return pattern


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Count(_Table):
    """The numbers that the authors published about one split.

    A text is a template for the words of the variants.

    Attributes:
        images: Number of images.
        identities: Number of identities without distractors.
        tracks: Number of tracks.
    """

    images: int | str | None = None
    identities: int | str | None = None
    tracks: int | str | None = None


class Variant(_Table):
    """A choice that the user makes, such as one of ten trials.

    Attributes:
        default: The choice when the user makes none.
        choices: Maps each choice to the words that it inserts for ``{word}`` in templates.  The name of the variant is
            such a word too and stands for the choice itself.
        mean: The published figure is the mean over all choices.  The choice "all" runs them one after the other.
    """

    default: str
    choices: dict[str, dict[str, str]]
    mean: bool = False

    @model_validator(mode="after")
    def _default_is_a_choice(self) -> Variant:
        if self.default not in self.choices:
            raise ValueError(unknown_name("default", self.default, self.choices))
        return self


class FileGroup(_Table):
    """Files of one split, found by a glob or named in a list.

    Attributes:
        split: The split of the files.
        pattern: A regular expression with the group ``identity`` and, if the names tell it, ``camera``.  It must match
            each path relative to the root, or each line of the list, where the group ``path`` is the file.
        glob: Finds the files below the root.
        list: A text file with one line for each file; either ``glob`` or ``list`` is given.
        header: Number of lines at the top of the list that are not read.
        folder: The folder that the paths of the list are relative to.
        identity: Template of the identity, filled with the groups of the pattern and the words of the variants.
        camera: Template of the camera.
        identity_files: Files with identities, separated by commas; only these identities are read.
        skip: Identities that are not read, because the authors call them junk.
        distractors: Identities that are read but do not count as identities.
        tracks: Template of a text file whose lines name a track and its images; "" where there are no tracks.
    """

    split: Split
    pattern: Annotated[str, AfterValidator(_compiles)]
    glob: str = ""
    list: str = ""
    header: int = 0
    folder: str = "."
    identity: str = "{identity}"
    camera: str = "{camera}"
    identity_files: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    distractors: tuple[str, ...] = ()
    tracks: str = ""

    @model_validator(mode="after")
    def _glob_or_list(self) -> FileGroup:
        if bool(self.glob) == bool(self.list):
            raise ValueError("expected either glob or list")
        for group in ("identity", "path") if self.list else ("identity",):
            if group not in re.compile(self.pattern).groupindex:
                raise ValueError(f"the pattern needs a group named {group}")
        return self

    def example(self) -> str:
        """Compose a text that the pattern matches, such as query/1111_c1s1_1_1.jpg, for error messages.

        Returns the pattern itself where that does not succeed.
        """
        name, before = re.sub(r"\(\?P<\w+>", "(", self.pattern), ""
        while name != before:  # replace groups by their last alternative, innermost groups first
            before, name = name, re.sub(r"\((?:[^()|]*\|)*([^()|]*)\)", r"\1", name)
        for pattern, shown in ((r"\[\^/\]|\\[wS]", "x"), (r"\[(\w)[^\]]*\]", r"\1"), (r"\\d", "1")):
            name = re.sub(pattern, shown, name)
        name = re.sub(r"(\w)\{(\d+)\}", lambda found: found[1] * int(found[2]), name)
        name = re.sub(r"\w[*?]|\+|\\(?=\W)", "", name)
        return name if re.fullmatch(self.pattern, name) else self.pattern


class Division(_Table):
    """How the identities of a small data set are divided for training and testing.

    Attributes:
        train: Number of identities for training.
        seed: Template of the number that decides the division.
        partitions: MATLAB file with the authors' partitions; the number then selects one of them.
        pair: Draw one query and one gallery image of each test identity; otherwise the parts tell them.
    """

    train: int = Field(ge=1)
    seed: str = "{split}"
    partitions: str = ""
    pair: bool = False


class Rule(_Table):
    """How queries are scored against a gallery.  The defaults are the rule of Market-1501.

    Attributes:
        ignore: Which gallery images are neither right nor wrong for a query.  "camera": images of its identity from its
            own camera, or from a camera at the same location.  "location": all images from its location, whoever they
            show (SYSU-MM01).  "itself": only the same image (leave-one-out).
        cmc: What has a rank in the CMC.  "image": every image.  "identity": every identity, at the rank of its best
            image.  "single-shot": one image of each identity, drawn ``repeats`` times for a query (CUHK03).
        precision: "rectangle", or "trapezoid" as in the first evaluation code of Market-1501.
        unmatched: Queries without a right answer are "dropped", or count as "zero".
        gallery: "all": every image of the gallery split.  "permutation": the first ``shots`` images of each identity
            and camera in the order of a MATLAB file.  "random": as many images, drawn by Python's ``random`` with the
            seeds 0, 1, ...
        shots: Number of images of each identity and camera in a drawn gallery.
        trials: Number of galleries that are drawn; scores are means over them.
        repeats: Number of draws for the single-shot CMC.
        modalities: A query is scored against each modality of the gallery "apart", or against all of them "mixed".
        ranked: Each "image" of the gallery has a rank, or each "track", at its best image (VeRi-776).
        ties: Among equal scores the wrong answers stand first, "worst", or the score is the "mean" over all orders.

    Example:
        >>> Rule().changed({"ignore": "location", "trials": "10"}).text()
        'market ignore=location trials=10'
    """

    ignore: Literal["camera", "location", "itself"] = "camera"
    cmc: Literal["image", "identity", "single-shot"] = "image"
    precision: Literal["rectangle", "trapezoid"] = "rectangle"
    unmatched: Literal["dropped", "zero"] = "dropped"
    gallery: Literal["all", "permutation", "random"] = "all"
    shots: int = Field(default=1, ge=1)
    trials: int = Field(default=1, ge=1)
    repeats: int = Field(default=1, ge=1)
    modalities: Literal["apart", "mixed"] = "apart"
    ranked: Literal["image", "track"] = "image"
    ties: Literal["worst", "mean"] = "worst"

    def text(self) -> str:
        """Write the rule as one line: "market" and the settings that differ from it."""
        differs = [f"{name}={value}" for name, value in self.model_dump(exclude_defaults=True).items()]
        return " ".join(["market", *differs])

    def changed(self, changes: Mapping[str, object]) -> Rule:
        """Copy the rule with some settings changed.

        Args:
            changes: The new values, which may be texts; values of version 0.1.0 are understood.

        Returns:
            The changed rule.

        Raises:
            DataError: A setting or a value is unknown.
        """
        try:
            return Rule.model_validate({**self.model_dump(), **current_rule(changes)})
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            if name not in Rule.model_fields:
                raise DataError(unknown_name("setting of the rule", name, Rule.model_fields)) from error
            known = get_args(Rule.model_fields[name].annotation)
            expected = f"one of {', '.join(known)}" if known else "a whole number, 1 or more"
            raise DataError(f'rule: {name} "{first["input"]}", expected {expected}') from error


class Protocol(_Table):
    """A published data set: what it is, how its files are read and how it is scored.

    Attributes:
        name: The name by which it is opened.
        title: The name in messages and reports.
        category: What its crops show.
        source: Where it comes from.
        licence: What its licence allows.
        obtain: How to get it; errors about missing files give this advice.
        rule: Settings of :class:`Rule`, whose texts are templates; "market" means the defaults.
        locations: Maps a camera to another camera that stands at the same location.
        permutation: File below the root for ``gallery = "permutation"``.
        infrared_cameras: Cameras that see infrared light; the others see visible light.
        folders: Folders that must exist, so that an incomplete copy is found.
        counts: Published numbers for each split.
        variants: Choices that the user makes.
        manifest: Template of a manifest that holds the samples; either ``manifest`` or ``parts`` is given.
        division: How the samples of the parts are divided further.
        parts: Groups of files, each with one split.
    """

    name: str
    title: str
    category: str = "person"
    source: str
    licence: str
    obtain: str
    rule: Literal["market"] | dict[str, int | str] = "market"
    locations: dict[str, str] = {}
    permutation: str = ""
    infrared_cameras: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    counts: dict[Split, Count] = {}
    variants: dict[str, Variant] = {}
    manifest: str = ""
    division: Division | None = None
    parts: tuple[FileGroup, ...] = ()

    @model_validator(mode="after")
    def _manifest_or_parts(self) -> Protocol:
        if bool(self.manifest) == bool(self.parts):
            raise ValueError("expected either a manifest or parts")
        return self

    def modality(self, camera: str) -> Modality:
        """Tell which light a camera sees."""
        return Modality.INFRARED if camera in self.infrared_cameras else Modality.VISIBLE

    def choose(self, chosen: Mapping[str, object]) -> dict[str, str]:
        """Look up the words for the templates.

        Args:
            chosen: Choices by variant; the other variants take their defaults.

        Returns:
            The words by name.

        Raises:
            DataError: A variant or a choice is unknown.
        """
        for key in chosen:
            if key not in self.variants:
                raise DataError(f"{self.title}: {unknown_name('variant', key, self.variants)}")
        words: dict[str, str] = {}
        for key, variant in self.variants.items():
            choice = str(chosen.get(key, variant.default))
            if choice not in variant.choices:
                raise DataError(f"{self.title}: {unknown_name(key, choice, variant.choices)}")
            words |= {key: choice} | variant.choices[choice]
        return words

    def scoring(self, words: Mapping[str, str]) -> Rule:
        """Fill the templates of the rule with the words of :meth:`choose`."""
        settings: dict[str, int | str] = {} if isinstance(self.rule, str) else self.rule
        return Rule().changed({key: fill(str(value), words) for key, value in settings.items()})


def parse_protocol(text: str, where: str) -> Protocol:
    """Parse a protocol.

    Args:
        text: The table as TOML.
        where: The name of the file, for errors.

    Returns:
        The protocol.

    Raises:
        DataError: The text is not TOML, or a key or value of the table is wrong.
    """
    try:
        return _check_table(parse_toml(text), where)
    except ValueError as error:
        raise DataError(f"{where}: not TOML ({error})") from error


def read_protocol(path: Path) -> Protocol:
    """Read the file of a protocol.

    Raises:
        DataError: The file cannot be read or is not TOML, or a key or value of the table is wrong.
    """
    try:
        return _check_table(read_toml(path), str(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not TOML ({error})") from error


def _check_table(table: Mapping[str, Any], where: str) -> Protocol:
    try:
        return Protocol(**{PROTOCOL_KEYS.get(key, key): value for key, value in table.items()})
    except ValidationError as error:
        first: Any = error.errors()[0]
        key = ".".join(str(step) for step in first["loc"]) or "table"
        raise DataError(f"{where}: {key}: {first['msg']}") from error


def fill(template: str, words: Mapping[str, str]) -> str:
    """Replace each ``{word}`` of a template.

    Raises:
        DataError: A word is unknown.

    Example:
        >>> fill("idx/train_{trial}.txt", {"trial": "3"})
        'idx/train_3.txt'
    """
    try:
        return template.format_map(words)
    except KeyError as error:
        raise DataError(f"template {template!r}: {unknown_name('word', str(error.args[0]), words)}") from None
