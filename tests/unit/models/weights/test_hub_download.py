"""A file of the hub is the version whose hash the hub states, or it is not there; no test opens a connection."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from reid.errors import WeightsError
from reid.models.weights.hub_download import hub_client
from reid.models.weights.public_weights import Fetched, PublicWeights, fetch

ROW = PublicWeights(
    "net", "resnet18", "https://hub.example/o/n/resolve/main/m.pth", "https://hub.example/o/n", "MIT", "crops",
    hub="o/n", file="m.pth",
)  # fmt: skip


class Client:
    """Stand in for huggingface_hub: one file, its hash, and a failure where one is wanted."""

    def __init__(self, content: bytes, etag: str | None, failure: Exception | None = None) -> None:
        self.content, self.etag, self.failure = content, etag, failure
        self.errors = SimpleNamespace(HTTPError=KeyError)
        self.asked: list[tuple[str, str, str]] = []

    def hf_hub_url(self, repository: str, file: str) -> str:
        return f"https://hub.example/{repository}/{file}"

    def get_hf_file_metadata(self, url: str, timeout: float) -> SimpleNamespace:
        if self.failure is not None:
            raise self.failure
        return SimpleNamespace(size=len(self.content), etag=self.etag, commit_hash="c0ffee")

    def hf_hub_download(self, repository: str, file: str, *, revision: str, local_dir: str) -> str:
        self.asked.append((repository, file, revision))
        path = Path(local_dir) / file
        path.write_bytes(self.content)
        (Path(local_dir) / ".cache").mkdir()
        return str(path)


@pytest.fixture
def content() -> bytes:
    buffer = io.BytesIO()
    torch.save({"conv1.weight": torch.ones(2)}, buffer)
    return buffer.getvalue()


def test_the_hash_of_the_hub_is_checked(content: bytes, tmp_path: Path) -> None:
    digest, heard = hashlib.sha256(content).hexdigest(), []
    client = Client(content, digest)
    fetched = fetch(ROW, tmp_path, hub=client, progress=lambda *reported: heard.append(reported))
    assert fetched == Fetched(tmp_path / "net.pth", digest, 64, is_on_hub=True)
    assert "agrees with the publisher's" in fetched.verdict
    assert client.asked == [("o/n", "m.pth", "c0ffee")]
    assert heard == [(0, len(content)), (len(content), len(content))]
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth"]
    assert fetch(ROW, tmp_path, hub=Client(b"", None, OSError("not asked again"))).sha256 == digest


def test_another_hash_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="0" * 64) as caught:
        fetch(ROW, tmp_path, hub=Client(content, "0" * 64))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("etag", [None, '"d41d8cd98f00b204e9800998ecf8427e"'])
def test_a_small_file_has_no_hash(content: bytes, etag: str | None, tmp_path: Path) -> None:
    fetched = fetch(ROW, tmp_path, hub=Client(content, etag))
    assert fetched.digits == 0
    assert 'the extra "hub"' in fetched.verdict


@pytest.mark.parametrize("failure", [OSError("403 gated\nmore"), ConnectionError("offline mode"), KeyError("no route")])
def test_a_refusal_is_one_line_with_the_cure(failure: Exception, tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        fetch(ROW, tmp_path, hub=Client(b"", None, failure))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("net: ")
    for word in ("o/n/m.pth", "hf auth login", ROW.url, str(tmp_path / "net.pth")):
        assert word in message
    assert list(tmp_path.iterdir()) == []


def test_the_functions_of_the_package_are_those_that_are_called() -> None:
    client = hub_client()
    if client is None:
        pytest.skip('the extra "hub" is not installed')
    for name in ("get_hf_file_metadata", "hf_hub_url", "hf_hub_download", "errors"):
        assert hasattr(client, name)
