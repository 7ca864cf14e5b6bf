"""The running program keeps its files to itself and answers only its own page."""

from __future__ import annotations

import http.client
import json
from pathlib import Path

import pytest
from PIL import Image

from helpers.visiting import Demo

pytestmark = pytest.mark.browser


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
    search = next(step["id"] for step in steps if any(name == "select" for _, name in step["targets"]))
    for path in (file, folder):
        question = {"page": "search", "action": "search", "query": "upload", "uploads": [str(path)]}
        message = {"data": [None], "event_data": question, "fn_index": search, "session_hash": "test"}
        body = json.dumps(message)
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
