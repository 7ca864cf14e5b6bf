"""The page of ``reid evaluate --html`` in a real browser that refuses all its requests."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route, expect

from reid.cli import main

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def written(tiny_street: Path, plain_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    arguments = ["--data", str(tiny_street / "street-a"), "--weights", str(plain_weights), "--query-examples", "1"]
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", *arguments, "--html", str(path)])
    assert not caught.value.code
    return path


def test_the_page_sends_no_request(browser: Browser, written: Path) -> None:
    """The page requests nothing but its own file, runs no script, and shows its charts, maps and crops."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    requested: list[str] = []
    messages: list[str] = []

    def refuse(route: Route) -> None:
        if route.request.url == written.as_uri():
            route.continue_()
            return
        requested.append(route.request.url)
        route.abort()

    context.route(lambda url: not url.startswith("data:"), refuse)
    page = context.new_page()
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("console", lambda line: messages.append(line.text))
    page.goto(written.as_uri())
    expect(page.locator("table.heat").first).to_be_visible()
    parts = page.locator("details.part")
    assert parts.count() > 0
    assert page.locator("table.heat td[style*=background]").count() > 0
    for index in range(parts.count()):
        expect(parts.nth(index).locator("svg[role=img]")).to_be_visible()
        expect(parts.nth(index).locator(".example .query img")).to_have_count(2)
    loaded = page.locator("img").evaluate_all("images => images.map(image => image.complete && image.naturalWidth)")
    assert loaded
    assert all(width > 0 for width in loaded)
    narrow = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(narrow), f"the page is wider than {width} pixels"
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=https://elsewhere.invalid/x.png>')")
    page.wait_for_timeout(200)
    assert requested == []
    assert any("Content Security Policy" in line for line in messages), (
        "the page's policy refuses an image of another host"
    )
    assert all("elsewhere.invalid" in line for line in messages)
    context.close()
