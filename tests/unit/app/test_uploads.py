"""Uploads wait in memory, and are forgotten when they are read or when their time is over."""

from __future__ import annotations

import pytest

from reid.app import uploads
from reid.app.refusals import Refused
from reid.app.uploads import UploadStore, read_boundary, read_only_file


def test_an_upload_is_forgotten_when_its_time_is_over() -> None:
    now = [0.0]
    store = UploadStore(lambda: now[0])
    first = store.add("anna", b"1")
    now[0] = uploads.UPLOAD_SECONDS / 2
    second = store.add("anna", b"2")
    now[0] = uploads.UPLOAD_SECONDS
    store.forget_expired()
    assert (store.take(first), store.take(second)) == (None, b"2")
    assert len(store) == 0


def test_bytes_that_arrive_take_room_until_they_are_refused_or_kept() -> None:
    store = UploadStore()
    with store.reserve_room("anna") as take_room:
        take_room(uploads.VISITOR_BYTES)
        with pytest.raises(Refused) as caught, store.reserve_room("anna") as take_more:
            take_more(1)
        assert caught.value.status == 429
        with store.reserve_room("bo") as take_other:
            take_other(uploads.TOTAL_BYTES - uploads.VISITOR_BYTES)
            with pytest.raises(Refused), store.reserve_room("cleo") as take_third:
                take_third(1)
    with store.reserve_room("cleo") as take_room:
        take_room(uploads.VISITOR_BYTES)


@pytest.mark.parametrize("content", [b"", b"\r\n", b"\r\n--", b"--x", b"\x89PNG\r\n\r\n", bytes(range(256)) * 40])
def test_the_content_of_a_form_is_read_byte_by_byte(content: bytes) -> None:
    head = b'--xyz\r\nContent-Disposition: form-data; name="files"; filename="a;b.png"\r\nContent-Type: x/y\r\n\r\n'
    assert read_only_file(head + content + b"\r\n--xyz--\r\n", b"--xyz") == content


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b"multipart/form-data; boundary=----WebKitFormBoundaryzm", b"----WebKitFormBoundaryzm"),
        (b'Multipart/Form-Data;boundary="a b"', b"a b"),
        (b"multipart/form-data", None),
        (b"multipart/form-data; boundary=", None),
        (b"multipart/form-data; boundary=" + b"a" * 71, None),
        (b"multipart/form-data; boundary=\xff", None),
        (b"application/json", None),
        (b"", None),
    ],
)  # fmt: skip
def test_the_line_between_parts(content_type: bytes, boundary: bytes | None) -> None:
    if boundary is None:
        with pytest.raises(Refused) as caught:
            read_boundary(content_type)
        assert caught.value.status == 415
    else:
        assert read_boundary(content_type) == b"--" + boundary
