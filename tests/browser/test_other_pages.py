"""A visitor uses every page: accessible in light and dark, by keyboard, on a phone, and what it changes stays."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from helpers.person_crops import people
from helpers.visiting import Demo, axe_script, open_page, wait_until_idle
from reid.records import Embeddings
from reid.retrieval.gallery import Gallery

pytestmark = pytest.mark.browser

PAGES = ("Search", "People", "Cameras", "Gallery", "Evaluation", "Map")
VIOLATIONS = """async () => (await axe.run(document, {resultTypes: ['violations']})).violations.map(
    one => `${one.id} (${one.nodes.length}): ${one.nodes[0].html.slice(0, 160)} ${one.nodes[0].failureSummary}`)"""


def test_people_are_grouped_named_joined_and_parted(people_page: Page) -> None:
    page = people_page
    expect(page.get_by_text("96 crops of 12 identities in 2 cameras")).to_be_visible()
    people = open_page(page, "People")
    people.get_by_role("button", name="Group the crops").click()
    wait_until_idle(page)
    expect(people.locator("#reid-people-summary")).to_contain_text(re.compile(r"\d+ persons"))
    card = people.locator("#reid-people-list section").first
    title = str(card.get_attribute("aria-label"))
    card.get_by_role("button", name="Confirm").click()
    wait_until_idle(page)
    expect(people.locator("#reid-people-done")).to_contain_text("Recorded.")
    people.get_by_label(f"Name of {title}", exact=True).fill("Anna")
    people.get_by_role("region", name=title, exact=True).get_by_role("button", name="Save name").click()
    named = people.get_by_role("region", name=f"Anna ({title})")
    expect(named).to_be_visible()
    named.get_by_role("button", name="Timeline").click()
    expect(page.get_by_role("dialog").get_by_role("img", name=re.compile("Anna.*cameras"))).to_be_visible()
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    people.get_by_role("button", name="Undo the last decision").click()
    expect(people.get_by_role("region", name=title, exact=True)).to_be_visible()
    page.reload()
    wait_until_idle(page)
    expect(page.locator("#reid-people-summary")).to_contain_text(re.compile(r"\d+ persons"))
    for name in PAGES:
        open_page(page, name)
        expect(page.locator(".reid-error:visible")).to_have_count(0)


def test_cameras(page: Page) -> None:
    cameras = open_page(page, "Cameras")
    expect(cameras.locator("#reid-cameras section.reid-card")).to_have_count(13)  # 12 cameras and the table
    expect(cameras.get_by_text("Every camera is a domain")).to_be_visible()
    cameras.locator(".reid-camera button").first.click()
    expect(page.locator(".reid-query img")).to_be_visible()
    assert "query=r" in page.url


def test_crops_of_a_new_camera_wait_until_they_are_added_or_discarded(page: Page, tiny_street: Path) -> None:
    cameras = open_page(page, "Cameras")
    crops = sorted((tiny_street / "street-a").rglob("*.jpg"))[:9]
    files, status = cameras.locator("input[type=file]"), cameras.locator("#reid-stage-status")
    files.set_input_files(crops[:1])
    expect(status).to_contain_text("Write the name of the new camera first")
    cameras.get_by_label("Name of the new camera").fill("dock")
    files.set_input_files(crops[:2])
    expect(status).to_contain_text("2 crops were sent.")
    waiting = cameras.locator("#reid-waiting")
    expect(waiting.get_by_role("button", name="Measure and add")).to_be_disabled()
    files.set_input_files([*crops, Path(__file__)])
    expect(status).to_contain_text("9 crops were sent. 1 were refused")
    expect(waiting).to_contain_text("9 crops")
    expect(waiting.get_by_role("button", name="Measure and add")).to_be_enabled()
    page.reload()
    wait_until_idle(page)
    expect(waiting).to_contain_text("9 crops")
    page.once("dialog", lambda dialog: dialog.accept())
    waiting.get_by_role("button", name="Discard").click()
    expect(waiting.locator("img")).to_have_count(0)


def test_scores(page: Page) -> None:
    scores = open_page(page, "Evaluation")
    chart = scores.locator(".reid-cmc svg[role=img]").first
    expect(chart).to_be_visible()
    rows = scores.locator("#reid-scores table").first.locator("tbody tr")
    expect(rows).to_have_count(4)
    assert "visible → visible" in rows.first.inner_text()
    scores.get_by_label("Networks").select_option("all")
    expect(rows).to_have_count(8)
    scores.get_by_label("Site", exact=True).select_option("street-b")
    expect(chart).to_have_attribute("aria-label", re.compile("street-b"))
    with page.expect_download() as waiting:
        scores.get_by_role("button", name="Save the report").click()
    assert waiting.value.suggested_filename == "report.html"
    assert "site=street-b" in page.url


def test_the_map_leads_to_a_search(page: Page) -> None:
    drawn = open_page(page, "Map")
    expect(drawn.locator("svg circle")).to_have_count(2 * 48)
    drawn.get_by_label("Colour").select_option("identity")
    wait_until_idle(page)
    drawn.locator("svg circle").first.click(force=True)
    expect(page.locator('section[data-page="search"]')).to_be_visible()
    assert "query=r" in page.url


def test_an_erasure_is_previewed(page: Page) -> None:
    gallery = open_page(page, "Gallery")
    expect(gallery.locator(".reid-facts")).to_contain_text("Crops")
    gallery.get_by_label("Camera", exact=True).fill("a1")
    gallery.get_by_role("button", name="Preview").click()
    expect(gallery.get_by_role("button", name=re.compile(r"^Erase \d+ rows$"))).to_be_visible()
    gallery.get_by_label("Camera", exact=True).fill("nowhere")
    gallery.get_by_role("button", name="Preview").click()
    expect(gallery.get_by_text("No row fulfils these conditions.")).to_be_visible()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 390)])
def test_no_page_breaks_a_rule_of_accessibility(browser: Browser, demo: Demo, scheme: str, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.goto(demo.address)
    wait_until_idle(page)
    page.evaluate(axe_script())
    for name in PAGES:
        open_page(page, name)
        if name == "Search":
            page.get_by_text("Filters", exact=True).click()
        assert page.evaluate(VIOLATIONS) == [], name
    context.close()


def test_the_keyboard_reaches_everything(page: Page) -> None:
    page.get_by_role("radio", name="Plain").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name="Normalized")).to_be_checked()
    wait_until_idle(page)
    assert "ranking=normalized" in page.url
    page.get_by_label("Answers", exact=True).focus()
    page.keyboard.press("ArrowDown")
    wait_until_idle(page)
    assert "count=20" in page.url
    button = page.locator("#reid-picker button").nth(6)
    words = button.locator("img").get_attribute("alt")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator(f'.reid-query img[alt="Query: {words}"]')).to_be_visible()
    outline = "getComputedStyle(document.activeElement).outlineWidth"
    assert page.evaluate(outline) == "3px", "the focus is seen, and stays where it was"
    page.get_by_role("link", name="Cameras").focus()
    page.keyboard.press("Enter")
    expect(page.locator('section[data-page="cameras"]')).to_be_visible()
    page.go_back()
    expect(page.locator('section[data-page="search"]')).to_be_visible()


def test_a_phone_shows_the_answers_after_a_tap(browser: Browser, demo: Demo) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(demo.address)
    wait_until_idle(page)
    page.locator("#reid-picker button").nth(2).tap()
    wait_until_idle(page)
    page.wait_for_timeout(600)  # until it has scrolled
    box = page.locator(".reid-query").bounding_box()
    assert box
    assert 0 <= box["y"] < 600
    for name in PAGES:
        open_page(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
    context.close()


def test_every_image_has_a_description(page: Page) -> None:
    for name in PAGES:
        open_page(page, name)
        expect(page.locator('img:not([alt]):visible, img[alt=""]:visible')).to_have_count(0)
        expect(page.locator('svg[role=img]:not([aria-label]), svg[role=img][aria-label=""]')).to_have_count(0)


def drag(page: Page, corners: list[tuple[float, float]]) -> None:
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in corners[1:]:
        page.mouse.move(*corner, steps=4)
    page.mouse.up()
    wait_until_idle(page)


def test_a_box_on_the_map_is_one_query(page: Page) -> None:
    section = open_page(page, "Map")
    drawn = section.locator("svg[data-select]").first
    drawn.scroll_into_view_if_needed()
    area = drawn.bounding_box()
    assert area is not None
    left, top, right, bottom = area["x"], area["y"], area["x"] + area["width"], area["y"] + area["height"]
    drag(page, [(left + 6, top + 6), (right - 6, bottom - 6)])
    expect(section.get_by_role("heading", name="48 crops chosen")).to_be_visible()
    expect(section.locator(".reid-chosen")).to_have_count(2 * 48)
    section.get_by_role("button", name="Search for them as one query").click()
    wait_until_idle(page)
    expect(page.locator("#reid-query")).to_contain_text("The mean of 8 crops")
    expect(page.locator(".reid-answer").first).to_be_visible()
    page.go_back()
    expect(section).to_be_visible()
    section.get_by_role("button", name="Choose nothing").click()
    expect(section.locator(".reid-chosen")).to_have_count(0)


def test_an_outline_on_the_map_chooses_what_lies_in_it(page: Page) -> None:
    """A triangle has the points in it that lie below its slope, of all that a box around it has."""
    section = open_page(page, "Map")
    section.get_by_label("Dragging draws").select_option("outline")
    drawn = section.locator("svg[data-select]").first
    drawn.scroll_into_view_if_needed()
    area = drawn.bounding_box()
    assert area is not None
    left, top, right, bottom = (
        area["x"] + 6,
        area["y"] + 6,
        area["x"] + area["width"] - 6,
        area["y"] + area["height"] - 6,
    )
    drag(page, [(left, top), (left, bottom), (right, bottom), (left, top)])
    places = drawn.locator("circle").evaluate_all(
        "all => all.map(one => one.getBoundingClientRect()).map(one => [one.x + one.width / 2, one.y + one.height / 2])"
    )
    height, width = area["height"], area["width"]
    below = sum((y - area["y"]) / height > (x - area["x"]) / width for x, y in places)
    assert 0 < below < 48
    expect(drawn.locator(".reid-chosen")).to_have_count(below)


def test_the_keyboard_chooses_on_the_map(page: Page) -> None:
    section = open_page(page, "Map")
    drawn = section.locator("svg[data-select]").first
    drawn.focus()
    for key in [*["Shift+ArrowLeft"] * 9, *["Shift+ArrowUp"] * 9, " ", *["Shift+ArrowRight"] * 12]:
        page.keyboard.press(key)
    for key in [*["Shift+ArrowDown"] * 12, " "]:
        page.keyboard.press(key)
    wait_until_idle(page)
    expect(section.get_by_role("heading", name="48 crops chosen")).to_be_visible()
    assert page.evaluate("document.activeElement.matches('svg[data-select]')"), "the focus stays on the map"
    page.keyboard.press("Escape")
    expect(section.locator(".reid-chosen")).to_have_count(0)
    section.get_by_label("Dragging draws").select_option("outline")
    drawn.focus()
    for key in (" ", "Shift+ArrowUp", " ", "Shift+ArrowRight", " "):
        page.keyboard.press(key)
    expect(section.locator("[data-map-status]")).to_contain_text("crops inside")
    page.keyboard.press("Escape")
    expect(section.locator(".reid-area")).to_have_count(0)


def test_duplicates_and_the_export(page: Page) -> None:
    gallery = open_page(page, "Gallery")
    gallery.get_by_role("button", name="Look for duplicates").click()
    wait_until_idle(page)
    expect(gallery.locator("#reid-duplicates b").first).to_be_visible()
    with page.expect_download() as waiting:
        gallery.get_by_role("link", name="Parquet").click()
    assert waiting.value.suggested_filename.endswith(".parquet")


def test_an_open_page_follows_the_gallery(people_page: Page, people_demo: Demo) -> None:
    page = people_page
    open_page(page, "Map")
    drawn = people()
    samples = tuple(replace(one, path=Path(f"new-{n}.jpg"), camera="roof") for n, one in enumerate(drawn.samples[:4]))
    gallery = Gallery.open(people_demo.data)
    gallery.add(Embeddings(samples, drawn.vectors[:4], drawn.fingerprint))
    gallery.save(people_demo.data)
    expect(page.get_by_text("100 crops of 12 identities in 3 cameras")).to_be_visible()
    page.get_by_role("button", name="Show this page again").click()
    expect(page.locator("svg[data-select]").first.locator("circle")).to_have_count(100)
    open_page(page, "Search")
    page.get_by_text("Filters", exact=True).click()
    expect(page.get_by_role("group", name="Without these cameras").get_by_label("roof")).to_be_visible()


def test_several_questions_are_answered_at_once(people_page: Page) -> None:
    people = open_page(people_page, "People")
    people.get_by_role("button", name="Group the crops").click()
    wait_until_idle(people_page)
    for number in range(2):
        people.get_by_role("radiogroup").nth(number).get_by_label("Not the same").check()
    people.get_by_role("button", name="Record the answers").click()
    expect(people.locator("#reid-people-done")).to_have_text("Recorded 2 answers.")
