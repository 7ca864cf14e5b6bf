"""Names of version 0.1.0 that files still hold: fields of a sample and keys of an experiment.

Files of version 0.1.0 are read unchanged.  Weights, profiles, embeddings and galleries are still written with the old
names, so their format has not changed; experiments and manifests are written with the new ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from reid.errors import ConfigError

FIELDS = {"domain": "category"}  # fields of a sample: a category is what a crop shows
KEYS = {"norm.kind": "norm.axis", "norm.by": "norm.domain_fields", "data.domains": "data.categories"}
VARIATION_KEYS = {"apart": "add_domain"}  # keys of a variation in a sweep file
PROTOCOL_KEYS = {"domain": "category", "places": "locations"}  # keys of a protocol table
RULE_VALUES = {"ignore": {"place": "location"}}  # values of the settings of a rule
VALUES = ("norm.axis", "norm.domain_fields")  # keys of an experiment whose values are fields of a sample

_OLD_FIELDS = {new: old for old, new in FIELDS.items()}


def current_fields(names: Iterable[str]) -> tuple[str, ...]:
    """Replace the old names of fields of a sample.

    Example:
        >>> current_fields(["domain", "camera"])
        ('category', 'camera')
    """
    return tuple(FIELDS.get(name, name) for name in names)


def fields_in_files(names: Iterable[str]) -> list[str]:
    """Name fields of a sample as the headers of weights and profiles do.

    Example:
        >>> fields_in_files(("category", "camera"))
        ['domain', 'camera']
    """
    return [_OLD_FIELDS.get(name, name) for name in names]


def current_rule(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the settings of a rule with the new names of their values.

    Example:
        >>> current_rule({"ignore": "place", "trials": 10})
        {'ignore': 'location', 'trials': 10}
    """
    renamed = dict(settings)
    for name, values in RULE_VALUES.items():
        if isinstance(value := settings.get(name), str):
            renamed[name] = values.get(value, value)
    return renamed


def current_rule_text(text: str) -> str:
    """Replace the old names of values in the text of a rule.

    Example:
        >>> current_rule_text("market ignore=place trials=10")
        'market ignore=location trials=10'
    """
    pairs = (word.partition("=") for word in text.split(" "))
    return " ".join(f"{name}{equals}{RULE_VALUES.get(name, {}).get(value, value)}" for name, equals, value in pairs)


def current_experiment(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Copy the nested ``table`` of an experiment with the new names of its keys and fields.

    Raises:
        ConfigError: A key stands there under its old and its new name.  The message begins with ``where``.

    Example:
        >>> current_experiment({"norm": {"kind": "domain"}}, "file.toml")
        {'norm': {'axis': 'category'}}
    """
    return {
        section: _current_section(section, leaves, where) if isinstance(leaves, Mapping) else leaves
        for section, leaves in table.items()
    }


def current_variation(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Copy the ``table`` of a variation in a sweep file with the new names of its own keys.

    Raises:
        ConfigError: A key stands there under its old and its new name.  The message begins with ``where``.

    Example:
        >>> current_variation({"name": "added", "apart": {"base": "people"}}, "file.toml")
        {'name': 'added', 'add_domain': {'base': 'people'}}
    """
    for old, new in VARIATION_KEYS.items():
        if old in table and new in table:
            raise ConfigError(f"{where}: {old} is the old name of {new}, which stands there too; keep one")
    return {VARIATION_KEYS.get(key, key): value for key, value in table.items()}


def _current_section(section: str, leaves: Mapping[str, Any], where: str) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for leaf, value in leaves.items():
        key = KEYS.get(f"{section}.{leaf}", f"{section}.{leaf}")
        new = key.removeprefix(f"{section}.")
        if new in renamed:
            raise ConfigError(f"{where}: {section}.{leaf} is the old name of {key}, which stands there too; keep one")
        renamed[new] = _current_value(value) if key in VALUES else value
    return renamed


def _current_value(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return list(current_fields(value))
    return FIELDS.get(value, value) if isinstance(value, str) else value
