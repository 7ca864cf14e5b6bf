"""Experiments: small TOML files that decide everything about a training except the data.

A file and its ``key=value`` overrides become an :class:`Experiment`, which is checked once, is frozen, and is written
as TOML into the folder of the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from reid.errors import ConfigError, unknown_name
from reid.old_names import KEYS, current_experiment
from reid.structured_text import parse_toml, read_toml, shorten

# Bounds far beyond every useful value.  A value beyond them would end in a crash, or after hours in numbers that are
# not finite.
MIN_SIDE, MAX_SIDE = 8, 2048  # pixels of a side of the images that a network is trained on
MAX_BATCH = 2**14  # images
GATED_SYSTEMS = ("gated_first", "gated")  # whose domains may be attacks
DEVICE = r"^(auto|cpu|mps|cuda(:\d{1,3})?)$"
MAX_THREADS = 256  # torch crashes where the system refuses to start so many

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, le=1e6, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, le=1e6, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=10**6)]
CountOrNone = Annotated[int, Field(ge=0, le=10**6)]  # 0 switches off what is counted
Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE)]
DomainField = Literal["category", "modality", "camera"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(_Section):
    """The crops to train on: split train of one or several manifests, and crops without labels."""

    manifests: tuple[str, ...] = Field(min_length=1)  # paths, relative to the working directory
    unlabelled: tuple[str, ...] = ()  # manifests of a site to adapt to; their identities are never read
    categories: tuple[str, ...] = ()  # the categories to keep; () keeps all
    size: tuple[Side, Side] = (128, 64)  # height and width in pixels that crops are resized to
    singletons: Literal["leave out", "error"] = "leave out"  # what to do with identities that have one image
    held_out: Annotated[float, Field(ge=0.0, le=0.9)] = 0.0  # fraction of the identities that only measures epochs


class Network(_Section):
    """The parts of the network, by their names in ``reid.models``."""

    backbone: str = "osnet_x0_25"
    pooling: str = "average"
    neck: str = "bnneck"
    weights: str = ""  # a weights file to start from; "" starts from random numbers


class Norm(_Section):
    """The statistics that normalize an image: of the whole batch, or of its camera, modality or category."""

    axis: Literal["batch", "camera", "modality", "category"] = "batch"
    system: str = "batch"  # a name of reid.norm.SYSTEMS; "dwt+mec" adds a loss on data.unlabelled
    domain_fields: tuple[DomainField, ...] = ()  # fields that name a domain; () chooses them from axis and data
    affine: Literal["shared", "domain"] = "shared"  # one scale and shift for all domains, or one for each

    @model_validator(mode="after")
    def _domain_fields_name_the_axis(self) -> Norm:
        if self.domain_fields and self.axis not in self.domain_fields:
            raise ValueError(
                f"domain_fields = {list(self.domain_fields)} must name the field of axis = {self.axis!r} (or be empty)"
            )
        return self

    @property
    def layers(self) -> str:
        """The name of the normalization layers: ``system`` without the loss that may follow it."""
        return self.system.partition("+")[0]

    @property
    def target_loss(self) -> str:
        """The loss on unlabelled rows, a name of ``reid.training.objective.target_losses``; "" for none."""
        return self.system.partition("+")[2]


class Train(_Section):
    """The recipe of the training, with the optimizer AdamW.  Epochs of a ramp or of a start may be fractions."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    epochs: Count = 20
    identities_per_batch: Annotated[int, Field(ge=2, le=MAX_BATCH // 2)] = 16
    images_per_identity: Annotated[int, Field(ge=2, le=MAX_BATCH // 2)] = 6
    visits: Count = 4  # how often an epoch shows each identity, each time with other images
    balance: Literal["modality", "camera"] = "modality"  # what the images of an identity in a batch are spread over
    learning_rate: Annotated[float, Field(gt=0.0, le=1e30, allow_inf_nan=False)] = 2e-3  # the peak, after the warm-up
    final_learning_rate: Fraction = 0.01  # where the cosine ends, as a fraction of the peak
    warmup_epochs: NonNegative = 2.0
    weight_decay: NonNegative = 5e-4  # of convolutions and linear layers only
    gradient_clip: NonNegative = 5.0  # largest L2 norm of the gradient of all parameters; 0 does not clip
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    # A distance, "soft" for the soft-plus, or one of the triplet losses that weigh all pairs and have no margin.
    triplet_margin: Positive | Literal["soft", "weighted", "weighted_squared"] = 0.3
    triplet_weight: NonNegative = 1.0
    triplet_start: NonNegative = 4.0  # epochs with the cross-entropy only
    triplet_ramp: NonNegative = 4.0  # epochs in which the weight rises from 0 to triplet_weight
    contrast_weight: NonNegative = 0.0  # weight of the supervised contrastive loss on the embeddings
    # A second view of visible images: with exchanged channels, in the domain of the image or in one for grey views; or
    # made by a learned network.
    second_view: Literal["none", "own", "grey", "learned"] = "none"
    positives: Literal["all", "cross_modality"] = "all"  # which pairs of an identity triplet and contrast use
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # float16 on a GPU only
    device: Annotated[str, Field(pattern=DEVICE)] = "auto"  # auto takes the best there is
    threads: Annotated[int, Field(ge=1, le=MAX_THREADS)] = 2  # the last bits of the results depend on it
    validate_every: CountOrNone = 0  # epochs between two measurements on data.held_out; 0 measures none
    keep: Literal["last", "best"] = (
        "last"  # which epoch becomes the weights: the last, or that of the best held-out mAP
    )
    patience: CountOrNone = 0  # measurements without a better mAP after which the training ends; 0 ends it never

    @model_validator(mode="after")
    def _batches_fit_into_memory(self) -> Train:
        images = self.identities_per_batch * self.images_per_identity
        if images > MAX_BATCH:
            raise ValueError(
                f"identities_per_batch = {self.identities_per_batch} and images_per_identity ="
                f" {self.images_per_identity} make batches of {images} images, expected at most {MAX_BATCH}"
            )
        return self


class Augment(_Section):
    """The random changes of training images, see ``reid.data.transforms.TrainTransform``."""

    flip: Fraction = 0.5
    pad: Annotated[int, Field(ge=0, le=MAX_SIDE)] = 5
    brightness: Fraction = 0.2
    contrast: Fraction = 0.15
    saturation: Fraction = 0.2
    gain: Fraction = 0.1
    grey: Fraction = 0.05
    erase: Fraction = 0.5
    erase_area: tuple[Fraction, Fraction] = (0.02, 0.3)  # least and largest share of the image


class Defence(_Section):
    """Attacked images in the training, see ``reid.training.attacked_batches``."""

    method: Literal["none", "shared", "gated", "free", "anti_collapse"] = "none"
    epsilon: Annotated[float, Field(ge=1.0, le=255.0)] = 4.0  # grey levels, of each of linf, l2 and l1


class Experiment(_Section):
    """Everything that decides the outcome of a training, except the data itself."""

    data: Data
    network: Network = Network()
    norm: Norm = Norm()
    train: Train = Train()
    augment: Augment = Augment()
    defence: Defence = Defence()

    @model_validator(mode="after")
    def _attacks_have_branches_where_gates_learn_them(self) -> Experiment:
        gated = self.defence.method == "gated"
        if gated and (self.norm.layers not in GATED_SYSTEMS or self.norm.axis != "batch"):
            raise ValueError(
                f'defence.method = "gated" needs norm.axis = "batch" and norm.system = {" or ".join(GATED_SYSTEMS)}'
            )
        if self.norm.layers in GATED_SYSTEMS and self.norm.axis == "batch" and not gated:
            raise ValueError(
                f'norm.system = "{self.norm.layers}" needs domains: set norm.axis, or defence.method = "gated"'
            )
        if self.defence.method != "none" and self.data.unlabelled:
            raise ValueError("defence.method attacks labelled images: leave data.unlabelled out")
        if self.defence.method != "none" and self.train.second_view != "none":
            raise ValueError("defence.method and train.second_view both add images to a batch: choose one of them")
        if self.defence.method == "anti_collapse" and str(self.train.triplet_margin).startswith("weighted"):
            raise ValueError('defence.method = "anti_collapse" needs train.triplet_margin to be a distance or "soft"')
        return self

    @model_validator(mode="after")
    def _held_out_identities_are_measured(self) -> Experiment:
        recipe = self.train
        if recipe.validate_every and not self.data.held_out:
            raise ValueError(
                f"train.validate_every = {recipe.validate_every} measures held-out identities: set data.held_out, such"
                " as 0.1"
            )
        if not recipe.validate_every and (recipe.keep == "best" or recipe.patience):
            raise ValueError('train.keep = "best" and train.patience need measurements: set train.validate_every')
        return self


def load_config(path: Path, sets: Sequence[str] = ()) -> Experiment:
    """Read an experiment file.

    Args:
        path: The TOML file.
        sets: Overrides such as "train.epochs=3"; of two for the same key the last one counts.  The value is read as
            TOML (3, 0.5, true, ["a"]), or as plain text where it is no TOML.

    Returns:
        The checked experiment.

    Raises:
        ConfigError: The file is missing or no TOML, or a key or a value is wrong.
    """
    try:
        table = read_toml(Path(path))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such experiment file; see scripts/experiments/") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {_one_line(error)}") from error
    table = current_experiment(table, str(path))
    for item in sets:
        _override(table, item)
    return parse_config(table, str(path))


def parse_config(table: Mapping[str, Any], where: str) -> Experiment:
    """Check the nested table of an experiment.

    Args:
        table: The sections and their keys.
        where: The source of the table, which begins every error message.

    Returns:
        The experiment; keys that are missing have their default values.

    Raises:
        ConfigError: A key or a value is wrong.

    Example:
        >>> parse_config({"data": {"manifests": ["crops/manifest.csv"]}}, "example").train.epochs
        20
    """
    table = current_experiment(table, where)
    known = leaf_names()
    for key in _dotted(table):
        if key not in known:
            raise ConfigError(f"{where}: {unknown_name('key', key, known)}")
    try:
        return Experiment.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"][:2]) or "experiment"
        got = "" if first["type"] in ("missing", "value_error") else f", got {shorten(first['input'])}"
        raise ConfigError(f"{where}: {key}: {_one_line(first['msg'])}{got}") from error


def apply_sets(experiment: Experiment, sets: Sequence[str]) -> Experiment:
    """Return an experiment with overrides such as "train.epochs=3", as :func:`load_config` reads them.

    Raises:
        ConfigError: A key or a value is wrong.
    """
    table = experiment.model_dump(mode="json")
    for item in sets:
        _override(table, item)
    return parse_config(table, "--set")


def leaf_names() -> tuple[str, ...]:
    """Return every key that an experiment may hold, such as "data.manifests"."""
    return tuple(
        f"{section}.{leaf}"
        for section, field in Experiment.model_fields.items()
        for leaf in _section_class(field.annotation).model_fields
    )


def to_toml(experiment: Experiment) -> str:
    """Return the experiment as TOML text with every key; reading the text gives an equal experiment."""
    lines: list[str] = []
    for section, leaves in experiment.model_dump(mode="json").items():
        lines += [f"[{section}]", *(f"{key} = {_toml_value(value)}" for key, value in leaves.items()), ""]
    return "\n".join(lines)


def differences(old: Experiment, new: Experiment) -> list[str]:
    """Describe each key whose value differs.

    Example:
        >>> table = {"data": {"manifests": ["crops/manifest.csv"]}}
        >>> differences(parse_config(table, "old"), parse_config({**table, "train": {"epochs": 30}}, "new"))
        ['train.epochs: 20, now 30']
    """
    before, now = old.model_dump(mode="json"), new.model_dump(mode="json")
    return [
        f"{section}.{key}: {_toml_value(before[section][key])}, now {_toml_value(value)}"
        for section, leaves in now.items()
        for key, value in leaves.items()
        if before[section][key] != value
    ]


def _section_class(annotation: object) -> type[BaseModel]:
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        raise TypeError(f"a section of an experiment must be a model, got {annotation!r}")
    return annotation


def _dotted(table: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of all keys, two levels deep: a table inside a section counts as one key."""
    for section, leaves in table.items():
        if section in Experiment.model_fields and isinstance(leaves, Mapping):
            yield from (f"{section}.{key}" for key in leaves)
        elif section not in Experiment.model_fields:
            yield section


def _override(table: dict[str, Any], item: str) -> None:
    key, equals, text = (part.strip() for part in item.partition("="))
    if not equals:
        raise ConfigError(f'--set {item}: expected section.key=value, such as "train.epochs=3"')
    key = KEYS.get(key, key)
    if key not in leaf_names():
        raise ConfigError(f"--set {item}: {unknown_name('key', key, leaf_names())}")
    try:
        value = parse_toml(f"value = {text}")["value"]
    except ValueError:
        value = text
    section, leaf = key.split(".")
    leaves = table.setdefault(section, {})
    if not isinstance(leaves, dict):
        raise ConfigError(f"[{section}] must be a table, got {shorten(leaves)}")
    leaves[leaf] = value


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)  # the shortest text that reads back as the same number
    if isinstance(value, list):
        return f"[{', '.join(_toml_value(item) for item in value)}]"
    return '"' + "".join(_escaped(character) for character in str(value)) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return f"\\u{ord(character):04x}" if ord(character) < 0x20 or ord(character) == 0x7F else character


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
