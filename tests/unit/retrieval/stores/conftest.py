"""A running Milvus server, where REID_MILVUS_PYTHON names a Python that has the package milvus."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers import milvus_server as helper


@pytest.fixture(scope="session")
def milvus_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[helper.MilvusServer]:
    if not helper.PYTHON:
        pytest.skip("REID_MILVUS_PYTHON names no Python with the package milvus; run: make milvus-test")
    server = helper.MilvusServer(tmp_path_factory.mktemp("milvus"))
    server.start()
    server.wait()
    yield server
    server.kill()
