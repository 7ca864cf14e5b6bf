"""The users of the application: a file with names, roles and hashed passwords.

The file is TOML, one table for each user::

    [users."anna"]
    role = "operator"
    password = "$argon2id$..."
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from reid.errors import ConfigError, unknown_name
from reid.files import remove_partial_files, write_whole
from reid.structured_text import read_toml

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
SHORTEST_PASSWORD = 12  # characters
LONGEST_PASSWORD = 1024
_HASHER = PasswordHasher()  # argon2id with the parameters that its authors recommend


class Role(StrEnum):
    """What a user may do; each role may do what those before it may.

    A viewer searches and looks. An operator also adds crops, names persons and runs jobs. An admin also erases, and
    reads the log of searches.
    """

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def includes(self, other: Role) -> bool:
        """Whether this role may do what another one may.

        Example:
            >>> Role.OPERATOR.includes(Role.VIEWER), Role.OPERATOR.includes(Role.ADMIN)
            (True, False)
        """
        order = list(Role)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True)
class User:
    """Who sends a request."""

    name: str
    role: Role


OWNER = User("", Role.ADMIN)  # who uses the application on the machine itself, where there is no users file


@dataclass(frozen=True)
class _Account:
    role: Role
    password: str


class UsersFile:
    """The users that may log in.

    Args:
        accounts: The role and the hash of the password by the name.
    """

    def __init__(self, accounts: Mapping[str, _Account]):
        self._accounts = dict(accounts)

    @classmethod
    def read(cls, path: Path) -> UsersFile:
        """Read a users file.

        Raises:
            ConfigError: It is missing, damaged, without users, or others may change it.
        """
        if not path.is_file():
            raise ConfigError(f'{path}: no such users file; "reid users add {path} NAME" makes one')
        if stat.S_IMODE(path.stat().st_mode) & 0o022:
            raise ConfigError(f"{path}: others may change this users file; allow only yourself (chmod 600)")
        accounts = _accounts_of(path)
        if not accounts:
            raise ConfigError(f'{path}: names no user; "reid users add {path} NAME" adds one')
        return cls(accounts)

    def __len__(self) -> int:
        return len(self._accounts)

    def check(self, name: str, password: str) -> User | None:
        """Return the user of a name and password; None where they do not fit.

        It takes as long for a name that is unknown, so that the time tells nothing.
        """
        account = self._accounts.get(name)
        try:
            _HASHER.verify(account.password if account else _hash_of_nobody(), password[:LONGEST_PASSWORD])
        except (Argon2Error, InvalidHashError):
            return None
        return None if account is None else User(name, account.role)


def add_user(path: Path, name: str, role: str, password: str) -> bool:
    """Add a user to a users file, which is made where it is missing, or change the user's role and password.

    Args:
        path: The file; only its owner can read it afterwards.
        name: Letters, digits and ``_.@-``.
        role: A name of :class:`Role`.
        password: At least ``SHORTEST_PASSWORD`` characters; only its argon2id hash is written.

    Returns:
        Whether the user is new.

    Raises:
        ConfigError: The name, the role or the password cannot be used, or the file is damaged.
    """
    if role not in list(Role):
        raise ConfigError(unknown_name("role", role, Role))
    if not NAME.fullmatch(name):
        raise ConfigError(f'"{name}" is no name of a user; use letters, digits and _.@- (64 characters at most)')
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise ConfigError(
            f"a password has {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters, this has {len(password)}"
        )
    accounts = _accounts_of(path) if path.exists() else {}
    is_new = name not in accounts
    accounts[name] = _Account(Role(role), _HASHER.hash(password))
    _write(path, accounts)
    return is_new


def remove_user(path: Path, name: str) -> None:
    """Remove a user from a users file; ConfigError where it has none of this name."""
    accounts = _accounts_of(path)
    remove_partial_files(path.parent)  # of an earlier command that was killed
    if name not in accounts:
        raise ConfigError(f"{path}: {unknown_name('user', name, sorted(accounts))}")
    del accounts[name]
    _write(path, accounts)


def list_users(path: Path) -> list[User]:
    """Return the users of a file, by name."""
    return [User(name, account.role) for name, account in sorted(_accounts_of(path).items())]


@cache
def _hash_of_nobody() -> str:
    return _HASHER.hash("a password that nobody has")


def _accounts_of(path: Path) -> dict[str, _Account]:
    try:
        tables = read_toml(path).get("users", {})
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path}: this users file is damaged ({error})") from error
    if not isinstance(tables, dict):
        raise ConfigError(f'{path}: expected a table [users."NAME"] for each user')
    return {name: _account_of(path, name, table) for name, table in tables.items()}


def _account_of(path: Path, name: str, table: Any) -> _Account:
    role, password = (table.get(key) for key in ("role", "password")) if isinstance(table, dict) else (None, None)
    if not NAME.fullmatch(name) or not isinstance(password, str) or not password.startswith("$argon2"):
        raise ConfigError(
            f'{path}: user "{name}": expected a role and an argon2 hash as password; use "reid users add"'
        )
    if role not in list(Role):
        raise ConfigError(f'{path}: user "{name}": {unknown_name("role", str(role), Role)}')
    return _Account(Role(role), password)


def _write(path: Path, accounts: Mapping[str, _Account]) -> None:
    lines = []
    for name, account in sorted(accounts.items()):
        lines += [f"[users.{json.dumps(name)}]", f'role = "{account.role}"', f'password = "{account.password}"', ""]
    text = "\n".join(lines)
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
