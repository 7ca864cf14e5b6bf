"""The page on which a user logs in: plain HTML without scripts, before anything of the application is sent."""

from __future__ import annotations

import html
import re
from urllib.parse import parse_qs

from reid.app.refusals import REASONS, Refused

FORM_BYTES = 2**13
QUERY = re.compile(r"[A-Za-z0-9_.~%&=+-]{0,2000}")  # of the address that the user wanted
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>reid: log in</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 22rem; margin: 15vh auto; padding: 0 1rem; color: #0f172a;
  background: #f8fafc; }}
label, input, button {{ display: block; width: 100%; box-sizing: border-box; font: inherit; }}
input {{ margin: .25rem 0 1rem; padding: .5rem; border: 1px solid #64748b; border-radius: .375rem; }}
button {{ padding: .6rem; border: 0; border-radius: .375rem; color: #fff; background: #0f766e; }}
p {{ color: #b91c1c; min-height: 1.5rem; }}
@media (prefers-color-scheme: dark) {{
  body {{ color: #f1f5f9; background: #0f172a; }}
  input {{ color: inherit; background: #1e293b; }}
  p {{ color: #fca5a5; }}
}}
</style>
</head>
<body>
<main>
<h1>reid</h1>
<form method="post" action="/login">
<p role="alert">{reason}</p>
<label for="name">Name</label>
<input id="name" name="name" autocomplete="username" maxlength="64" required autofocus>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" maxlength="1024" required>
<input type="hidden" name="query" value="{query}">
<button>Log in</button>
</form>
</main>
</body>
</html>
"""


def login_page(query: str = "", status: int = 0) -> bytes:
    """Return the page.

    Args:
        query: The query of the address that the user wanted, which is opened after the login.
        status: Why the last attempt was refused; 0 before the first.
    """
    reason = "Name or password is wrong." if status == 401 else REASONS.get(status, "").capitalize()
    wanted = query if QUERY.fullmatch(query) else ""
    return _PAGE.format(reason=html.escape(reason), query=html.escape(wanted)).encode()


def read_login_form(body: bytes) -> tuple[str, str, str]:
    """Return name, password and wanted query of a form that was sent; Refused (400) where it is another one.

    Example:
        >>> read_login_form(b"name=anna&password=long+and+secret&query=tab%3Dscores")
        ('anna', 'long and secret', 'tab=scores')
    """
    try:
        fields = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=4, errors="strict")
    except ValueError:
        raise Refused(400) from None
    values = [fields.get(name, [""]) for name in ("name", "password", "query")]
    if any(len(value) != 1 for value in values):
        raise Refused(400)
    name, password, query = (value[0] for value in values)
    return name, password, query if QUERY.fullmatch(query) else ""
