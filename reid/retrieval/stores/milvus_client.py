"""The connection to Milvus: a server, a cluster, or a file of Milvus Lite. No other file imports pymilvus."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from reid.errors import ConfigError, GalleryError
from reid.retrieval.gallery_header import HEADER
from reid.retrieval.stores.milvus_filters import HAS_TIME, MORE, TEXT_FIELDS, TIME
from reid.structured_text import parse_json

Result = TypeVar("Result")

DEFAULT_COLLECTION = "reid"
SCHEME, FILE_ENDING = "milvus://", ".db"
LONGEST_TEXT = 65_535  # bytes of a label, the most that Milvus allows
MOST_RESULTS = 16_384  # of one search or query, the most that Milvus allows
FACTS = "reid.facts"  # the property of a collection that says that it is ours, and what it holds
CONSISTENCY = "Strong"  # a search sees everything that was written before it, by any client
PAUSES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before a call is tried again after the connection was lost
TIMEOUT = 30  # seconds for one call
_LOST = (
    "unavailable",
    "connection",
    "connect",
    "deadline",
    "closed channel",
    "not ready",
    "not loaded",
    "socket",
    "timed out",
)


@dataclass(frozen=True)
class MilvusAddress:
    """Where a collection is.

    Args:
        server: The address that pymilvus takes: a URL, or the path of a file of Milvus Lite.
        collection: The name of the collection.
        token: "user:password"; "" where the server asks for none.
    """

    server: str
    collection: str
    token: str = ""


def is_milvus_uri(uri: str) -> bool:
    """Whether a gallery is kept by Milvus: ``milvus://HOST:PORT/COLLECTION``, or a file that ends in ".db".

    Milvus Lite makes a folder of its own of such a file.

    Example:
        >>> is_milvus_uri("milvus://localhost:19530/street"), is_milvus_uri("galleries/street")
        (True, False)
    """
    uri = whole_uri(uri)
    return uri.startswith(SCHEME) or (uri.endswith(FILE_ENDING) and not (Path(uri) / HEADER).exists())


def whole_uri(uri: str) -> str:
    """Return an address as it was written, where a ``Path`` was made of it, which leaves slashes out.

    Example:
        >>> whole_uri(str(Path("milvus://localhost/street"))), whole_uri("galleries/street")
        ('milvus://localhost/street', 'galleries/street')
    """
    if not uri.startswith("milvus:/") or uri.startswith(SCHEME):
        return uri
    rest = uri.removeprefix("milvus:/")
    return SCHEME + ("/" if rest.endswith(FILE_ENDING) else "") + rest


def parse_milvus_uri(uri: str) -> MilvusAddress:
    """Read the address of a collection.

    Args:
        uri: ``milvus://[USER:PASSWORD@]HOST[:PORT]/COLLECTION``, ``milvus:///PATH.db`` or ``PATH.db``.

    Raises:
        ConfigError: It is none of these.

    Example:
        >>> parse_milvus_uri("milvus://localhost/street").server
        'http://localhost:19530'
    """
    uri = whole_uri(uri)
    if not uri.startswith(SCHEME):
        return MilvusAddress(str(Path(uri)), DEFAULT_COLLECTION)
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port or 19530
    except ValueError as error:
        raise ConfigError(f'gallery "{uri}": expected milvus://HOST:PORT/COLLECTION ({error})') from error
    if not host and parts.path.endswith(FILE_ENDING):
        return MilvusAddress(unquote(parts.path), DEFAULT_COLLECTION)
    collection = parts.path.strip("/")
    if not host or not collection.isidentifier() or not collection.isascii():
        raise ConfigError(f'gallery "{uri}": expected milvus://HOST:PORT/COLLECTION, a name of letters, digits and "_"')
    token = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else ""
    return MilvusAddress(f"http://{host}:{port}", collection, token)


class MilvusConnection:
    """A collection of Milvus. Calls are repeated when the connection is lost, so each must be safe to repeat.

    Args:
        address: Where it is.

    Raises:
        ConfigError: pymilvus is not installed.
        GalleryError: The server does not answer.
    """

    def __init__(self, address: MilvusAddress):
        try:
            import pymilvus
        except ImportError as error:
            raise ConfigError('galleries of Milvus need pymilvus; install "reid-multidomain[milvus]"') from error
        for name in ("pymilvus", "grpc._server"):  # errors are raised, and shown once
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.address = address
        self._library: Any = pymilvus
        self._client: Any = None
        self._is_loaded = False
        self._call(lambda client: client.list_collections())

    def describe(self) -> dict[str, Any] | None:
        """Return what :meth:`create` wrote about the collection; None where there is no such collection.

        Raises:
            GalleryError: The collection belongs to another program.
        """
        name = self.address.collection
        if not self._call(lambda client: client.has_collection(name)):
            return None
        properties = self._call(lambda client: client.describe_collection(name)).get("properties") or {}
        try:
            facts = parse_json(properties.get(FACTS, ""))
        except ValueError:
            facts = None
        if not isinstance(facts, dict) or "dimension" not in facts:
            raise GalleryError(f'{self.address.server}: the collection "{name}" is no gallery; choose another name')
        return facts

    def create(self, dimension: int, facts: Mapping[str, object]) -> None:
        """Create the collection; ``facts`` are kept with it, as JSON."""
        kinds, name = self._library.DataType, self.address.collection
        properties = {FACTS: json.dumps({**facts, "dimension": dimension})}
        schema = self._library.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("row_id", kinds.INT64, is_primary=True)
        schema.add_field("vector", kinds.FLOAT_VECTOR, dim=dimension)
        for field in TEXT_FIELDS:
            schema.add_field(field, kinds.VARCHAR, max_length=LONGEST_TEXT)
        schema.add_field(TIME, kinds.INT64)
        schema.add_field(HAS_TIME, kinds.BOOL)
        schema.add_field("has_columns", kinds.BOOL)
        schema.add_field(MORE, kinds.JSON)
        index = self._library.MilvusClient.prepare_index_params()
        index.add_index("vector", index_type="FLAT", metric_type="IP")

        def create(client: Any) -> None:
            if not client.has_collection(name):
                client.create_collection(
                    name, schema=schema, index_params=index, consistency_level=CONSISTENCY, properties=properties
                )

        self._call(create)

    def load(self) -> None:
        """Let the server load the collection, which it needs after a restart."""
        self._call(lambda client: client.load_collection(self.address.collection))
        self._is_loaded = True

    def upsert(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Write rows; a row that is there already is replaced, so a repeated call changes nothing."""
        self._call(lambda client: client.upsert(self.address.collection, list(rows)))

    def delete(self, expression: str) -> None:
        """Delete the rows of an expression."""
        self._call(lambda client: client.delete(self.address.collection, filter=expression))

    def count(self, expression: str = "") -> int:
        """Return the number of rows of an expression; "" stands for all."""
        rows = self._query(expression, ["count(*)"], None)
        return int(rows[0]["count(*)"])

    def query(self, expression: str, output: Sequence[str], limit: int = MOST_RESULTS) -> list[dict[str, Any]]:
        """Return at most ``limit`` rows of an expression."""
        return self._query(expression, output, limit)

    def read(self, expression: str, output: Sequence[str], rows: int) -> Iterator[list[dict[str, Any]]]:
        """Yield all rows of an expression in ascending order of their numbers, at most ``rows`` at a time."""
        last = -1
        while True:
            after = f"row_id > {last}" + (f" and ({expression})" if expression else "")
            found = self._first_rows(after, output, rows)
            if not found:
                return
            last = int(found[-1]["row_id"])
            yield found

    def _first_rows(self, expression: str, output: Sequence[str], rows: int) -> list[dict[str, Any]]:
        """Return the first rows of an expression in ascending order of their numbers."""

        def first(client: Any) -> list[dict[str, Any]]:
            iterator = client.query_iterator(  # a query with a limit returns any rows
                self.address.collection,
                batch_size=rows,
                filter=expression,
                output_fields=list(output),
                consistency_level=CONSISTENCY,
            )
            try:
                return sorted(iterator.next(), key=lambda row: int(row["row_id"]))
            finally:
                iterator.close()

        return self._call(first)

    def search(self, queries: Any, expression: str, limit: int) -> list[list[tuple[int, float, Any]]]:
        """Return for each query the row numbers, scores and vectors of about the ``limit`` best rows, best first."""
        hits = self._call(
            lambda client: client.search(
                self.address.collection,
                data=list(queries),
                filter=expression,
                limit=limit,
                output_fields=["row_id", "vector"],
                consistency_level=CONSISTENCY,
            )
        )
        return [
            [(int(h["entity"]["row_id"]), float(h["distance"]), h["entity"]["vector"]) for h in one] for one in hits
        ]

    def compact(self) -> None:
        """Ask the server to write its files anew without deleted rows; it does so in its own time."""

        def compact(client: Any) -> None:
            client.flush(self.address.collection)
            client.compact(self.address.collection)

        self._call(compact)

    def drop(self) -> None:
        """Delete the collection."""
        self._call(lambda client: client.drop_collection(self.address.collection))

    def close(self) -> None:
        """End the connection."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _query(self, expression: str, output: Sequence[str], limit: int | None) -> list[dict[str, Any]]:
        more = {} if limit is None else {"limit": limit}
        return list(
            self._call(
                lambda client: client.query(
                    self.address.collection,
                    filter=expression,
                    output_fields=list(output),
                    consistency_level=CONSISTENCY,
                    **more,
                )
            )
        )

    def _call(self, work: Callable[[Any], Result]) -> Result:
        """Call a function with the client, and again with a new one after the connection was lost.

        Raises:
            GalleryError: The server refuses, or does not answer within some tries.
        """
        for pause in (*PAUSES, None):
            try:
                if self._client is None:
                    self._client = self._connected()
                return work(self._client)
            except (self._library.MilvusException, ValueError, OSError) as error:
                if pause is None or not _is_lost(error):
                    raise self._describe(error) from error
            self.close()
            time.sleep(pause or 0)
        raise AssertionError

    def _connected(self) -> Any:
        """Return a new client, for which the collection is loaded if it was before."""
        # A connection that clients share is not made anew as long as another client has it.
        own = {"dedicated": True} if "://" in self.address.server else {}
        client = self._library.MilvusClient(self.address.server, token=self.address.token, timeout=TIMEOUT, **own)
        if self._is_loaded:
            client.load_collection(self.address.collection)
        return client

    def _describe(self, error: Exception) -> GalleryError:
        line = " ".join(str(getattr(error, "message", "") or error).split())[:300]
        return GalleryError(f"{self.address.server}: Milvus cannot answer ({line}); check the address and the server")


def _is_lost(error: Exception) -> bool:
    text = str(error).lower()
    return any(word in text for word in _LOST)
