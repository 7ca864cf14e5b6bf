"""Every command that writes is killed at its steps on the disk: old or new files remain, and the next run cleans up.

The steps are those of ``helpers.kill_server``: each change of a folder, each wait for the disk, and the writers of
libraries when half of a file is written. The suite takes some steps of each command; ``REID_EVERY_STEP=1`` takes all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.kill_server import KILLED
from helpers.walking_people import TWO, write_video
from reid.data.manifest import read_manifest
from reid.evaluation.reports.report_json import read_results
from reid.models.checkpoint import load_checkpoint
from reid.norm import Profiles
from reid.retrieval.embed import load_embeddings
from reid.retrieval.gallery import Gallery
from reid.retrieval.persons.person_files import read_decisions
from reid.retrieval.persons.person_state import read_persons
from reid.retrieval.query_file import load_queries, save_queries
from reid.retrieval.storage import QUERIES_FILE
from reid.retrieval.tombstones import read_tombstones
from reid.training.run_folder import RunFolder

EVERY_STEP = bool(os.environ.get("REID_EVERY_STEP"))
TESTS = Path(__file__).parents[1]
USERS_FILES = ("notes.part", "data-export.csv")

Ask = Callable[..., dict[str, Any]]
State = Callable[[Path], object]


@contextmanager
def asking() -> Iterator[Ask]:
    """Run commands in forks, killed at a step, after some seconds, or not at all."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, TESTS / "helpers" / "kill_server.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        stdin, stdout = server.stdin, server.stdout

        def request(arguments: list[str], folder: Path, step: int | None, after: float | None = None) -> dict[str, Any]:
            asked = {"arguments": arguments, "folder": str(folder), "step": step, "after": after}
            stdin.write(json.dumps(asked) + "\n")
            stdin.flush()
            answer: dict[str, Any] = json.loads(stdout.readline())
            return answer

        yield request
        stdin.close()


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    with asking() as request:
        yield request


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, plain_weights: Path) -> Path:
    return make_template(tmp_path_factory.mktemp("template"), plain_weights)


def make_template(folder: Path, plain_weights: Path) -> Path:
    """Fill a folder with crops of three people, two manifests, an experiment, a video and weights."""
    random = np.random.default_rng(0)
    rows = []
    for identity in ("anna", "ben", "carl"):
        for number, (camera, split) in enumerate((c, s) for c in "xy" for s in ("train", "query", "gallery")):
            path = folder / "crops" / camera / identity / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 255, (32, 16, 3), dtype=np.uint8)).save(path)
            rows.append(f"{path.relative_to(folder)},{identity},{camera},{split}")
    head = "path,identity,camera,split\n"
    (folder / "all.csv").write_text(head + "\n".join(rows) + "\n")
    (folder / "some.csv").write_text(head + "\n".join(row for row in rows if ",carl," not in row) + "\n")
    (folder / "run.toml").write_text(
        '[data]\nmanifests = ["all.csv"]\nsize = [32, 16]\n[norm]\naxis = "camera"\n'
        "[train]\nepochs = 2\nidentities_per_batch = 3\nvisits = 1\nthreads = 1\n"
    )
    write_video(folder / "walk.avi", TWO, frames=24)
    shutil.copyfile(plain_weights, folder / "w.safetensors")
    for name in USERS_FILES:
        (folder / name).write_text("years of work")
    return folder


WEIGHTS = ("--weights", "w.safetensors")


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


def file_state(read: Callable[[Path], object], name: str) -> State:
    return lambda folder: read(folder / name) if (folder / name).exists() else "none"


def embeddings_state(path: Path) -> object:
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


def crops_state(folder: Path) -> object:
    """The names in the manifest of an ingest; all its crops are whole."""
    manifest = folder / "video" / "manifest.csv"
    for path in (folder / "video").glob("*.jpg"):
        Image.open(path).load()
    return [sample.path.name for sample in read_manifest(manifest)] if manifest.exists() else "none"


def add_queries(folder: Path) -> None:
    """What the application keeps in the folder of a gallery."""
    gallery = Gallery.open(folder / "G").embeddings
    save_queries(folder / "G", gallery)
    for name in USERS_FILES:
        (folder / "G" / name).write_text("years of work")


@dataclass(frozen=True)
class Case:
    """A command, what runs before it, and how to read its result."""

    arguments: tuple[str, ...]
    state: State
    before: tuple[tuple[str, ...], ...] = ()
    prepare: Callable[[Path], object] = field(default=lambda folder: None)
    steps: int = 3  # in the suite


BUILD = ("index", "build", *WEIGHTS, "--out", "G", "--data")
EMPTY = ("index", "create", "G", *WEIGHTS)
SOME = ("index", "add", "G", "--data", "some.csv")
OTHER = (("index", "build", *WEIGHTS, "--out", "H", "--data", "all.csv"), EMPTY, SOME)
CASES = {
    "create": Case(EMPTY, gallery_state, steps=4),
    "add": Case(
        ("index", "add", "G", "--data", "all.csv", "--thumbnails"), gallery_state, (EMPTY, SOME), add_queries, steps=8
    ),
    "tune": Case(("index", "tune", "G", "--index-kind", "fp16"), gallery_state, ((*BUILD, "all.csv"),), steps=4),
    "remove": Case(
        ("index", "remove", "G", "--camera", "x"), gallery_state, ((*BUILD, "all.csv"),), add_queries, steps=8
    ),
    "retain": Case(("index", "retain", "G", "--days", "30"), gallery_state, (EMPTY, SOME), steps=4),
    "compact": Case(
        ("index", "compact", "G"), gallery_state, (EMPTY, SOME, ("index", "remove", "G", "--camera", "x")), steps=6
    ),
    "merge": Case(("index", "merge", "G", "H"), gallery_state, OTHER, steps=4),
    "refresh": Case(
        ("index", "refresh", "G", *WEIGHTS, "--flip"), gallery_state, ((*BUILD, "all.csv"),), add_queries, steps=6
    ),
    "import": Case(
        ("index", "import", "G", "--embeddings", "v.npy", "--data", "some.csv"),
        gallery_state,
        prepare=lambda folder: np.save(folder / "v.npy", np.eye(12, 16, dtype=np.float32)),
        steps=4,
    ),
    "first build": Case((*BUILD, "all.csv"), gallery_state, steps=6),
    "build again": Case((*BUILD, "some.csv"), gallery_state, ((*BUILD, "all.csv"),), add_queries, steps=5),
    "erase": Case(("index", "erase", "G", "anna"), gallery_state, ((*BUILD, "all.csv"),), add_queries, steps=12),
    "restore": Case(
        ("index", "restore", "G", "anna"),
        lambda folder: (gallery_state(folder), read_tombstones(folder / "G").holds("anna")),
        ((*BUILD, "all.csv"), ("index", "erase", "G", "anna")),
        add_queries,
        steps=6,
    ),
    "identify": Case(("identify", "--gallery", "G"), persons_state, ((*BUILD, "all.csv"),), add_queries, steps=4),
    "decide": Case(
        ("identify", "same", "crops/x/anna/2.png", "crops/y/ben/5.png", "--gallery", "G"),
        persons_state,
        ((*BUILD, "all.csv"), ("identify", "--gallery", "G")),
        add_queries,
        steps=6,
    ),
    "undo": Case(
        ("identify", "undo", "1", "--gallery", "G"),
        persons_state,
        (
            (*BUILD, "all.csv"),
            ("identify", "same", "crops/x/anna/2.png", "crops/y/ben/5.png", "--gallery", "G"),
        ),
        steps=6,
    ),
    "erase a decided one": Case(
        ("index", "erase", "G", "anna"),
        lambda folder: (persons_state(folder), read_decisions(folder / "G").decisions[0].person),
        (
            (*BUILD, "all.csv"),
            ("identify", "same", "crops/x/anna/2.png", "crops/y/ben/5.png", "--gallery", "G"),
        ),
        add_queries,
        steps=8,
    ),
    "embed": Case(
        ("embed", *WEIGHTS, "--data", "all.csv", "--out", "e.safetensors"),
        file_state(embeddings_state, "e.safetensors"),
    ),
    "calibrate": Case(
        ("calibrate", *WEIGHTS, "--data", "all.csv", "--by", "camera", "--out", "p.safetensors"),
        file_state(lambda path: Profiles.load(path).domains, "p.safetensors"),
    ),
    "train": Case(("train", "run.toml", "--out", "run"), run_state),
    "init": Case(
        ("init", "crops", "--pattern", "{camera}/{identity}/*.png", "--force"),
        file_state(lambda path: [s.identity for s in read_manifest(path)], "crops/manifest.csv"),
    ),
    "evaluate": Case(
        ("evaluate", *WEIGHTS, "--data", "all.csv", "--json", "scores.json", "--html", "page.html"), report_state
    ),
    "ingest": Case(
        ("ingest", "walk.avi", "--camera", "x", "--out", "video", "--detector", "hog", "--every", "4"), crops_state
    ),
}
if EVERY_STEP:  # tracing a network takes seconds each time
    CASES["export"] = Case(
        ("export", *WEIGHTS, "--out", "m.onnx"),
        file_state(lambda path: load_checkpoint(path).fingerprint if path.exists() else "none", "m.onnx"),
        (("export", *WEIGHTS, "--out", "m.onnx"),),
    )


def names(folder: Path) -> list[str]:
    """All files and folders; the random part of the names of a gallery's files is left out."""
    return sorted(
        re.sub("data-[0-9a-f]{16}", "data-*", str(path.relative_to(folder)))
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    )


def chosen(steps: list[str], count: int) -> list[int]:
    """All steps, or about ``count`` of them: before and after the last file is replaced, and others spread evenly."""
    if EVERY_STEP or len(steps) <= count:
        return list(range(len(steps)))
    last = max(number for number, step in enumerate(steps) if step == "replace")
    spread = np.linspace(0, len(steps) - 1, max(count - 2, 1)).astype(int).tolist()
    return sorted({last, last + 1, *spread})


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_killed_command_leaves_old_or_new_files_and_the_next_run_cleans_up(
    case: Case, ask: Ask, template: Path, tmp_path: Path
) -> None:
    trial = Trial(case, ask, template, tmp_path)
    for step in chosen(trial.steps, case.steps):
        trial.kill(step)


class Trial:
    """A command that is killed again and again, each time in a copy of the same folder.

    Args:
        case: The command.
        ask: Runs it.
        template: The folder that the case begins with.
        place: An empty folder for copies.
    """

    def __init__(self, case: Case, ask: Ask, template: Path, place: Path):
        self.case, self.ask, self.place = case, ask, place
        self.start = Path(shutil.copytree(template, place / "start"))
        for arguments in case.before:
            assert ask(list(arguments), self.start, None)["code"] == 0
        case.prepare(self.start)
        self.whole = Path(shutil.copytree(self.start, place / "whole"))
        full = ask(list(case.arguments), self.whole, None)
        assert full["code"] == 0, full["err"]
        self.steps: list[str] = full["steps"]
        self.seconds: float = full["seconds"]
        self.old, self.new = case.state(self.start), case.state(self.whole)
        assert self.old != self.new or case.before

    def kill(self, step: int | None, after: float | None = None) -> bool:
        """Kill the command at a step or after some seconds; return whether it had not ended before."""
        what = f"killed at step {step}, {self.steps[step]}" if step is not None else f"killed after {after} s"
        folder = Path(shutil.copytree(self.start, self.place / "killed"))
        killed = self.ask(list(self.case.arguments), folder, step, after)
        assert killed["code"] == KILLED or (after is not None and killed["code"] in (0, -SIGKILL)), (what, killed)
        assert self.case.state(folder) in (self.old, self.new), what
        again = self.ask(list(self.case.arguments), folder, None)
        # An erasure that was killed at its very end leaves nothing to do, which is told with exit code 1.
        done = ("erased before", "not erased here", "no row fulfils", "holds a gallery already", "no decision")
        finished = self.case.state(folder) == self.new and any(words in again["err"] for words in done)
        assert again["code"] == 0 or finished, (what, again["err"])
        assert "Traceback" not in again["err"]
        assert self.case.state(folder) == self.new, what
        assert names(folder) == names(self.whole), what
        for name in USERS_FILES:
            assert (folder / name).read_text() == "years of work"
        shutil.rmtree(folder)
        return bool(killed["code"] != 0)
