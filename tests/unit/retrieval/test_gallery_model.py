"""A gallery in a folder behaves like a plain dictionary of rows, whatever happens to it and in whatever order."""

from __future__ import annotations

import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from helpers.random_embeddings import random_rows
from reid.records import Embeddings, FloatArray, Sample
from reid.retrieval.exact import score_rows
from reid.retrieval.gallery import Gallery
from reid.retrieval.upkeep import verify_gallery

DIMENSION, START = 6, datetime(2024, 5, 1)
NUMBERS = st.integers(0, 30)
FILTERS = ("camera = 'c1'", "identity IN ('p0', 'p3')", "time >= '2024-05-10' AND camera <> 'c0'", "height > 12")


def sample_of(number: int) -> Sample:
    """The one sample of a number, so that the same image always has the same labels."""
    time = START + timedelta(days=number) if number % 5 else None
    return Sample(Path(f"/crops/{number}.jpg"), f"p{number % 4}", f"c{number % 3}", time=time)


def vector_of(number: int) -> FloatArray:
    return random_rows(np.random.default_rng(number % 20), 1, DIMENSION)[0]  # some rows are equal


def selects(where: str, number: int) -> bool:
    """The plain meaning of each filter."""
    sample = sample_of(number)
    return {
        FILTERS[0]: sample.camera == "c1",
        FILTERS[1]: sample.identity in ("p0", "p3"),
        FILTERS[2]: sample.time is not None and sample.time >= datetime(2024, 5, 10) and sample.camera != "c0",
        FILTERS[3]: number > 12,
    }[where]


class GalleryMachine(RuleBasedStateMachine):
    """Random changes of a folder, beside a list of the numbers that it should hold, in the order of its rows."""

    @initialize()
    def create(self) -> None:
        self.place = tempfile.TemporaryDirectory()
        self.folder = Path(self.place.name) / "g"
        self.gallery = Gallery.create(self.folder, "f00d", DIMENSION)
        self.reader = Gallery.open(self.folder)
        self.rows: list[int] = []
        self.barred: set[int] = set()
        self.erased: set[str] = set()
        self.kept_bytes: set[int] = set()  # numbers of removed rows whose bytes are still in the files

    def teardown(self) -> None:
        if hasattr(self, "place"):
            self.place.cleanup()

    @rule(numbers=st.lists(NUMBERS, min_size=1, max_size=8))
    def add(self, numbers: list[int]) -> None:
        vectors = np.stack([vector_of(number) for number in numbers])
        embeddings = Embeddings(tuple(sample_of(number) for number in numbers), vectors, "f00d")
        added = self.gallery.add(embeddings, {"height": [str(number) for number in numbers]})
        kept = [n for n in numbers if n not in self.barred and sample_of(n).identity not in self.erased]
        new = [n for n in dict.fromkeys(kept) if n not in self.rows]
        assert (added.added, added.barred) == (len(new), len(numbers) - len(kept))
        self.rows += new

    @precondition(lambda self: self.rows)
    @rule(where=st.sampled_from(FILTERS), forget=st.booleans())
    def remove(self, where: str, forget: bool) -> None:
        gone = (
            [number for number in self.rows if selects(where, number)]
            if "height" in self.gallery.table.column_names
            else []
        )
        if not gone:
            return
        assert self.gallery.remove(where, forget=forget) == len(gone)
        self.rows = [number for number in self.rows if number not in gone]
        self.barred |= set(gone) if forget else set()
        self.kept_bytes |= set(gone)

    @precondition(lambda self: self.rows)
    @rule(identity=st.sampled_from(["p0", "p2"]))
    def erase(self, identity: str) -> None:
        gone = [number for number in self.rows if sample_of(number).identity == identity]
        assert self.gallery.erase(identity) == len(gone)
        self.rows = [number for number in self.rows if number not in gone]
        reached = {number for number in self.kept_bytes if sample_of(number).identity == identity}
        self.erased |= {identity} if gone or reached else set()
        self.kept_bytes -= reached

    @rule()
    def compact(self) -> None:
        self.gallery.compact()
        self.kept_bytes.clear()

    @rule()
    def reopen(self) -> None:
        self.gallery = Gallery.open(self.folder)

    @rule()
    def reload_the_reader(self) -> None:
        self.reader.reload()
        assert [sample.path for sample in self.reader.samples] == [sample_of(n).path for n in self.rows]

    @precondition(lambda self: self.rows)
    @rule(seed=st.integers(0, 9), where=st.sampled_from((None, *FILTERS[:3])), k=st.integers(1, 12))
    def search(self, seed: int, where: str | None, k: int) -> None:
        query = random_rows(np.random.default_rng(seed), 1, DIMENSION)
        allowed = [position for position, n in enumerate(self.rows) if where is None or selects(where, n)]
        scores = score_rows(query[0], np.stack([vector_of(n) for n in self.rows]))
        expected = sorted(allowed, key=lambda position: (-scores[position], position))[:k]
        found = self.gallery.search(query, k, fingerprint="f00d", where=where)
        assert found.rows[0, : found.counts[0]].tolist() == expected

    @precondition(lambda self: len(self.reader))
    @rule(seed=st.integers(0, 9))
    def search_with_an_old_reader(self, seed: int) -> None:
        """It knows the rows of its time, without those that are gone since."""
        query = random_rows(np.random.default_rng(seed), 1, DIMENSION)
        found = self.reader.search(query, 40, fingerprint="f00d")
        paths = {self.reader.samples[row].path for row, _ in found.answers(0)}
        known = {sample.path for sample in self.reader.samples}
        assert paths <= known & {sample_of(n).path for n in self.rows}

    @invariant()
    def holds_the_rows(self) -> None:
        if hasattr(self, "rows"):
            assert [sample.path for sample in self.gallery.samples] == [sample_of(n).path for n in self.rows]

    @rule()
    def verify(self) -> None:
        verify_gallery(self.folder)


TestGallery = GalleryMachine.TestCase
TestGallery.settings = settings(
    max_examples=12, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
