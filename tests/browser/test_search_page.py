"""A visitor searches in a real browser, against the real program."""

from __future__ import annotations

import csv
import json
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from helpers.visiting import Demo, wait_until_idle
from reid.app.server import OWNER_FILE

pytestmark = pytest.mark.browser

NETWORKS = ("Camera BN", "Plain BN")
IMAGE_INPUT = "section[data-page=search] input[type=file]"


def search_section(page: Page) -> Locator:
    """Return the page "Search" without the other pages, which are hidden."""
    return page.locator('section[data-page="search"]')


def choose(page: Page, label: str, option: str) -> None:
    """Choose ``option`` of the drop-down list ``label``."""
    search_section(page).get_by_label(label, exact=True).select_option(label=option)
    wait_until_idle(page)


def set_filter(page: Page, label: str, *, checked: bool = True) -> None:
    """Choose a radio button or a check box among the filters."""
    if page.locator("details[open]").count() == 0:
        page.get_by_text("Filters", exact=True).click()
    search_section(page).get_by_label(label, exact=True).set_checked(checked)
    wait_until_idle(page)


def query_labels(page: Page) -> dict[str, str]:
    """Return the labels of the query that the page shows."""
    return dict(re.findall(r"<dt>(\w+)</dt><dd>([^<]*)</dd>", page.locator(".reid-query").inner_html()))


def choose_query(page: Page, number: int) -> dict[str, str]:
    """Press a query button, wait for the answers and return the labels of the query."""
    button = page.locator("#reid-picker button").nth(number)
    words = button.locator("img").get_attribute("alt")
    button.click()
    expect(page.locator(f'.reid-query img[alt="Query: {words}"]')).to_be_visible()
    expect(button).to_have_attribute("aria-pressed", "true")
    wait_until_idle(page)
    return query_labels(page)


def ranking(page: Page, network: str) -> Locator:
    """Return the answers of one network."""
    return page.get_by_role("region", name=network).locator(".reid-answer")


def test_a_query_is_answered_in_order_with_right_and_wrong_borders(page: Page) -> None:
    set_filter(page, "visible")
    expect(page.locator('.reid-answer[data-modality="infrared"]')).to_have_count(0)
    query = choose_query(page, 3)
    answers = ranking(page, "Camera BN")
    expect(answers).to_have_count(10)
    assert answers.locator(".reid-rank").all_inner_texts() == [str(rank) for rank in range(1, 11)]
    choose(page, "Answers", "50")
    chip = page.get_by_role("region", name="Camera BN").get_by_text(re.compile(r"^of \d+ crops$"))
    expect(answers).to_have_count(int(chip.inner_text().split()[1]))
    scores = [float(text) for text in answers.locator(".reid-caption b").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    names = answers.locator(".reid-who").all_inner_texts()
    right = [query["Identity"] == name for name in names]
    assert any(right)
    assert not all(right)
    for answer, is_right in zip(answers.all(), right, strict=True):
        expect(answer).to_have_class(re.compile(r"reid-is-right" if is_right else r"reid-is-wrong"))
    colours = "elements => elements.map(element => getComputedStyle(element).borderTopColor)"
    drawn = answers.locator(".reid-frame").evaluate_all(colours)
    green, red = (drawn[right.index(verdict)] for verdict in (True, False))
    assert drawn == [green if is_right else red for is_right in right]
    assert green != red


def test_networks_are_compared_on_request_only(page: Page) -> None:
    choose_query(page, 2)
    expect(page.get_by_role("region", name="Plain BN")).to_have_count(0)
    page.get_by_label("Compare camera BN and plain BN").check()
    for network in NETWORKS:
        region = page.get_by_role("region", name=network)
        expect(region.get_by_role("heading", name=network)).to_be_visible()
        expect(region.get_by_text(re.compile(r"first right answer: rank \d+"))).to_be_visible()
    page.get_by_label("Compare camera BN and plain BN").uncheck()
    expect(page.get_by_role("region", name="Plain BN")).to_have_count(0)


def test_the_last_of_fast_clicks_is_answered(page: Page) -> None:
    """What is shown belongs to what is highlighted, however fast somebody clicks."""
    buttons = page.locator("#reid-picker button")
    alts = buttons.locator("img").evaluate_all("images => images.map(image => image.alt)")
    for trial in range(8):
        order = [(trial + step) % len(alts) for step in (0, 3, 5, 1)]
        page.evaluate("order => order.forEach(i => document.querySelectorAll('#reid-picker button')[i].click())", order)
        if trial % 2:  # in the middle of an answer
            page.wait_for_timeout(30)
            order.append((trial + 7) % len(alts))
            buttons.nth(order[-1]).click()
        wait_until_idle(page)
        pressed = page.locator('#reid-picker button[aria-pressed="true"]')
        expect(pressed).to_have_count(1)
        assert pressed.locator("img").get_attribute("alt") == alts[order[-1]]
        assert page.locator(".reid-query img").get_attribute("alt") == f"Query: {alts[order[-1]]}"
        assert page.url.endswith(f"query={pressed.get_attribute('data-value')}") or "query=" not in page.url


def test_questions_wait_until_the_server_has_answered_an_empty_one(page: Page) -> None:
    """A question that is asked before the page listens would be lost."""
    asked: list[dict[str, Any]] = []
    page.on("request", lambda r: asked.append(r.post_data_json["event_data"]) if "/queue/join" in r.url else None)
    page.reload()
    page.wait_for_selector("[data-ready=yes]", state="attached")
    page.locator("#reid-picker button").nth(2).click()
    wait_until_idle(page)
    assert [question["page"] for question in asked][:: len(asked) - 1] == ["", "search"]
    alt = page.locator('#reid-picker button[aria-pressed="true"] img').get_attribute("alt")
    assert page.locator(".reid-query img").get_attribute("alt") == f"Query: {alt}"


def test_filters_and_own_camera(page: Page) -> None:
    query = choose_query(page, 4)
    own = page.locator(f'.reid-answer[data-camera="{query["Camera"]}"]')
    expect(own).to_have_count(0)
    set_filter(page, "all sites")
    expect(page.get_by_text("of 44 crops")).to_have_count(1)
    page.get_by_label("Other cameras only").uncheck()
    expect(page.get_by_text("of 48 crops")).to_have_count(1)
    choose(page, "Answers", "50")
    expect(page.locator(".reid-answer")).to_have_count(48)
    expect(page.locator(".reid-is-same-camera .reid-frame")).to_have_count(1)
    only = page.get_by_role("group", name="Only these cameras")
    only.get_by_label("b2", exact=True).check()
    wait_until_idle(page)
    expect(page.locator(".reid-answer")).to_have_count(4)
    expect(page.locator('.reid-answer:not([data-camera="b2"])')).to_have_count(0)
    search_section(page).get_by_label("Taken before").fill("2001-01-01T00:00")
    search_section(page).get_by_label("Taken before").blur()
    wait_until_idle(page)
    expect(page.locator(".reid-error:visible")).to_have_text(re.compile("^No crop in the gallery fits these options"))


def test_the_address_holds_the_search(page: Page, demo: Demo) -> None:
    """A reload and a link lead to the same answers, and "back" to those before."""
    first = page.locator(".reid-query img").get_attribute("alt")
    choose_query(page, 5)
    page.get_by_label("Other cameras only").uncheck()
    set_filter(page, "all sites")
    page.get_by_label("Re-ranked").check()
    wait_until_idle(page)
    shown = page.locator(".reid-answer img").evaluate_all("images => images.map(image => image.alt)")
    address = page.url
    page.reload()
    expect(page.locator(".reid-answer").first).to_be_visible()
    wait_until_idle(page)
    assert page.locator(".reid-answer img").evaluate_all("images => images.map(image => image.alt)") == shown
    expect(page.get_by_label("Re-ranked")).to_be_checked()
    expect(page.get_by_label("Other cameras only")).not_to_be_checked()
    assert page.url == address
    page.goto(demo.address)
    wait_until_idle(page)
    assert page.locator(".reid-query img").get_attribute("alt") == first
    page.go_back()
    expect(page.locator(".reid-answer")).not_to_have_count(0)
    assert page.url == address


def test_any_answer_is_a_query_and_can_be_enlarged(page: Page) -> None:
    answer = page.locator(".reid-answer").nth(2)
    words = str(answer.locator("img").get_attribute("alt")).partition(": ")[2].rpartition(", score")[0]
    answer.get_by_role("button", name="Enlarge").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(f'.reid-large img[alt="{words}"]')).to_be_visible()
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_have_count(0)
    answer.locator(".reid-more").click()
    expect(page.locator(f'.reid-query img[alt="Query: {words}"]')).to_be_visible()
    assert "query=r" in page.url


def test_answers_are_saved(page: Page, tmp_path: Path) -> None:
    choose_query(page, 1)
    found = {}
    for words, name in (("CSV", "answers.csv"), ("JSON", "answers.json"), ("images", "answers.png")):
        with page.expect_download() as waiting:
            page.get_by_role("button", name=f"Save {'the images' if words == 'images' else f'as {words}'}").click()
        assert waiting.value.suggested_filename == name
        found[words] = tmp_path / name
        waiting.value.save_as(found[words])
    rows = json.loads(found["JSON"].read_text())
    assert [row["rank"] for row in rows] == list(range(1, 11))
    assert all("/" not in row["image"] for row in rows), "no path of the machine"
    table = list(csv.DictReader(found["CSV"].read_text().splitlines()))
    assert [row["identity"] for row in table] == [row["identity"] for row in rows]
    with Image.open(found["images"]) as image:
        assert image.height == 256


def upload(page: Page, *files: Path) -> None:
    page.locator(IMAGE_INPUT).set_input_files(files)
    wait_until_idle(page)


def test_uploads_are_answered_and_deleted(page: Page, demo: Demo) -> None:
    images = sorted((demo.data / "street-b").rglob("query/person/*_b5_0.jpg"))
    upload(page, images[0])
    expect(page.locator('.reid-query img[alt="Query: unknown person seen by infrared camera unknown"]')).to_be_visible()
    expect(page.locator("#reid-query")).to_contain_text("It has no colour, so it is taken for an infrared image.")
    expect(page.locator("#reid-query")).to_contain_text("normalized with the statistics of all cameras, mixed")
    choose(page, "Camera that took it", "street-b · b5")
    expect(page.locator('.reid-query img[alt="Query: unknown person seen by infrared camera b5"]')).to_be_visible()
    expect(page.locator("#reid-query")).not_to_contain_text("unknown, so it is normalized")
    choose(page, "Light", "visible")
    expect(page.locator("#reid-query")).to_contain_text("It is taken for a visible image, but it has no colour")
    expect(page.locator(".reid-answer.reid-is-unknown")).to_have_count(10)
    before = page.locator(".reid-answer b").all_inner_texts()
    page.get_by_label("Add to the images of this query").check()
    upload(page, images[1])
    assert page.locator(".reid-answer b").all_inner_texts() != before, "two images are another query"
    folder = next(demo.temporary.glob("reid-demo-*"))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [path.name for path in folder.rglob("*") if path.is_file()] == [OWNER_FILE], (
        "no upload was written to the disk"
    )


def test_a_whole_frame_is_doubted(page: Page, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (180, 320, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "frame.png")
    upload(page, tmp_path / "frame.png")
    expect(page.locator("#reid-query")).to_contain_text("This looks like a whole frame and not like a crop")


@pytest.mark.parametrize("bad", ["text", "cut off", "huge"])
def test_a_bad_upload_gets_one_clear_line(page: Page, demo: Demo, tmp_path: Path, bad: str) -> None:
    file = tmp_path / "crop.png"
    noise = np.random.default_rng(0).integers(0, 255, (96, 48, 3), np.uint8)
    Image.fromarray(noise).save(file)
    if bad == "text":
        file.write_text("not an image")
    elif bad == "cut off":
        file.write_bytes(file.read_bytes()[:4000])
    else:
        Image.new("1", (8000, 8000)).save(file)
    upload(page, file)
    line = page.locator(".reid-error:visible")
    expect(line).to_have_text(
        re.compile("This (file is not an|image (is damaged|has 8000 x 8000 pixels))|The image is")
    )
    assert str(demo.temporary) not in line.inner_text()
    expect(page.locator(".reid-answer")).to_have_count(0)
    choose_query(page, 0)
    expect(page.locator(".reid-answer").first).to_be_visible()
    expect(page.locator(".reid-error:visible")).to_have_count(0)


def test_an_upload_that_is_too_large_gets_one_clear_line(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "crop.bmp"
    file.write_bytes(bytes(11 * 2**20))
    page.locator(IMAGE_INPUT).set_input_files(file)
    expect(page.get_by_text("This file is too large")).to_be_visible()


def test_vehicles_of_the_other_site(page: Page) -> None:
    choose(page, "Site", "street-b")
    choose(page, "Category", "vehicle")
    expect(page.locator('#reid-picker img:not([alt^="vehicle b-vehicle"])')).to_have_count(0)
    page.get_by_role("button", name="Random query").click()
    expect(page.locator('.reid-query img[alt^="Query: vehicle b-vehicle"]')).to_be_visible()
    assert query_labels(page)["Site"] == "street-b"
    expect(page.locator('.reid-answer img:not([alt*=": vehicle b-vehicle"])')).to_have_count(0)


def test_a_box_is_drawn_or_written(page: Page, tmp_path: Path) -> None:
    """A box on an uploaded frame, first with the mouse, then with the keyboard; then the whole image again."""
    frame = tmp_path / "frame.png"
    Image.effect_noise((400, 200), 60).convert("RGB").save(frame)
    page.locator(IMAGE_INPUT).set_input_files(frame)
    drawn = page.locator("[data-box]")
    expect(drawn).to_be_visible()
    area = drawn.bounding_box()
    assert area is not None
    page.mouse.move(area["x"] + area["width"] / 2, area["y"] + area["height"] / 2)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] / 4, area["y"] + area["height"] / 4, steps=4)
    page.mouse.up()
    corners = [int(page.get_by_label(name, exact=True).input_value()) for name in ("Left", "Top", "Right", "Bottom")]
    assert np.abs(np.array(corners) - (200, 100, 100, 50)).max() <= 3
    page.get_by_role("button", name="Search for this box").click()
    wait_until_idle(page)
    assert page.locator(".reid-query img").evaluate("one => [one.naturalWidth, one.naturalHeight]") == [100, 50]
    page.get_by_label("Left", exact=True).fill("140")
    page.get_by_label("Left", exact=True).press("Tab")
    page.get_by_role("button", name="Search for this box").press("Enter")
    wait_until_idle(page)
    assert page.locator(".reid-query img").evaluate("one => one.naturalWidth") == 40
    page.get_by_role("button", name="Whole image").click()
    wait_until_idle(page)
    assert page.locator(".reid-query img").evaluate("one => one.naturalWidth / one.naturalHeight") == 2
