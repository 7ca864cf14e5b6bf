"""What a protocol table may say: files, counts, variants, and the rule by which answers are scored.

``datasets/<name>/protocol.toml`` is data, reviewed like data.  This module checks such a table and
fills its templates; it reads no file of a data set.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from reid.errors import DataError, unknown_name
from reid.old_names import PROTOCOL_KEYS, current_rule
from reid.records import Modality, Split


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return pattern


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Count(_Table):
    """What the authors published about one split; ``identities`` does not count distractors.

    A text is a template of the variants' words.
    """

    images: int | str | None = None
    identities: int | str | None = None
    tracks: int | str | None = None


class Variant(_Table):
    """A choice the user makes, e.g. which of ten trials.

    ``choices`` maps each choice to the words it puts in place of ``{word}`` in the templates; the
    choice itself stands for the variant's own name.  ``mean`` says that the published figure is
    the mean over all choices; the choice "all" then runs them one after the other.
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
    """Files that share a split.

    Either ``glob`` (below the root; ``pattern`` must match the file's path relative to the root)
    or ``list`` (a text file; ``pattern`` must match each line and name the group ``path``,
    relative to ``folder``).  The pattern's groups ``identity`` and ``camera``, and the words of
    the variants, fill the templates ``identity`` and ``camera``.

    ``identity_files`` keeps only the identities that these comma separated files list.
    ``skip`` lists identities that are not read at all (the authors' junk); ``distractors`` are
    read but are nobody's identity.  ``header`` lines at the top of a list are not read.  ``tracks``
    is a text file, a template too: a line names a track and the pictures in it ("" for none).
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
        """A name or line that the pattern takes, such as query/1111_c1s1_1_1.jpg; the pattern where none is found."""
        name, before = re.sub(r"\(\?P<\w+>", "(", self.pattern), ""
        while name != before:  # of alternatives the last, group by group from the innermost
            before, name = name, re.sub(r"\((?:[^()|]*\|)*([^()|]*)\)", r"\1", name)
        for pattern, shown in ((r"\[\^/\]|\\[wS]", "x"), (r"\[(\w)[^\]]*\]", r"\1"), (r"\\d", "1")):
            name = re.sub(pattern, shown, name)
        name = re.sub(r"(\w)\{(\d+)\}", lambda found: found[1] * int(found[2]), name)
        name = re.sub(r"\w[*?]|\+|\\(?=\W)", "", name)
        return name if re.fullmatch(self.pattern, name) else self.pattern


class Division(_Table):
    """How the people of a small data set are divided into ``train`` of them to train on and the rest.

    ``seed`` is a template of a number that starts the draw; with ``partitions`` (the MATLAB file of
    GRID) that number says which of the authors' partitions it is.  ``pair`` draws one query and one
    gallery image of each test identity; otherwise the parts say which is which.
    """

    train: int = Field(ge=1)
    seed: str = "{split}"
    partitions: str = ""
    pair: bool = False


class Rule(_Table):
    """How queries are scored against a gallery.  The defaults are the Market-1501 rule.

    ``ignore``: which gallery rows are neither right nor wrong for a query.
        "camera": those of its identity from its own camera, or from another one at the same place;
        "location": all from its camera's location, whoever they show (SYSU-MM01);
        "itself": the same picture only (leave-one-out).
    ``cmc``: what a place of the CMC is.  "image"; "identity": each identity counts once, at its best
        image; "single-shot": one image of each identity, drawn ``repeats`` times a query (CUHK03).
    ``precision``: "rectangle", or "trapezoid" as in Market-1501's first evaluation code.
    ``unmatched``: queries without a right answer are "dropped", or count as "zero".
    ``gallery``: "all" rows of split gallery; "permutation": the first ``shots`` of each identity and
        camera in the order of ``permutation``, a MATLAB file below the root; "random": that many at
        random, seeds 0, 1, ... as Python's ``random`` draws them.
    ``trials``: how many galleries are drawn; scores are means over them.
    ``modalities``: the gallery's modalities are asked "apart", or "mixed" in one gallery.
    ``ranked``: each "image" of the gallery, or each "track", at its best image (VeRi-776).
    ``ties``: of equal scores the wrong ones stand first, "worst", or the "mean" over all orders.
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
        """The rule in one line: "market", and what differs from it."""
        differs = [f"{name}={value}" for name, value in self.model_dump(exclude_defaults=True).items()]
        return " ".join(["market", *differs])

    def changed(self, changes: Mapping[str, object]) -> Rule:
        """This rule with other values, which may be texts; a wrong one is a :class:`DataError`."""
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

    ``obtain`` is the advice in errors; ``folders`` must all exist, so that half a copy is not
    taken for a whole one.  Rows come from one ``manifest`` or from ``parts``, which ``division``
    may divide further.  ``rule`` holds settings of :class:`Rule`, texts being templates; "market" is
    short for none.  ``locations`` maps a camera to the one it shares a place with; ``permutation`` is
    the file that the rule's gallery is drawn by.
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
        """What light ``camera`` sees."""
        return Modality.INFRARED if camera in self.infrared_cameras else Modality.VISIBLE

    def choose(self, chosen: Mapping[str, object]) -> dict[str, str]:
        """The words of the templates for the ``chosen`` variants and the defaults of the others."""
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
        """The rule of the variant that ``words`` describe."""
        settings: dict[str, int | str] = {} if isinstance(self.rule, str) else self.rule
        return Rule().changed({key: fill(str(value), words) for key, value in settings.items()})


def parse_protocol(text: str, where: str) -> Protocol:
    """A protocol from TOML text; ``where`` names the file in errors."""
    try:
        return Protocol(**{PROTOCOL_KEYS.get(key, key): value for key, value in tomllib.loads(text).items()})
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{where}: not TOML ({error})") from error
    except ValidationError as error:
        first: Any = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"]) or "table"
        raise DataError(f"{where}: {place}: {first['msg']}") from error


def fill(template: str, words: Mapping[str, str]) -> str:
    """``template`` with ``{word}`` replaced; an unknown word is a :class:`DataError`."""
    try:
        return template.format_map(words)
    except KeyError as error:
        raise DataError(f"template {template!r}: {unknown_name('word', str(error.args[0]), words)}") from None
