"""The served application: docs/api.md runs as it stands, users log in over TLS, and a job survives a killed program."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.served_galleries import PASSWORD, make_gallery, make_users
from reid.app.sessions import UNREAD_OF_A_SESSION
from reid.data.manifest import read_manifest
from reid.records import Sample, Split
from reid.retrieval.gallery import Gallery

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CAMERAS = {"a1": "door", "a2": "yard"}


@pytest.fixture(scope="module")
def site(tiny_street: Path, plain_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a gallery of the cameras door and yard, pictures, crops that a job may read, and users."""
    folder = tmp_path_factory.mktemp("site")
    rows = [s for s in read_manifest(tiny_street / "street-a" / "manifest.csv") if s.camera in CAMERAS]
    samples = [
        Sample(s.path, s.identity, CAMERAS[s.camera], s.modality, s.category, s.split, s.time)
        for s in rows
        if s.category == "person" and s.split is Split.GALLERY
    ]
    make_gallery(tuple(samples[:-2]), plain_weights, folder / "galleries" / "shop")
    shutil.copy(samples[0].path, folder / "query.jpg")
    shutil.copy(samples[-1].path, folder / "new.jpg")
    (folder / "inbox" / "monday" / "door" / "bo").mkdir(parents=True)
    shutil.copy(samples[-2].path, folder / "inbox" / "monday" / "door" / "bo" / "1.jpg")
    (folder / "dock").mkdir()
    for sample in [s for s in rows if s.category == "person" and s.split is not Split.GALLERY][:10]:
        shutil.copy(sample.path, folder / "dock")
    make_users(folder / "roles.toml")
    return folder


Start = Callable[..., tuple[subprocess.Popen[str], str]]


@pytest.fixture
def start(site: Path) -> Iterator[Start]:
    """Start the application with a gallery; every one that was started is ended after the test."""
    started: list[subprocess.Popen[str]] = []

    def serve(*options: object, gallery: str = "shop") -> tuple[subprocess.Popen[str], str]:
        words = [sys.executable, "-m", "reid.cli", "serve", "--gallery", f"galleries/{gallery}", "--port", "0"]
        process = subprocess.Popen(
            [*words, *map(str, options)], cwd=site, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith("serving on "), process.stderr.read()
        threading.Thread(target=process.stderr.read, daemon=True).start()
        return process, line.removeprefix("serving on ").strip()

    yield serve
    for process in started:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def ask(
    address: str, path: str, body: object = None, *, headers: dict[str, str] | None = None, context: Any = None
) -> Any:
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, content, {"content-type": "application/json", **(headers or {})})
    with urllib.request.urlopen(request, context=context, timeout=60) as answer:
        return json.loads(answer.read())


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("nothing happened")


def test_every_command_of_the_page_runs(start: Start, site: Path) -> None:
    shutil.copytree(site / "galleries" / "shop", site / "galleries" / "docs")
    _, address = start("--import-folder", "inbox", gallery="docs")
    lines = [line for block in BLOCK.findall(PAGE.read_text(encoding="utf-8")) for line in block.splitlines()]
    lines = [line.replace("reid ", f"{shlex.quote(sys.executable)} -m reid.cli ", 1) if line.startswith("reid ") else
             line.replace("| reid ", f"| {shlex.quote(sys.executable)} -m reid.cli ") for line in lines]  # fmt: skip
    assert len(lines) > 25
    token = next(line for line in lines if line.startswith("TOKEN="))
    found = ""
    for number, line in enumerate(lines):
        if "reid.cli serve" in line:
            continue
        if line is token:
            _, other = start("--users", "users.toml", gallery="shop")
            line = f"{line}; {lines[number + 1]}"
        elif "$TOKEN" in line:
            continue
        command = line.replace("http://127.0.0.1:7860", address)
        command = command.replace("http://127.0.0.1:7861", other) if "7861" in command else command
        done = subprocess.run(
            ["bash", "-ec", command], cwd=site, capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        found += done.stdout
        if "/identify" in line or line.endswith(
            "/api/cameras"
        ):  # the third job is paused later, while the second one runs
            wait_for(lambda: is_idle(address))
    assert '"verdict"' in found or '"score"' in found
    assert "Anna" in found
    assert (site / "best.jpg").read_bytes().startswith(b"\xff\xd8")


def is_idle(address: str) -> bool:
    return all(job["status"] in ("done", "failed", "cancelled") for job in ask(address, "/api/jobs"))


def test_users_log_in_over_tls(start: Start, site: Path) -> None:
    make_certificate(site)
    _, address = start("--users", "roles.toml", "--tls-cert", "cert.pem", "--tls-key", "key.pem", "--host", "0.0.0.0")
    assert address.startswith("https://")
    assert "0.0.0.0" not in address
    address = f"https://127.0.0.1:{address.rpartition(':')[2]}"
    context = ssl.create_default_context(cafile=site / "cert.pem")
    context.check_hostname = False
    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask(address, "/api/gallery", context=context)
    login = ask(address, "/api/login", {"name": "viewer", "password": PASSWORD}, context=context)
    bearer = {"authorization": f"Bearer {login['token']}"}
    assert ask(address, "/api/gallery", headers=bearer, context=context)["name"] == "shop"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        ask(address, "/api/audit", headers=bearer, context=context)
    with pytest.raises(urllib.error.HTTPError, match="401") as page:
        urllib.request.urlopen(address, context=context, timeout=60)
    assert b'name="password"' in page.value.read()
    page.value.close()


def test_gradio_client_searches_where_it_is_allowed(start: Start, site: Path) -> None:
    """Without --gradio-client there is no such address; with it, the client asks as a user, and for nothing else."""
    from gradio_client import Client

    _, address = start("--users", "roles.toml", "--gradio-client", "--state", "client-state")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask(address, "/client/config")
    token = ask(address, "/api/login", {"name": "viewer", "password": PASSWORD})["token"]
    bearer = {"authorization": f"Bearer {token}"}
    client = Client(f"{address}/client/", headers=bearer, verbose=False)
    picture = base64.b64encode((site / "query.jpg").read_bytes()).decode()
    found = client.predict(picture, [], {"answers": 3, "camera": "door"}, api_name="/search")
    content = (site / "query.jpg").read_bytes()
    same = urllib.request.Request(f"{address}/api/search?k=3&camera=door", content, bearer)
    with urllib.request.urlopen(same, timeout=60) as answer:
        assert found == json.loads(answer.read())
    assert client.predict(api_name="/gallery")["name"] == "shop"
    assert {one["camera"] for one in client.predict(api_name="/cameras")} == {"door", "yard"}
    for options in ({"answer": 3}, {"answers": "3"}, {"in_camera": ["nowhere"]}, {"modality": "x-ray"}):
        with pytest.raises(Exception, match=next(iter(options))) as caught:
            client.predict(picture, [], options, api_name="/search")
        assert str(site) not in str(caught.value)
    for path in ("/client/", "/client/gradio_api/file=/etc/passwd", "/client/gradio_api/upload", "/client/x"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            ask(address, path, headers=bearer)
    right: dict[str, object] = {"data": [], "fn_index": 0, "session_hash": "a"}
    wrong = ({"data": "x"}, {"data": ["", [], {"path": "."}]}, {"fn_index": 9}, {"session_hash": "../a"})
    for body in ({}, *({**right, **one} for one in wrong)):
        with pytest.raises(urllib.error.HTTPError, match="400"):
            ask(address, "/client/gradio_api/queue/join", body, headers=bearer)
    check_unread_results(address, bearer)
    assert client.predict(api_name="/gallery")["name"] == "shop", "others are answered"
    searches = [one for one in (site / "client-state" / "audit.jsonl").read_text().splitlines() if '"search"' in one]
    assert searches
    assert all('"viewer"' in one for one in searches)
    _, plain = start("--state", "plain-state")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        ask(plain, "/client/config")


def check_unread_results(address: str, bearer: dict[str, str]) -> None:
    """So many results of a session wait, and no more; nobody else reads them."""
    body: dict[str, object] = {"data": [], "fn_index": 1, "session_hash": "reads-nothing"}
    for _ in range(UNREAD_OF_A_SESSION):
        ask(address, "/client/gradio_api/queue/join", body, headers=bearer)
    with pytest.raises(urllib.error.HTTPError, match="429"):
        ask(address, "/client/gradio_api/queue/join", body, headers=bearer)
    token = ask(address, "/api/login", {"name": "admin", "password": PASSWORD})["token"]
    other = {"authorization": f"Bearer {token}"}
    with pytest.raises(urllib.error.HTTPError, match="404"):
        ask(address, "/client/gradio_api/queue/join", body, headers=other)
    for name in ("reads-nothing", "unknown", "..%2Fa", ""):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            ask(address, f"/client/gradio_api/queue/data?session_hash={name}", headers=other)


def make_certificate(folder: Path) -> None:
    """Make a certificate that signs itself."""
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=localhost"
        " -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(shlex.split(command), cwd=folder, capture_output=True, check=True)


def test_a_job_survives_a_killed_program(start: Start, site: Path) -> None:
    shutil.copytree(site / "galleries" / "shop", site / "galleries" / "killed")
    rows = len(Gallery.open(site / "galleries" / "killed"))
    process, address = start("--import-folder", "inbox", gallery="killed")
    number = ask(address, "/api/jobs", {"kind": "add", "parameters": {"source": "monday"}})["number"]
    wait_for(lambda: ask(address, f"/api/jobs/{number}")["status"] == "running")
    process.kill()
    process.wait()
    _, address = start("--allow-host", "reid.example.org", gallery="killed")
    names = ("reid.example.org", "evil.example", "127.0.0.1")
    assert [status_under(address, name) for name in names] == [b"200", b"404", b"200"]
    wait_for(lambda: ask(address, f"/api/jobs/{number}")["status"] == "done")
    assert len(Gallery.open(site / "galleries" / "killed")) == rows + 1
    assert ask(address, "/api/persons")["number_of_persons"] >= 0


def status_under(address: str, name: str) -> bytes:
    """Return the status of a request that names another host."""
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=30) as connection:
        connection.sendall(f"GET /api/health HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
        with connection.makefile("rb") as answer:
            return answer.readline().split()[1]


@pytest.mark.parametrize(
    ("options", "line"),
    [(("--host", "0.0.0.0"), "reid users add"), (("--tls-cert", "x.pem"), "both or none"),
     (("--tls-cert", "query.jpg", "--tls-key", "query.jpg"), "PEM"), (("--allow-host", "a b"), "host name"),
     (("--users", "none.toml"), "none.toml"), (("--webhook", "file:///etc"), "--webhook"),
     (("--import-folder", "none"), "none"), (("--state", "galleries/shop/state"), "beside")],
)  # fmt: skip
def test_what_would_be_unsafe_is_refused(reid, site: Path, monkeypatch: pytest.MonkeyPatch, options, line) -> None:
    monkeypatch.chdir(site)
    code, out, err = reid("serve", "--gallery", "galleries/shop", "--port", "0", *options)
    assert (code, out) == (1, "")
    (error,) = [text for text in err.splitlines() if text.startswith("error: ")]
    assert line in error


def test_users_are_kept_on_the_command_line(reid, fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    file = tmp_path / "users.toml"
    monkeypatch.setattr(sys, "stdin", io.StringIO("a long password\n"))
    assert reid("users", "add", file, "anna", "--role", "admin")[1].endswith("added anna, admin\n")
    assert reid("users", "list", file)[1] == "anna\tadmin\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("short\n"))
    assert "12 to 1024" in fails("users", "add", file, "bo")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "stdin" in fails("users", "add", file, "bo")
    assert "anna" in fails("users", "remove", file, "ana")
    assert reid("users", "remove", file, "anna")[0] == 0
    assert "no such users file" in fails("users", "list", tmp_path / "none.toml")
