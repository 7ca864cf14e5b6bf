"""Who may do what: logins with a limit on their rate, and the user of each request."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from reid.app.accounts import OWNER, Role, User, UsersFile
from reid.app.refusals import Refused

LOGIN_COOKIE = "reid-login"
LOGIN_SECONDS = 12 * 3600  # after which a user logs in again
MOST_LOGINS = 1000  # at a time; the oldest is ended
FAILURES = 5  # of one name or one address, within FAILURE_SECONDS
FAILURE_SECONDS = 900
USER_KEY = "reid_user"  # of an ASGI scope
_TOKEN = r"[0-9a-f]{64}"
_COOKIE = re.compile(rf"(?:^|;\s*){LOGIN_COOKIE}=({_TOKEN})(?:;|$)")
_BEARER = re.compile(rf"Bearer ({_TOKEN})")


@dataclass
class _Login:
    user: User
    expires: float


@dataclass
class _Failures:
    times: list[float] = field(default_factory=list)


class Access:
    """The users of a running application.

    Args:
        users: Who may log in; None where everyone who reaches the application is its owner.
        clock: Returns the time in seconds.
    """

    def __init__(self, users: UsersFile | None, clock: Callable[[], float] = time.monotonic):
        self._users = users
        self._clock = clock
        self._lock = Lock()
        self._logins: dict[str, _Login] = {}
        self._failures: dict[str, _Failures] = {}

    @property
    def is_open(self) -> bool:
        """Whether nobody has to log in."""
        return self._users is None

    def log_in(self, name: str, password: str, address: str) -> tuple[str, User]:
        """Log a user in.

        Args:
            name: The name.
            password: The password.
            address: The address of the machine that asks.

        Returns:
            The token of the login, 64 hex digits, and the user.

        Raises:
            Refused: The name and the password do not fit (401), or there were too many such attempts (429).
        """
        if self._users is None:
            raise Refused(404)
        keys = (f"name {name[:64]}", f"address {address}")
        with self._lock:
            if any(self._recent_failures(key) >= FAILURES for key in keys):
                raise Refused(429)
            for key in keys:  # counted before the check, so that attempts at the same time count as well
                self._failures.setdefault(key, _Failures()).times.append(self._clock())
        user = self._users.check(name, password)
        if user is None:
            raise Refused(401)
        token = secrets.token_hex(32)
        with self._lock:
            for key in keys:
                self._failures.pop(key, None)
            self._forget_expired()
            self._logins[token] = _Login(user, self._clock() + LOGIN_SECONDS)
            while len(self._logins) > MOST_LOGINS:
                del self._logins[next(iter(self._logins))]
        return token, user

    def log_out(self, headers: dict[bytes, bytes]) -> None:
        """End the login of a request."""
        with self._lock:
            self._logins.pop(token_of(headers), None)

    def user_of(self, headers: dict[bytes, bytes]) -> User | None:
        """Return who sends a request; None where a login is needed."""
        if self._users is None:
            return OWNER
        with self._lock:
            login = self._logins.get(token_of(headers))
            if login is None or login.expires <= self._clock():
                return None
            return login.user

    def _recent_failures(self, key: str) -> int:
        failures = self._failures.get(key)
        if failures is None:
            return 0
        failures.times = [at for at in failures.times if at > self._clock() - FAILURE_SECONDS]
        return len(failures.times)

    def _forget_expired(self) -> None:
        now = self._clock()
        self._logins = {token: login for token, login in self._logins.items() if login.expires > now}
        self._failures = {key: one for key, one in self._failures.items() if self._recent_failures(key)}


def token_of(headers: dict[bytes, bytes]) -> str:
    """Return the token of a login, from the cookie of the page or the header of a program; "" without one.

    Example:
        >>> token_of({b"authorization": b"Bearer " + b"0" * 64}) == "0" * 64, token_of({})
        (True, '')
    """
    header = headers.get(b"authorization", b"").decode("latin-1")
    found = _BEARER.fullmatch(header) or _COOKIE.search(headers.get(b"cookie", b"").decode("latin-1"))
    return found[1] if found else ""


def require(user: User, role: Role) -> None:
    """Refuse (403) what a user may not do."""
    if not user.role.includes(role):
        raise Refused(403)


def user_of_event(request: Any) -> User:
    """Return the user of an event of the page.

    Args:
        request: What gradio passes to a handler with a parameter of the type ``gr.Request``; None in a test.

    Returns:
        The user; the owner where there are no users.
    """
    scope = getattr(getattr(request, "request", None), "scope", None) or {}
    user = scope.get(USER_KEY, OWNER)
    return user if isinstance(user, User) else OWNER
