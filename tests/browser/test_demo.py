"""A visitor uses every part of the page in a real browser, against the real program."""

from __future__ import annotations

import http.client
import json
import re
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from helpers.visiting import Demo
from reid.app.server import OWNER_FILE

pytestmark = pytest.mark.browser

NETWORKS = ("Camera BN", "Plain BN")


def choose(page: Page, label: str, option: str) -> None:
    """Choose ``option`` of the drop-down list ``label``."""
    page.get_by_role("combobox", name=label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


def press(page: Page, group: str, option: str) -> None:
    """Choose ``option`` of the radio buttons in the element ``group``."""
    page.locator(f"#{group}").get_by_label(option, exact=True).check()


def query_labels(page: Page) -> dict[str, str]:
    """Return the labels of the query that the page shows."""
    return dict(re.findall(r"<dt>(\w+)</dt><dd>([^<]*)</dd>", page.locator(".reid-query").inner_html()))


def choose_query(page: Page, number: int) -> dict[str, str]:
    """Press a query button, wait for the answers and return the labels of the query."""
    button = page.locator("#picker button").nth(number)
    words = button.locator("img").get_attribute("alt")
    button.click()
    expect(page.locator(f'.reid-query img[alt="Query: {words}"]')).to_be_visible()
    expect(button).to_have_attribute("aria-pressed", "true")
    return query_labels(page)


def show_50_answers(page: Page) -> None:
    """Set the number of answers to 50; the page then searches again."""
    field = page.get_by_label("number input for Number of answers")
    field.fill("50")
    field.press("Enter")
    field.blur()


def ranking(page: Page, network: str) -> Locator:
    """Return the answers of one network."""
    return page.get_by_role("region", name=network).locator(".reid-answer")


def scores(answers: Locator) -> list[float]:
    """Return the scores of answers, in their order."""
    return [float(text) for text in answers.locator(".reid-caption b").all_inner_texts()]


def test_a_query_is_answered_in_order_with_right_and_wrong_borders(page: Page) -> None:
    press(page, "answers-modality", "visible")
    expect(page.locator('.reid-answer[data-modality="infrared"]')).to_have_count(0)
    query = choose_query(page, 3)
    answers = ranking(page, "Camera BN")
    expect(answers).to_have_count(10)
    assert answers.locator(".reid-rank").all_inner_texts() == [str(rank) for rank in range(1, 11)]
    assert scores(answers) == sorted(scores(answers), reverse=True)
    chip = page.get_by_role("region", name="Camera BN").get_by_text(re.compile(r"^of \d+ crops$"))
    crops = int(chip.inner_text().split()[1])
    assert 10 < crops <= 50
    show_50_answers(page)
    expect(answers).to_have_count(crops)
    names = answers.locator(".reid-caption span").all_inner_texts()
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


def test_both_networks_answer_the_same_query(page: Page) -> None:
    choose_query(page, 2)
    for network in NETWORKS:
        region = page.get_by_role("region", name=network)
        expect(region.get_by_role("heading", name=network)).to_be_visible()
        expect(region.get_by_text(re.compile(r"first right answer: rank \d+"))).to_be_visible()
        expect(region.get_by_text(re.compile(r"^AP \d+\.\d$"))).to_be_visible()
    boxes = [page.get_by_role("region", name=network).bounding_box() for network in NETWORKS]
    assert all(box and box["y"] + box["height"] <= 800 for box in boxes), "both rankings fit a 1280 x 800 window"


def test_other_cameras_only(page: Page) -> None:
    query = choose_query(page, 4)
    own = page.locator(f'.reid-answer[data-camera="{query["Camera"]}"]')
    expect(own).to_have_count(0)
    # Each change is made after the answers to the previous one have arrived: all 48 crops of people but the 4 of the
    # query's own camera may answer, then all 48.
    press(page, "scope", "all sites")
    expect(page.get_by_text("of 44 crops")).to_have_count(len(NETWORKS))
    page.get_by_label("Other cameras only").uncheck()
    expect(page.get_by_text("of 48 crops")).to_have_count(len(NETWORKS))
    show_50_answers(page)
    expect(page.locator(".reid-answer")).to_have_count(48 * len(NETWORKS))
    expect(own).not_to_have_count(0)
    left_out = page.locator(".reid-is-same-camera .reid-frame")
    expect(left_out).to_have_count(len(NETWORKS))  # the one gallery crop of the query's identity by its camera
    page.get_by_label("Other cameras only").check()
    expect(own).to_have_count(0)


@pytest.mark.parametrize(
    ("camera", "source", "target"), [("a5 infrared", "infrared", "visible"), ("a1 visible", "visible", "infrared")]
)
def test_from_one_modality_to_the_other(page: Page, camera: str, source: str, target: str) -> None:
    choose(page, "Camera", camera)
    name = camera.split()[0]
    expect(page.locator(f'#picker img:not([alt$="camera {name}"])')).to_have_count(0)
    assert choose_query(page, 1)["Modality"] == source
    press(page, "answers-modality", target)
    expect(page.locator(f'.reid-answer[data-modality="{source}"]')).to_have_count(0)
    expect(page.locator(f'.reid-answer[data-modality="{target}"]')).not_to_have_count(0)


def test_vehicles_of_the_other_site(page: Page) -> None:
    choose(page, "Site", "street-b")
    choose(page, "Category", "vehicle")
    expect(page.locator('#picker img:not([alt^="vehicle b-vehicle"])')).to_have_count(0)
    page.get_by_role("button", name="Random query").click()
    expect(page.locator('.reid-query img[alt^="Query: vehicle b-vehicle"]')).to_be_visible()
    assert query_labels(page)["Site"] == "street-b"
    expect(page.locator('.reid-answer img:not([alt*=": vehicle b-vehicle"])')).to_have_count(0)


def test_scores(page: Page) -> None:
    page.get_by_role("tab", name="Scores").click()
    chart = page.locator("#cmc svg[role=img]")
    expect(chart).to_be_visible()
    box = chart.bounding_box()
    assert box
    assert box["width"] > 300
    expect(chart.locator("polyline")).to_have_count(len(NETWORKS))
    for network in NETWORKS:
        expect(page.locator("#cmc").get_by_text(f"{network}: rank-1")).to_be_visible()
    rows = page.locator("#scores tbody tr")
    expect(rows).to_have_count(8)
    assert "visible → visible" in rows.first.inner_text()
    before = chart.inner_html()
    press(page, "scores-direction", "infrared → visible")
    expect(chart).to_have_attribute("aria-label", re.compile("street-a, infrared → visible"))
    assert chart.inner_html() != before
    press(page, "scores-site", "street-b")
    expect(chart).to_have_attribute("aria-label", re.compile("street-b, infrared → visible"))


def test_cameras(page: Page) -> None:
    page.get_by_role("tab", name="Cameras").click()
    cards = page.locator(".reid-camera")
    expect(cards.first).to_be_visible()
    assert cards.count() == 24  # six cameras at two sites, people and vehicles
    expect(page.get_by_role("heading", name="Every camera is a domain")).to_be_visible()


def test_an_upload_is_answered_and_deleted(page: Page, demo: Demo) -> None:
    image = min((demo.data / "street-b").rglob("query/person/*_b5_0.jpg"))
    page.get_by_role("tab", name="Upload").click()
    page.locator("#upload input[type=file]").set_input_files(image)
    expect(page.locator('.reid-query img[alt="Query: unknown person seen by visible camera a1"]')).to_be_visible()
    choose(page, "Camera that took it", "street-b · b5 · infrared")
    expect(page.locator('.reid-query img[alt="Query: unknown person seen by infrared camera b5"]')).to_be_visible()
    expect(page.locator(".reid-answer.reid-is-unknown")).to_have_count(20)
    expect(page.locator('.reid-answer img:not([alt*="b-person"])')).to_have_count(0)
    expect(page.get_by_text("identity unknown: not scored")).to_have_count(len(NETWORKS))
    folder = next(demo.temporary.glob("reid-demo-*"))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [path.name for path in folder.rglob("*")] == [OWNER_FILE], "no upload was written to the disk"


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
    page.get_by_role("tab", name="Upload").click()
    page.locator("#upload input[type=file]").set_input_files(file)
    line = page.locator("#answers").get_by_role("alert")
    expect(line).to_have_text(
        re.compile("This (file is not an|image (is damaged|has 8000 x 8000 pixels))|The (picture|image) is damaged")
    )
    assert str(demo.temporary) not in line.inner_text()
    assert "Traceback" not in page.content()
    expect(page.locator(".reid-answer")).to_have_count(0)
    page.get_by_role("tab", name="From the data set").click()
    choose_query(page, 0)
    expect(page.locator(".reid-answer").first).to_be_visible()


def test_an_upload_that_is_too_large_gets_one_clear_line(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "crop.bmp"
    file.write_bytes(bytes(11 * 2**20))
    page.get_by_role("tab", name="Upload").click()
    page.locator("#upload input[type=file]").set_input_files(file)
    expect(page.get_by_text(re.compile("maximum allowed size|exceeds|too large", re.IGNORECASE)).first).to_be_visible()
    assert "Traceback" not in page.content()


def test_nothing_scrolls_sideways_on_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    for tab in ("Search", "Upload", "Scores", "Cameras"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_function("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        if tab == "Upload":
            page.get_by_role("tab", name="From the data set").click()


def test_every_image_has_a_description(page: Page) -> None:
    for tab in ("Search", "Scores", "Cameras"):
        page.get_by_role("tab", name=tab).click()
        expect(page.get_by_role("tab", name=tab)).to_have_attribute("aria-selected", "true")
        expect(page.locator("img:visible, svg[role=img]:visible").first).to_be_visible()
        expect(page.locator('img:not([alt]):visible, img[alt=""]:visible')).to_have_count(0)
        expect(page.locator('svg[role=img]:not([aria-label]), svg[role=img][aria-label=""]')).to_have_count(0)
    assert page.title() == "reid"


def get(demo: Demo, path: str, host: str | None = None) -> int:
    """Return the status of a request that the page itself would not send."""
    connection = http.client.HTTPConnection(demo.address.removeprefix("http://"), timeout=30)
    try:
        connection.request("GET", path, headers={"Host": host} if host else {})
        return connection.getresponse().status
    finally:
        connection.close()


def test_no_file_has_an_address(demo: Demo) -> None:
    assert get(demo, "/") == 200
    image = min(demo.data.rglob("*.jpg"))
    manifest = demo.data / "street-a" / "manifest.csv"
    for file in (image, manifest, Path("/etc/passwd")):
        assert file.is_file()
        for prefix in (
            "/gradio_api/file=",
            "/file=",
            "/gradio_api/file/",
            "/static/..",
            "/assets/..",
            "/static/../../../..",
        ):
            assert get(demo, f"{prefix}{file}") in (403, 404)


@pytest.mark.parametrize("inside", [True, False])
def test_no_file_of_this_machine_can_be_named(demo: Demo, tmp_path: Path, inside: bool) -> None:
    """A program that sends requests without the page could name any file as the upload; only uploads are read."""
    folder = next(demo.temporary.glob("reid-demo-*")) if inside else tmp_path
    file = folder / "named.png"
    Image.new("RGB", (32, 64)).save(file)
    connection = http.client.HTTPConnection(demo.address.removeprefix("http://"), timeout=60)
    connection.request("GET", "/config")
    steps = json.loads(connection.getresponse().read())["dependencies"]
    upload = next(step["id"] for step in steps if any(name == "upload" for _, name in step["targets"]))
    for path in (file, folder):
        crop = {"path": str(path), "meta": {"_type": "gradio.FileData"}, "orig_name": "a.png"}
        data = [crop, "street-a · a1 · visible", "person", "visible"]
        body = json.dumps({"data": data, "fn_index": upload, "session_hash": "test"})
        connection.request("POST", "/gradio_api/queue/join", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert (answer.status, answer.read().count(b"\n")) == (404, 1)
    connection.close()
    assert file.is_file()
    file.unlink()


@pytest.mark.parametrize(
    "path",
    [
        "/docs",
        "/openapi.json",
        "/gradio_api/info",
        "/gradio_api/openapi.json",
        "/monitoring",
        "/gradio_api/proxy=http://127.0.0.1/",
        "/gradio_api/runs",
    ],
)
def test_other_addresses_are_not_found(demo: Demo, path: str) -> None:
    assert get(demo, path) == 404


def test_another_host_name_is_refused(demo: Demo) -> None:
    assert get(demo, "/", host="example.org") == 404
    assert get(demo, "/", host="localhost:7860") == 200
