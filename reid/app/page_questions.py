"""The questions that the pages answer, as plain functions: no page, no browser and no server is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import typer

from reid.app.page_values import PageAction, PageParts, PageValues, PageVisit
from reid.app.presentation import escape, message_html
from reid.app.refusals import Refused
from reid.errors import ReidError

FAULT = "The page could not answer this; what happened is written where the program was started."
UNABLE = "The machine cannot read or write what this needs, such as a full disk; look at it, then try again."
UNKNOWN = "This page does not know that action; load it again."


class Page(Protocol):
    """One page of the application."""

    name: str
    title: str
    actions: Mapping[str, PageAction]

    def first_html(self) -> str:
        """Return the page as a visitor first sees it."""
        ...


def answer_question(pages: Mapping[str, Page], values: PageValues, visit: PageVisit) -> PageParts:
    """Answer one question; every fault becomes one line.

    Args:
        pages: The pages by their names.
        values: What is asked: the name of a page, an action of it, and the values of its fields.
        visit: What is known of the visitor.

    Returns:
        What the page shows from now on.
    """
    page = pages.get(values.text("page"))
    action = None if page is None else page.actions.get(values.text("action"))
    if action is None:
        return PageParts(error=UNKNOWN)
    try:
        return action(values, visit)
    except ReidError as error:
        text = " ".join(str(error).split())
        return PageParts(error=text[:1].upper() + text[1:])
    except Refused:
        return PageParts(error=f"Your role is {visit.user.role}, and it may not do this; ask an administrator.")
    except OSError as error:
        typer.echo(f"the page could not read or write: {error}", err=True)
        return PageParts(error=UNABLE)
    except Exception as error:  # noqa: BLE001 - the page must get an answer; the fault is the program's
        typer.echo(f"fault in the page: {type(error).__name__}: {error}", err=True)
        return PageParts(error=FAULT)


@runtime_checkable
class FollowingPage(Protocol):
    """A page with lists that name what the gallery holds."""

    def following(self) -> Mapping[str, str]:
        """Return the HTML of these lists by the names of their parts."""
        ...


def following_html(page: Page) -> Mapping[str, str]:
    """Return the parts of a page that follow the gallery; none where the gallery cannot be read."""
    try:
        return page.following() if isinstance(page, FollowingPage) else {}
    except ReidError:
        return {}


def first_html_of(page: Page) -> str:
    """Return a page as a visitor first sees it, or what is wrong with the gallery."""
    try:
        return page.first_html()
    except ReidError as error:
        hidden = " hidden" * (page.name != "search")
        return (
            f'<section data-page="{page.name}" data-title="{escape(page.title)}"{hidden}>'
            f'<h2 class="reid-page-title">{escape(page.title)}</h2><p class="reid-message reid-error" hidden></p>'
            f"<form></form>{message_html(str(error))}</section>"
        )
