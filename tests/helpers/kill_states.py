"""What commands leave behind: each function reads the files of one kind and returns what they answer.

A command that is killed must leave the answer from before it or the one from after it, so the functions also check that
each file is whole.  "none" stands for files that are not there yet.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet
from PIL import Image

from reid.data.manifest import read_manifest
from reid.evaluation.reports.report_json import read_results
from reid.files import PARTIAL_FOLDER
from reid.generation.written_weights import load_weights
from reid.models.checkpoint import load_checkpoint
from reid.norm import Profiles
from reid.retrieval.embed import load_embeddings
from reid.retrieval.gallery import Gallery
from reid.retrieval.gallery_header import read_header
from reid.retrieval.gallery_index import index_file_of
from reid.retrieval.persons.person_files import has_persons, read_decisions
from reid.retrieval.persons.person_state import read_persons
from reid.retrieval.query_file import load_queries
from reid.retrieval.storage import QUERIES_FILE
from reid.training.run_folder import RunFolder

State = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """A command, what runs before it, and how to read its result.

    Attributes:
        arguments: The command line.
        state: Reads what the command leaves behind.
        before: Commands that run first.
        prepare: Changes the folder after them.
        steps: How many of the steps the suite takes.
        between: What may be there as well after a kill, where two files cannot be replaced at once.
        typed: What the command reads from stdin.
    """

    arguments: tuple[str, ...]
    state: State
    before: tuple[tuple[str, ...], ...] = ()
    prepare: Callable[[Path], object] = field(default=lambda folder: None)
    steps: int = 3
    between: tuple[object, ...] = ()
    typed: str = ""


def gallery_state(folder: Path) -> object:
    """What a gallery and its queries answer; "none" where there is no gallery yet."""
    if not (folder / "G" / "header.json").exists():
        return "none"
    gallery = Gallery.open(folder / "G")
    queries = load_queries(folder / "G").samples if (folder / "G" / QUERIES_FILE).exists() else ()
    images = [gallery.thumbnail(row) for row in range(len(gallery))]
    return gallery.samples, gallery.embeddings.vectors.tobytes(), images, queries


def persons_state(folder: Path) -> object:
    """What a gallery answers, and the person of each of its rows."""
    return gallery_state(folder), read_persons(folder / "G").labels()


def started_state(folder: Path) -> object:
    """What the gallery of ``reid start`` answers, once its persons are there; "none" before."""
    place = folder / "crops-reid" / "gallery"
    if not (place / "header.json").exists() or not has_persons(place):
        return "none"
    gallery = Gallery.open(place)
    return gallery.samples, gallery.embeddings.vectors.tobytes(), read_persons(place).labels()


def file_state(read: Callable[[Path], object], name: str) -> State:
    """What a function reads from a file."""
    return lambda folder: read(folder / name) if (folder / name).exists() else "none"


def embeddings_state(path: Path) -> object:
    """Samples and vectors of an embeddings file."""
    embeddings = load_embeddings(path)
    return embeddings.samples, embeddings.vectors.tobytes()


def report_state(folder: Path) -> object:
    """The scores of the JSON; of the page, that it is whole."""
    page = folder / "page.html"
    assert not page.exists() or page.read_text().rstrip().endswith("</html>")
    json_file = folder / "scores.json"
    return [entry["mAP"] for entry in read_results(json_file)] if json_file.exists() else "none"


def run_state(folder: Path) -> object:
    """Whether there are weights; a checkpoint that exists can be read."""
    run = RunFolder(folder / "run")
    run.load_state()
    return load_checkpoint(run.weights).fingerprint if run.weights.exists() else "none"


def steps_state(run: Path, method: str) -> object:
    """The tensors of a network that writes crops; a checkpoint that exists can be read."""
    RunFolder(run).load_state()
    weights = RunFolder(run).weights
    if not weights.exists():
        return "none"
    tensors, card = load_weights(weights, method)
    return card.rounds, {name: float(tensor.double().sum()) for name, tensor in tensors.items()}


def crops_state(folder: Path) -> object:
    """The names in the manifest of an ingest; all its crops are whole."""
    manifest = folder / "video" / "manifest.csv"
    for path in (folder / "video").glob("*.jpg"):
        Image.open(path).load()
    return [sample.path.name for sample in read_manifest(manifest)] if manifest.exists() else "none"


def adapted_state(folder: Path) -> object:
    """The adapted network; its page is whole."""
    page, weights = folder / "adapted.html", folder / "adapted.safetensors"
    assert not page.exists() or page.read_text().rstrip().endswith("</html>")
    return load_checkpoint(weights).fingerprint if weights.exists() else "none"


def index_state(folder: Path) -> object:
    """What a gallery answers, and the kind of its approximate index."""
    index = index_file_of(folder / "G", read_header(folder / "G"))
    return gallery_state(folder), index and index.index_kind


def report_and_profiles_state(folder: Path) -> object:
    """The cameras of the profiles; of the page, that it is whole."""
    page, profiles = folder / "cameras.html", folder / "p.safetensors"
    assert not page.exists() or page.read_text().rstrip().endswith("</html>")
    return Profiles.load(profiles).domains if profiles.exists() else "none"


def drawn_state(folder: Path) -> object:
    """The rows of the drawn street; all its images are whole."""
    for path in (folder / "drawn").rglob("*.jpg"):
        Image.open(path).load()
    manifests = sorted((folder / "drawn").rglob("manifest.csv"))
    return [len(read_manifest(path)) for path in manifests] if len(manifests) == 2 else "none"


def sweep_state(folder: Path) -> object:
    """The table of a sweep; all its networks can be read."""
    for path in (folder / "runs").rglob("weights.safetensors"):
        load_checkpoint(path)
    page = folder / "sweep.md"
    return re.findall(r"^\|.*", page.read_text(), re.M) if page.exists() else "none"


def served_state(folder: Path) -> object:
    """The galleries of the application; those that are there, and not in a private folder of a build, can be opened."""
    headers = (path for path in sorted((folder / "served").rglob("header.json")) if PARTIAL_FOLDER not in path.parts)
    galleries = [Gallery.open(path.parent) for path in headers]
    found = [
        ([(one.path.name, one.identity) for one in gallery.samples], gallery.embeddings.vectors.tobytes())
        for gallery in galleries
    ]
    return found if len(found) == 2 else "none"


def persons_and_names(folder: Path) -> object:
    """The persons of the rows, and the decisions without their times; a decision that is repeated is one."""
    decisions = {(one.verb, one.person, one.text) for one in read_decisions(folder / "G").decisions}
    return persons_state(folder), decisions


def parquet_state(path: Path) -> object:
    """The rows of a Parquet file, without the folder of their images."""
    return pyarrow.parquet.read_table(path).drop_columns(["path"]).to_pydict()
