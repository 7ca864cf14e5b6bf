"""Public weights: the table is sound, and a file is fetched whole, checked, and free of code, or not at all.

No test opens a connection: an opener stands in for the network's.  Caught: a file that keeps its name though
it was cut off or has another hash, a pickle with code in it, a hash that is claimed to be verified though
nobody stated one, and a connection that leads away from https.
"""

from __future__ import annotations

import hashlib
import io
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import pytest
import torch

from reid.errors import ConfigError, WeightsError
from reid.models.networks.backbones import BACKBONES
from reid.models.networks.transformers import TRANSFORMERS
from reid.models.runtime import RUNTIMES
from reid.models.weights.families import ANIMAL_NETWORKS, PUBLISHED_NAMES
from reid.models.weights.public_weights import Fetched, PublicWeights, fetch, find_weights, public_weights
from reid.models.weights.tensor_tables import read_table

TABLE = {"conv1.weight": torch.arange(6.0).view(2, 3)}
URL = "https://models.example/net.pth"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a test tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


class Touch:
    """A pickle of this makes a folder when it is loaded carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


class Answer(io.BytesIO):
    """What an opener returns."""

    def __init__(self, content: bytes, length: int | None, url: str) -> None:
        super().__init__(content)
        self.url = url
        self.headers = {} if length is None else {"Content-Length": str(length)}


class Site:
    """Serve one file and keep the addresses that were asked for."""

    def __init__(self, content: bytes, *, length: int | None = -1, url: str = URL) -> None:
        self.content, self.url = content, url
        self.length = len(content) if length == -1 else length
        self.asked: list[str] = []

    def __call__(self, request: Any, timeout: float) -> Answer:
        assert timeout > 0
        self.asked.append(request.full_url)
        return Answer(self.content, self.length, self.url)


def content_of(payload: object = TABLE) -> bytes:
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    return buffer.getvalue()


def row(sha256: str = "", url: str = URL) -> PublicWeights:
    return PublicWeights("net", "resnet18", url, "https://models.example/zoo", "MIT", "crops", sha256)


def refusal(weights: PublicWeights, folder: Path, opener: Callable[..., Any]) -> str:
    with pytest.raises(WeightsError) as caught:
        fetch(weights, folder, opener=opener)
    assert "\n" not in str(caught.value)
    assert not folder.exists() or list(folder.iterdir()) == []  # neither the file nor a part of it
    return str(caught.value)


class TestTable:
    """The rows that come with the program."""

    def test_every_row_is_complete(self) -> None:
        for weights in public_weights():
            trunk = weights.backbone.split("+")[0]
            known = (*BACKBONES, *TRANSFORMERS, *PUBLISHED_NAMES, *ANIMAL_NETWORKS, *RUNTIMES.values())
            assert trunk in known or trunk.startswith("timm:")
            assert weights.hub == "" or weights.url == f"{weights.page}/resolve/main/{weights.file}"
            assert weights.licence
            assert weights.trained_on
            assert weights.page.startswith("https://")
            assert weights.url == "" or weights.url.startswith("https://")

    def test_hashes_are_those_in_the_file_names_of_publishers(self) -> None:
        stated = [weights for weights in public_weights() if weights.sha256]
        assert stated
        for weights in stated:
            assert int(weights.sha256, 16) >= 0
            assert weights.url.endswith(f"-{weights.sha256}.pth")

    def test_the_rows_of_torchvision_are_torchvisions(self) -> None:
        from torchvision.models import MobileNet_V2_Weights, ResNet18_Weights, ResNet50_Weights

        for name, published in (
            ("resnet18", ResNet18_Weights),
            ("resnet50", ResNet50_Weights),
            ("mobilenet_v2", MobileNet_V2_Weights),
        ):
            assert find_weights(f"{name}_imagenet").url == published.IMAGENET1K_V1.url

    def test_the_networks_of_timm_are_timms(self) -> None:
        timm = pytest.importorskip("timm", reason='the extra "timm" is not installed')
        rows = [weights for weights in public_weights() if weights.backbone.startswith("timm:")]
        assert len(rows) >= 6
        for weights in rows:
            name = weights.backbone.removeprefix("timm:")
            tags = {weights.hub.removeprefix(f"timm/{name}.")}
            assert tags & set(timm.list_pretrained(f"{name}.*")) or weights.hub.removeprefix("timm/") in (
                timm.list_pretrained(f"{name}.*")
            )

    def test_an_unknown_name_names_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match='did you mean "osnet_x1_0_msmt17"'):
            find_weights("osnet_x1_0_msmt")


class TestFetch:
    """From an address to a file."""

    def test_two_downloads_at_a_time_do_not_interfere(self, tmp_path: Path) -> None:
        """The second begins and ends in the middle of the first; the file is complete at any time."""
        content = content_of()

        class Slow(Answer):
            def read(self, size: int | None = -1, /) -> bytes:
                if self.tell() == 0:
                    fetch(row(), tmp_path, opener=Site(content))
                    assert (tmp_path / "net.pth").read_bytes() == content
                return super().read(len(content) // 2)

        fetch(row(), tmp_path, opener=lambda *_, **__: Slow(content, len(content), URL))
        assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("net.pth", content)]

    @pytest.mark.parametrize("length", [-1, None])
    def test_a_file_without_a_published_hash_is_reported_as_unverified(
        self, tmp_path: Path, length: int | None
    ) -> None:
        site, heard = Site(content_of(), length=length), []
        fetched = fetch(row(), tmp_path / "new", opener=site, progress=lambda *reported: heard.append(reported))
        assert fetched.path == tmp_path / "new" / "net.pth"
        assert fetched.path.read_bytes() == site.content
        assert torch.equal(read_table(fetched.path)[0]["conv1.weight"], TABLE["conv1.weight"])
        assert heard[-1] == (len(site.content), site.length)
        assert fetched.sha256 == hashlib.sha256(site.content).hexdigest()
        assert fetched.verdict == f"sha256 {fetched.sha256}: could not be verified, the publisher states none"
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["net.pth"]

    @pytest.mark.parametrize("digits", [8, 64])
    def test_a_published_hash_is_checked_and_its_length_is_reported(self, tmp_path: Path, digits: int) -> None:
        site = Site(content_of())
        whole = hashlib.sha256(site.content).hexdigest()
        fetched = fetch(row(whole[:digits]), tmp_path, opener=site)
        assert fetched == Fetched(tmp_path / "net.pth", whole, digits)
        assert ("first 8 digits" in fetched.verdict) == (digits == 8)
        assert "agrees with the publisher's" in fetched.verdict

    @pytest.mark.parametrize("sha256", ["0" * 8, "0" * 64])
    def test_another_hash_is_refused(self, tmp_path: Path, sha256: str) -> None:
        message = refusal(row(sha256), tmp_path, Site(content_of()))
        assert sha256 in message

    def test_what_is_there_is_not_fetched_again_but_checked(self, tmp_path: Path) -> None:
        site = Site(content_of())
        fetch(row(), tmp_path, opener=site)
        assert fetch(row(), tmp_path, opener=site).sha256 == hashlib.sha256(site.content).hexdigest()
        assert site.asked == [URL]
        with pytest.raises(WeightsError, match="0" * 64):
            fetch(row("0" * 64), tmp_path, opener=site)
        assert (tmp_path / "net.pth").is_file()  # a user's file is a user's to delete

    def test_a_file_put_there_by_hand_is_accepted(self, tmp_path: Path) -> None:
        (tmp_path / "net.pth").write_bytes(content_of())
        assert fetch(row(url=""), tmp_path).path == tmp_path / "net.pth"

    def test_code_in_a_pickle_is_refused_and_not_run(self, tmp_path: Path) -> None:
        trap = tmp_path / "trap"
        message = refusal(row(), tmp_path / "w", Site(content_of({"state_dict": TABLE, "x": Touch(trap)})))
        assert "more than tensors" in message
        assert not trap.exists()

    def test_a_page_instead_of_a_file_is_refused(self, tmp_path: Path) -> None:
        assert "net.pth" in refusal(row(), tmp_path, Site(b"<html>please log in</html>"))

    def test_an_incomplete_file_is_refused(self, tmp_path: Path) -> None:
        whole = content_of()
        message = refusal(row(), tmp_path, Site(whole[:100], length=len(whole)))
        assert f"100 of {len(whole)} bytes" in message

    def test_only_protected_addresses_are_accepted(self, tmp_path: Path) -> None:
        message = refusal(row(), tmp_path, Site(content_of(), url="http://models.example/net.pth"))
        assert "unprotected address" in message

    @pytest.mark.parametrize(
        "failure", [URLError("Name or service not known"), TimeoutError("timed out"), ConnectionResetError("reset")]
    )
    def test_offline_one_line_names_where_to_put_the_file(self, tmp_path: Path, failure: Exception) -> None:
        def opener(*args: object, **kwargs: object) -> None:
            raise failure

        message = refusal(row(), tmp_path / "w", opener)
        assert message.startswith("net: ")
        assert "models.example" in message
        assert URL in message
        assert str(tmp_path / "w" / "net.pth") in message

    def test_a_connection_lost_on_the_way_leaves_nothing(self, tmp_path: Path) -> None:
        class Breaking(Answer):
            def read(self, size: int | None = -1) -> bytes:
                raise ConnectionResetError("gone")

        message = refusal(row(), tmp_path, lambda *args, **kwargs: Breaking(b"", 10, URL))
        assert "models.example (gone)" in message

    def test_a_file_that_moved_names_the_page(self, tmp_path: Path) -> None:
        def opener(*args: object, **kwargs: object) -> None:
            raise HTTPError(URL, 404, "Not Found", Message(), None)

        message = refusal(row(), tmp_path, opener)
        assert "404 Not Found" in message
        assert "https://models.example/zoo" in message

    def test_what_only_a_person_can_fetch_is_refused_with_the_page(self, tmp_path: Path) -> None:
        message = refusal(row(url=""), tmp_path, Site(b""))
        assert "https://models.example/zoo" in message
        assert str(tmp_path / "net.pth") in message

    def test_the_file_keeps_its_suffix(self, tmp_path: Path) -> None:
        assert replace(row(), url="https://a.example/x.safetensors?download=1").path_in(tmp_path).name == (
            "net.safetensors"
        )
