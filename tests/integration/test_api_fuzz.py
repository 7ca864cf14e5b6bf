"""A bounded fuzz of the REST interface: spoiled requests get a status of 4xx and one line, never a fault."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
from pathlib import Path

import pytest
from PIL import Image

from helpers.served_galleries import Served, make_gallery, serve_gallery
from reid.data.manifest import read_manifest
from reid.records import Split
from reid.retrieval.gallery import Gallery

CASES = int(os.environ.get("REID_API_CASES", "400"))  # of the long form: REID_API_CASES=20000 REID_API_SEED=1
SEED = int(os.environ.get("REID_API_SEED", "7"))
ADDRESSES = (
    ("GET", "/api/health"), ("GET", "/api/gallery"), ("GET", "/api/cameras"), ("GET", "/api/persons"),
    ("GET", "/api/audit"), ("GET", "/api/jobs"), ("GET", "/api/jobs/1"), ("GET", "/api/crops/1/image"),
    ("GET", "/api/openapi.json"), ("POST", "/api/search"), ("POST", "/api/crops"), ("POST", "/api/persons"),
    ("POST", "/api/identify"), ("POST", "/api/jobs"), ("POST", "/api/jobs/1/cancel"), ("POST", "/api/jobs/1/resume"),
    ("GET", "/api/cameras/crops"), ("POST", "/api/cameras/crops"), ("DELETE", "/api/cameras/crops"),
    ("POST", "/api/cameras"), ("GET", "/api/cameras/changes"), ("GET", "/api/cameras/changes/1/neighbours"),
    ("POST", "/api/cameras/undo"), ("POST", "/api/erase/preview"), ("POST", "/api/erase"),
)  # fmt: skip
NAMES = (
    "crop", "camera", "modality", "category", "k", "cross_camera", "answers", "in_camera", "not_in_camera", "after",
    "before", "ranking", "one_per", "purpose", "unknown_camera", "limit", "offset",
    "identity", "time", "track", "unknown",
)  # fmt: skip
VALUES = (
    "", "0", "1", "-1", "5", "1e9", "99999999999999999999", "nan", "true", "a1", "infrared", "person", "plain",
    "2024-05-31T16:20:00", "9999-99-99", "../../etc/passwd", "/etc/passwd", "a" * 250, "\0", "\u202e", "'--", "%s",
    "\ud7ff", "person-1", "crop-0", "null",
)  # fmt: skip
KEYS = (
    "kind", "parameters", "verb", "subjects", "text", "instead", "identity", "person", "camera", "before", "where",
    "crops", "rows", "again", "source", "more", "category", "modality", "epochs",
)  # fmt: skip
WORDS = (
    "identify", "add", "ingest", "adapt", "camera", "calibrate", "switch",
    "compact", "verify", "same", "different", "confirm", "split", "name",
    "undo", "camera = 'a1'", "camera", "1 = 1; DROP TABLE rows", "person IN (", *VALUES,
)  # fmt: skip


@pytest.fixture
def served(tiny_street: Path, plain_weights: Path, tmp_path: Path) -> Served:
    samples = read_manifest(tiny_street / "street-a" / "manifest.csv")
    rows = tuple(s for s in samples if s.split is Split.GALLERY and s.category == "person")
    folder = make_gallery(rows, plain_weights, tmp_path / "galleries" / "shop")
    (tmp_path / "inbox").mkdir()
    shutil.copy(rows[0].path, tmp_path / "inbox" / "1.jpg")
    return serve_gallery(folder, tmp_path / "state", sources=(tmp_path / "inbox",))


def draw_value(draw: random.Random, depth: int = 0) -> object:
    """Draw a JSON value, often one that an address expects."""
    kind = draw.randrange(9 if depth < 3 else 6)
    if kind < 4:
        return draw.choice(WORDS)
    if kind == 4:
        return draw.choice([0, 1, -1, 3, 2**63, 1.5, True, False, None])
    if kind == 5:
        return draw.choice(["", "a" * 3000, "1"])
    if kind == 6:
        return [draw_value(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {draw.choice(KEYS): draw_value(draw, depth + 1) for _ in range(draw.randrange(4))}


def draw_body(draw: random.Random, pictures: list[bytes]) -> bytes:
    """Draw a body: a picture, a spoiled picture, JSON, spoiled JSON, or noise."""
    kind = draw.randrange(6)
    if kind == 0:
        return b""
    if kind == 1:
        return draw.choice(pictures)
    if kind == 2:
        spoiled = bytearray(draw.choice(pictures))
        for _ in range(draw.randrange(1, 20)):
            spoiled[draw.randrange(len(spoiled))] = draw.randrange(256)
        return bytes(spoiled[: draw.randrange(1, len(spoiled))] if draw.random() < 0.3 else spoiled)
    if kind == 3:
        return draw.randbytes(draw.randrange(200))
    content = json.dumps({draw.choice(KEYS): draw_value(draw) for _ in range(draw.randrange(1, 5))}).encode()
    return content if kind == 4 else content[: draw.randrange(len(content))] + b"[" * draw.randrange(3)


def draw_request(draw: random.Random, pictures: list[bytes]) -> dict[str, object]:
    method, path = draw.choice(ADDRESSES)
    if draw.random() < 0.1:
        method = draw.choice(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
    if draw.random() < 0.1:
        path += draw.choice(["/", "/x", "/../..", "%2e%2e", "?", "/1", "\u00e9"])
    query = [(draw.choice(NAMES), draw.choice(VALUES)) for _ in range(draw.randrange(4))]
    headers = {"content-type": draw.choice(["application/json", "image/jpeg", "text/plain", "multipart/form-data", ""])}
    content = draw_body(draw, pictures)
    return {"method": method, "url": path, "params": query, "headers": headers, "content": content}


def test_spoiled_requests_are_refused_in_one_line(served: Served, tmp_path: Path) -> None:
    draw, client = random.Random(SEED), served.client()
    gallery = Gallery.open(served.service.folder)
    pictures = [gallery.samples[number].path.read_bytes() for number in (0, 5)]
    for size, mode in (((3000, 3000), "1"), ((1, 1), "RGB"), ((40, 80), "I;16")):
        out = io.BytesIO()
        Image.new(mode, size).save(out, "PNG")
        pictures.append(out.getvalue())
    codes = []
    for number in range(CASES):
        request = draw_request(draw, pictures)
        answer = client.request(**request)  # type: ignore[arg-type]
        codes.append(answer.status_code)
        shown = {key: str(value)[:200] for key, value in request.items()}
        assert answer.status_code < 500, (number, shown, answer.text)
        assert str(tmp_path) not in answer.text, (number, shown)
        assert "Traceback" not in answer.text
        if answer.status_code >= 400 and request["method"] != "HEAD":
            assert list(answer.json()) == ["detail"], (number, shown)
            assert "\n" not in answer.json()["detail"]
    assert {200, 404, 405, 422} <= set(codes)
    served.service.audit.verify()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["galleries", "inbox", "state"]
    assert [path.name for path in (tmp_path / "inbox").iterdir()] == ["1.jpg"]
    Gallery.open(served.service.folder).verify()
