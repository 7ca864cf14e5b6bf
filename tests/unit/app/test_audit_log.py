"""The log of searches only grows, notices changes, and survives a program that was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reid.app.audit_log import AuditLog
from reid.errors import DataError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    log = AuditLog(tmp_path / "state" / "audit.jsonl")
    for number in range(3):
        log.record("search", "anna", {"k": number, "camera": "", "in_cameras": ["a", "b"]}, "lost child")
    return tmp_path / "state" / "audit.jsonl"


def test_lines_say_who_when_and_what(path: Path) -> None:
    newest, *_ = AuditLog(path).entries(2)
    assert newest.pop("time").endswith("+00:00")
    assert newest == {
        "who": "anna", "action": "search", "purpose": "lost child", "facts": {"k": 2, "in_cameras": ["a", "b"]},
    }  # fmt: skip
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("number", [0, 1])
def test_a_changed_or_removed_line_is_noticed(path: Path, number: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for position, line in enumerate(lines) if position != number))
    with pytest.raises(DataError):
        AuditLog(path)
    changed = json.loads(lines[number]) | {"who": "bo"}
    path.write_bytes(b"".join(lines[:number]) + json.dumps(changed).encode() + b"\n" + b"".join(lines[number + 1 :]))
    with pytest.raises(DataError):
        AuditLog(path)


def test_half_a_line_is_removed_with_the_next(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"time": "2026')
    log = AuditLog(path)
    log.record("search", "bo", {})
    assert log.verify() == 4
    assert path.read_bytes().startswith(whole)


def test_a_purpose_is_asked_for_where_there_are_some(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", ("lost child", "theft"))
    log.check_purpose("theft")
    for purpose in ("", "curiosity"):
        with pytest.raises(DataError, match="lost child, theft"):
            log.check_purpose(purpose)
    AuditLog(tmp_path / "other.jsonl").check_purpose("")


texts = st.text(max_size=400)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(texts, st.one_of(st.integers(), texts, st.lists(texts, max_size=30)), max_size=6)))
def test_whatever_is_logged_can_be_read_again(tmp_path_factory: pytest.TempPathFactory, facts: list[dict]) -> None:
    log = AuditLog(tmp_path_factory.mktemp("log") / "audit.jsonl")
    for one in facts:
        log.record("search", "anna", one)
    assert log.verify() == len(facts)
