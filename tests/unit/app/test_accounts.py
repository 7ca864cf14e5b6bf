"""Users, roles and logins: only hashes are kept, wrong passwords are counted, and roles contain each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from reid.app.access import FAILURE_SECONDS, FAILURES, LOGIN_SECONDS, Access, require, user_of_event
from reid.app.accounts import OWNER, Role, User, UsersFile, add_user, list_users, remove_user
from reid.app.refusals import Refused
from reid.errors import ConfigError

PASSWORD = "a long password"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    add_user(tmp_path / "users.toml", "anna", "operator", PASSWORD)
    return tmp_path / "users.toml"


def headers(token: str) -> dict[bytes, bytes]:
    return {b"cookie": f"other=1; reid-login={token}".encode()}


def test_only_a_hash_is_kept_and_only_for_the_owner(path: Path) -> None:
    assert PASSWORD not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    users = UsersFile.read(path)
    assert users.check("anna", PASSWORD) == User("anna", Role.OPERATOR)
    assert users.check("anna", "another password") is None
    assert users.check("bo", PASSWORD) is None


def test_passwords_are_hashed_as_the_authors_of_argon2_recommend(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    add_user(tmp_path / "users.toml", "anna", "viewer", PASSWORD)
    assert "$argon2id$v=19$m=65536,t=3,p=4$" in (tmp_path / "users.toml").read_text()


def test_users_are_changed_and_removed(path: Path) -> None:
    assert add_user(path, "bo", "admin", PASSWORD)
    assert not add_user(path, "anna", "viewer", PASSWORD)
    assert [(user.name, str(user.role)) for user in list_users(path)] == [("anna", "viewer"), ("bo", "admin")]
    remove_user(path, "anna")
    assert len(UsersFile.read(path)) == 1
    with pytest.raises(ConfigError):
        remove_user(path, "anna")
    remove_user(path, "bo")
    with pytest.raises(ConfigError):
        UsersFile.read(path)


@pytest.mark.parametrize(
    ("name", "role", "password"),
    [("anna", "king", PASSWORD), ('a"b', "viewer", PASSWORD), ("", "viewer", PASSWORD), ("anna", "viewer", "short")],
)
def test_what_is_no_user_is_refused(path: Path, name: str, role: str, password: str) -> None:
    before = path.read_bytes()
    with pytest.raises(ConfigError):
        add_user(path, name, role, password)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "text",
    ["users = 1", '[users.anna]\nrole = "viewer"', '[users.anna]\nrole = "viewer"\npassword = "plain"', "[",
     '[users.anna]\nrole = "king"\npassword = "$argon2id$x"'],
)  # fmt: skip
def test_a_damaged_file_is_an_error(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError):
        UsersFile.read(path)


def test_a_file_that_others_may_change_is_refused(path: Path) -> None:
    path.chmod(0o622)
    with pytest.raises(ConfigError, match="chmod"):
        UsersFile.read(path)


def test_a_login_ends_by_itself_and_by_its_user(path: Path) -> None:
    now = [0.0]
    access = Access(UsersFile.read(path), lambda: now[0])
    token, user = access.log_in("anna", PASSWORD, "1.2.3.4")
    assert access.user_of(headers(token)) == user == User("anna", Role.OPERATOR)
    assert access.user_of({b"authorization": f"Bearer {token}".encode()}) == user
    assert access.user_of(headers("0" * 64)) is None
    assert access.user_of({}) is None
    now[0] += LOGIN_SECONDS
    assert access.user_of(headers(token)) is None
    token, _ = access.log_in("anna", PASSWORD, "1.2.3.4")
    access.log_out(headers(token))
    assert access.user_of(headers(token)) is None


def test_wrong_passwords_are_counted_by_name_and_by_address(path: Path) -> None:
    now = [0.0]
    access = Access(UsersFile.read(path), lambda: now[0])

    def status(name: str, password: str, address: str) -> int:
        try:
            access.log_in(name, password, address)
        except Refused as refused:
            return refused.status
        return 200

    assert [status("anna", "wrong", f"1.1.1.{number}") for number in range(FAILURES + 1)] == [401] * FAILURES + [429]
    assert status("anna", PASSWORD, "9.9.9.9") == 429, "the right password is not tried either"
    assert [status(f"user{n}", "wrong", "2.2.2.2") for n in range(FAILURES + 1)] == [401] * FAILURES + [429]
    now[0] += FAILURE_SECONDS + 1
    assert status("anna", PASSWORD, "9.9.9.9") == 200


def test_roles_and_the_owner() -> None:
    require(OWNER, Role.ADMIN)
    require(User("o", Role.OPERATOR), Role.VIEWER)
    for role, wanted in (("viewer", "operator"), ("viewer", "admin"), ("operator", "admin")):
        with pytest.raises(Refused):
            require(User("u", Role(role)), Role(wanted))
    assert Access(None).user_of({}) == OWNER
    assert user_of_event(None) == OWNER
