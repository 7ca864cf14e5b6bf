"""``reid users``: who may log in to the application."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from reid.errors import ConfigError

commands = typer.Typer()
users = typer.Typer(help="Keep the file of those who may log in to the application.", no_args_is_help=True)
commands.add_typer(users, name="users")

UsersPath = Annotated[Path, typer.Argument(help="Users file.")]
Name = Annotated[str, typer.Argument(help="Name of the user.")]


@users.command("add", epilog="Example: reid users add users.toml anna --role operator")
def users_add(
    file: UsersPath,
    name: Name,
    role: Annotated[
        str,
        typer.Option(
            help="viewer searches and looks; operator also adds crops, names persons and runs jobs; admin also erases"
            " and reads the log."
        ),
    ] = "viewer",
) -> None:
    """Add a user, or give a user another role and password; the file is made where it is missing.

    The password is asked for twice in a terminal, and read from the first line of stdin otherwise.  Only its argon2id
    hash is written.
    """
    from reid.app.accounts import add_user

    is_new = add_user(file, name, role, _read_password())
    typer.echo(f"{file}\t{'added' if is_new else 'changed'} {name}, {role}")


@users.command("remove", epilog="Example: reid users remove users.toml anna")
def users_remove(file: UsersPath, name: Name) -> None:
    """Remove a user.  A running application knows it until it is started again."""
    from reid.app.accounts import remove_user

    _check(file)
    remove_user(file, name)
    typer.echo(f"{file}\tremoved {name}")


@users.command("list", epilog="Example: reid users list users.toml")
def users_list(file: UsersPath) -> None:
    """List the users and their roles."""
    from reid.app.accounts import list_users

    _check(file)
    for user in list_users(file):
        typer.echo(f"{user.name}\t{user.role}")


def _check(file: Path) -> None:
    if not file.is_file():
        raise ConfigError(f'{file}: no such users file; "reid users add" makes one')


def _read_password() -> str:
    if sys.stdin.isatty():
        return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))
    line = sys.stdin.readline()
    if not line.strip():
        raise ConfigError("expected the password on the first line of stdin")
    return line.rstrip("\r\n")
