"""The webhook announces each new crop once, with its person, and sends nothing elsewhere."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from helpers.served_galleries import Served, serve_gallery
from reid.app.serving_options import check_webhook
from reid.app.webhook import Webhook, send_message
from reid.errors import ConfigError
from reid.records import Embeddings, Sample
from reid.retrieval.gallery import Gallery

URL = "http://127.0.0.1:9/seen"


def rows(*cameras: str) -> Embeddings:
    samples = tuple(Sample(Path(f"{camera}.jpg"), camera=camera) for camera in cameras)
    vectors = np.eye(8, dtype=np.float32)[: len(samples)]
    return Embeddings(samples, vectors, "network")


@pytest.fixture
def served(tmp_path: Path) -> Served:
    Gallery.build(rows("c1", "c2")).save(tmp_path / "shop")
    return serve_gallery(tmp_path / "shop", tmp_path / "state")


class Inbox:
    """Keeps the messages that are sent; ``fails`` loses them instead."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.fails = False

    def __call__(self, url: str, body: bytes) -> None:
        assert url == URL
        if self.fails:
            raise OSError("no network")
        self.messages.append(body)

    @property
    def crops(self) -> list[tuple[int, str, str | None]]:
        events = [event for body in self.messages for event in json.loads(body)["events"]]
        return [(event["crop"], event["camera"], event["person"]) for event in events]


def test_only_new_crops_are_announced_and_each_once(served: Served, tmp_path: Path) -> None:
    inbox = Inbox()
    webhook = Webhook(URL, served.service, inbox, patience=0)
    assert webhook.announce_new() == 0
    Gallery.open(tmp_path / "shop").add(rows("c1", "c2", "c3", "c4"))
    assert webhook.announce_new() == 2
    assert webhook.announce_new() == 0
    assert inbox.crops == [(2, "c3", None), (3, "c4", None)]
    assert json.loads(inbox.messages[0])["events"][0]["image"] == "/api/crops/2/image"
    assert Webhook(URL, served.service, inbox, patience=0).announce_new() == 0, "nor after a restart"


def test_a_lost_message_is_sent_again(served: Served, tmp_path: Path) -> None:
    inbox = Inbox()
    webhook = Webhook(URL, served.service, inbox, patience=0)
    Gallery.open(tmp_path / "shop").add(rows("c1", "c2", "c3"))
    inbox.fails = True
    with pytest.raises(OSError, match="no network"):
        webhook.announce_new()
    inbox.fails = False
    assert Webhook(URL, served.service, inbox, patience=0).announce_new() == 1


def test_a_crop_waits_for_its_person(served: Served, tmp_path: Path) -> None:
    inbox, client = Inbox(), served.client()
    webhook = Webhook(URL, served.service, inbox, patience=1000)
    Gallery.open(tmp_path / "shop").add(rows("c1", "c2", "c3"))
    assert webhook.announce_new() == 0
    same = {"verb": "same", "subjects": ["crop-0", "crop-2"]}
    assert client.post("/api/persons", json=same).status_code == 200
    assert webhook.announce_new() == 1
    assert inbox.crops == [(2, "c3", "person-1")]


@pytest.mark.parametrize(
    "url", ["", "example.org", "file:///etc/passwd", "http://", "http://a b/", "ftp://x/", "http://x:99999/"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        check_webhook(url)


class _Receiver(BaseHTTPRequestHandler):
    bodies: list[bytes]

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        code = int(self.path[1:])
        self.send_response(code)
        if code == 302:
            self.send_header("Location", "/200")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@pytest.fixture
def receiver() -> Iterator[str]:
    _Receiver.bodies = []
    server = HTTPServer(("127.0.0.1", 0), _Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_messages_arrive_and_redirections_are_not_followed(receiver: str) -> None:
    send_message(f"{receiver}/200", b'{"events": []}')
    assert _Receiver.bodies == [b'{"events": []}']
    for code in (302, 500):
        with pytest.raises(OSError, match="not arrive"):
            send_message(f"{receiver}/{code}", b"{}")
    assert len(_Receiver.bodies) == 3
