"""A running Milvus server, where REID_MILVUS_PYTHON names a Python that has the package milvus."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers import milvus_server as helper


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests of a running server out where there is none; "make milvus-test" installs one and runs them."""
    if helper.PYTHON:
        return
    needed = [item for item in items if "milvus-server" in item.name or "milvus_server" in _fixtures_of(item)]
    if needed:
        items[:] = [item for item in items if item not in set(needed)]
        config.hook.pytest_deselected(items=needed)


def _fixtures_of(item: pytest.Item) -> list[str]:
    names: list[str] = getattr(item, "fixturenames", [])
    return names if "make_store" not in names else []


@pytest.fixture(scope="session")
def milvus_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[helper.MilvusServer]:
    server = helper.MilvusServer(tmp_path_factory.mktemp("milvus"))
    server.start()
    server.wait()
    yield server
    server.kill()
