"""Two users log in with a browser: nothing is shown before that, a link is kept, and roles hold on the page."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Page, expect

from helpers.served_galleries import PASSWORD
from helpers.visiting import Demo

pytestmark = pytest.mark.browser


def log_in(page: Page, demo: Demo, name: str) -> None:
    page.goto(f"{demo.address}/?page=people")
    expect(page.get_by_role("heading", name="reid")).to_be_visible()
    assert "person" not in page.content()
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill("a wrong password")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_have_text("Name or password is wrong.")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()


def test_a_viewer_looks_and_an_operator_groups(browser: Browser, users_demo: Demo) -> None:
    pages = {}
    for name in ("viewer", "operator"):
        pages[name] = browser.new_context().new_page()
        log_in(pages[name], users_demo, name)
        expect(pages[name].locator("#reid-people-list [data-action=identify]")).to_be_visible()
        assert pages[name].url.endswith("/?page=people")
    pages["viewer"].locator("#reid-people-list [data-action=identify]").click()
    expect(pages["viewer"].locator("[data-page=people] .reid-error")).to_contain_text("viewer")
    pages["operator"].locator("#reid-people-list [data-action=identify]").click()
    expect(pages["operator"].locator("#reid-people-list .reid-crops").first).to_be_visible()
    pages["viewer"].get_by_role("button", name="Log out").click()
    expect(pages["viewer"].get_by_label("Password")).to_be_visible()
    pages["viewer"].goto(users_demo.address)
    expect(pages["viewer"].get_by_label("Password")).to_be_visible()
    for page in pages.values():
        page.context.close()
