"""The commands that the kill harness runs, and those that write nothing.

Together they hold every command of the program: a test compares them with its tree of commands.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from helpers.drawn_sites import draw_site
from helpers.kill_generation import GENERATION_CASES
from helpers.kill_states import (
    Case,
    adapted_state,
    crops_state,
    drawn_state,
    embeddings_state,
    file_state,
    gallery_state,
    index_state,
    parquet_state,
    persons_and_names,
    persons_state,
    report_and_profiles_state,
    report_state,
    run_state,
    served_state,
    started_state,
    sweep_state,
)
from helpers.walking_people import TWO, write_video
from reid.app.accounts import add_user, list_users
from reid.data.manifest import read_manifest, write_manifest
from reid.models.checkpoint import load_checkpoint
from reid.norm import Profiles
from reid.retrieval.gallery import Gallery
from reid.retrieval.persons.person_files import read_decisions, read_exported_decisions
from reid.retrieval.query_file import save_queries
from reid.retrieval.tombstones import read_tombstones

USERS_FILES = ("notes.part", "data-export.csv")
WEIGHTS = ("--weights", "w.safetensors")
SWEEP = """title = "Two"
seeds = 1
[experiment]
data = {manifests = ["all.csv"], size = [32, 16]}
network = {backbone = "osnet_x0_25"}
train = {epochs = 1, identities_per_batch = 3, visits = 1, threads = 1}
[[evaluation]]
name = "seen"
manifest = "all.csv"
[[variation]]
name = "plain"
norm = {}
"""


def make_template(folder: Path, weights: Path) -> None:
    """Write crops of three people, manifests, an experiment, a video, weights, and files of the user."""
    random, rows = np.random.default_rng(0), []
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
    (folder / "sweep.toml").write_text(SWEEP)
    write_manifest(draw_site(folder / "site", people=8), folder / "site" / "manifest.csv")
    write_video(folder / "walk.avi", TWO, frames=24)
    shutil.copyfile(weights, folder / "w.safetensors")
    torch.save({"conv.weight": torch.ones(2, 3)}, folder / "remote.pth")
    for name in USERS_FILES:
        (folder / name).write_text("years of work")


def add_queries(folder: Path) -> None:
    """What the application keeps in the folder of a gallery."""
    gallery = Gallery.open(folder / "G").embeddings
    save_queries(folder / "G", gallery)
    for name in USERS_FILES:
        (folder / "G" / name).write_text("years of work")


def add_users(folder: Path) -> None:
    """A file with two users."""
    for name in ("anna", "ben"):
        add_user(folder / "users.toml", name, "viewer", "a long password")


def make_sites(folder: Path) -> None:
    """A folder with one site, as the application reads it."""
    rows = read_manifest(folder / "all.csv")
    (folder / "sites" / "one").mkdir(parents=True)
    write_manifest(rows, folder / "sites" / "one" / "manifest.csv")


BUILD = ("index", "build", *WEIGHTS, "--out", "G", "--data")
EMPTY = ("index", "create", "G", *WEIGHTS)
ALL = (*BUILD, "all.csv")
IN_G = ("--gallery", "G")
GROUP = ("identify", *IN_G)
ANNA = "crops/x/anna/2.png"
SAME = ("identify", "same", ANNA, "crops/y/ben/5.png", *IN_G)
SOME = ("index", "add", "G", "--data", "some.csv")
OTHER = (("index", "build", *WEIGHTS, "--out", "H", "--data", "all.csv"), EMPTY, SOME)
CASES = {
    "create": Case(EMPTY, gallery_state, steps=4),
    "add": Case(
        ("index", "add", "G", "--data", "all.csv", "--thumbnails"), gallery_state, (EMPTY, SOME), add_queries, steps=8
    ),
    "remove": Case(("index", "remove", "G", "--camera", "x"), gallery_state, (ALL,), add_queries, steps=8),
    "retain": Case(("index", "retain", "G", "--days", "30"), gallery_state, (EMPTY, SOME), steps=4),
    "compact": Case(
        ("index", "compact", "G"), gallery_state, (EMPTY, SOME, ("index", "remove", "G", "--camera", "x")), steps=6
    ),
    "merge": Case(("index", "merge", "G", "H"), gallery_state, OTHER, steps=4),
    "refresh": Case(("index", "refresh", "G", *WEIGHTS, "--flip"), gallery_state, (ALL,), add_queries, steps=6),
    "import": Case(
        ("index", "import", "G", "--embeddings", "v.npy", "--data", "some.csv"),
        gallery_state,
        prepare=lambda folder: np.save(folder / "v.npy", np.eye(12, 16, dtype=np.float32)),
        steps=4,
    ),
    "first build": Case(ALL, gallery_state, steps=6),
    "build again": Case((*BUILD, "some.csv"), gallery_state, (ALL,), add_queries, steps=5),
    "erase": Case(("index", "erase", "G", "anna"), gallery_state, (ALL,), add_queries, steps=12),
    "restore": Case(
        ("index", "restore", "G", "anna"),
        lambda folder: (gallery_state(folder), read_tombstones(folder / "G").holds("anna")),
        (ALL, ("index", "erase", "G", "anna")),
        add_queries,
        steps=6,
    ),
    "identify": Case(("identify", "--gallery", "G"), persons_state, (ALL,), add_queries, steps=4),
    "decide": Case(
        SAME,
        persons_state,
        (ALL, GROUP),
        add_queries,
        steps=6,
    ),
    "undo": Case(
        ("identify", "undo", "1", "--gallery", "G"),
        persons_state,
        (
            ALL,
            SAME,
        ),
        steps=6,
    ),
    "erase a decided one": Case(
        ("index", "erase", "G", "anna"),
        lambda folder: (persons_state(folder), read_decisions(folder / "G").decisions[0].person),
        (
            ALL,
            SAME,
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
CASES |= {
    "tune": Case(
        ("index", "tune", "G", "--index-kind", "hnsw"), index_state, ((*BUILD, "all.csv"),), add_queries, steps=4
    ),
    "export rows": Case(
        ("index", "export", "G", "--out", "rows.parquet"), file_state(parquet_state, "rows.parquet"), (ALL,)
    ),
    "different": Case(("identify", "different", ANNA, "crops/x/carl/2.png", *IN_G), persons_and_names, (ALL, GROUP)),
    "confirm": Case(("identify", "confirm", "person-1", *IN_G), persons_and_names, (ALL, GROUP, SAME)),
    "split": Case(("identify", "split", ANNA, "--instead", *IN_G), persons_and_names, (ALL, GROUP, SAME)),
    "name": Case(("identify", "name", "person-1", "Anna", *IN_G), persons_and_names, (ALL, GROUP, SAME)),
    "export decisions": Case(
        ("identify", "export", "d.json", *IN_G),
        file_state(lambda path: read_exported_decisions(path).decisions, "d.json"),
        (ALL, GROUP, SAME),
    ),
    "import decisions": Case(
        ("identify", "import", "d.json", *IN_G),
        persons_and_names,
        (ALL, GROUP, SAME, ("identify", "export", "d.json", *IN_G), ("identify", "undo", *IN_G)),
    ),
    "adapt": Case(
        ("adapt", "--data", "site", *WEIGHTS, "--epochs", "1", "--out", "adapted.safetensors",
         "--report", "adapted.html"),
        adapted_state,
    ),
    "slim": Case(
        ("slim", "--data", "site", *WEIGHTS, "--candidates", "1", "--epochs", "1", "--out", "slim.safetensors"),
        file_state(lambda path: load_checkpoint(path).fingerprint, "slim.safetensors"),
    ),
    "report": Case(
        ("cameras", "report", "--data", "all.csv", *WEIGHTS, "--out", "p.safetensors", "--html", "cameras.html"),
        report_and_profiles_state,
    ),
    "merge profiles": Case(
        ("cameras", "merge", "p.safetensors", "q.safetensors", "--out", "r.safetensors"),
        file_state(lambda path: Profiles.load(path).images, "r.safetensors"),
        tuple(
            ("calibrate", *WEIGHTS, "--data", "all.csv", "--by", "camera", "--out", out)
            for out in ("p.safetensors", "q.safetensors")
        ),
    ),
    "center": Case(
        ("cameras", "center", "e.safetensors", "--out", "c.safetensors"),
        file_state(embeddings_state, "c.safetensors"),
        (("embed", *WEIGHTS, "--data", "all.csv", "--out", "e.safetensors"),),
    ),
    "diff": Case(
        ("diff", "a.json", "a.json", "--json", "d.json"),
        file_state(Path.read_text, "d.json"),
        (("evaluate", *WEIGHTS, "--data", "all.csv", "--json", "a.json"),),
    ),
    "synth": Case(
        ("synth", "drawn", "--identities", "1", "--train-identities", "0", "--vehicles", "0", "--train-vehicles", "0",
         "--crops", "2", "--workers", "1"),
        drawn_state, steps=5,
    ),
    "sweep": Case(("sweep", "sweep.toml", "--out", "runs", "--report", "sweep.md"), sweep_state),
    "fetch": Case(
        ("weights", "get", "osnet_x0_25_msmt17"),
        file_state(Path.read_bytes, "weights/osnet_x0_25_msmt17.pth"),
    ),
    "corrupt": Case(
        ("corrupt", "--data", "all.csv", "--out", "bad", "--corruption", "contrast", "--severity", "3"),
        file_state(lambda path: [s.path.name for s in read_manifest(path)], "bad/manifest.csv"),
    ),
    "attack": Case(
        ("attack", "--data", "all.csv", *WEIGHTS, "--out", "bad", "--queries", "3", "--steps", "1"),
        file_state(lambda path: [s.path.name for s in read_manifest(path)], "bad/manifest.csv"),
    ),
    "remove a user": Case(
        ("users", "remove", "users.toml", "anna"),
        file_state(lambda path: [user.name for user in list_users(path)], "users.toml"),
        prepare=add_users,
    ),
    "add a user": Case(
        ("users", "add", "users.toml", "carl"),
        file_state(lambda path: [user.name for user in list_users(path)], "users.toml"),
        prepare=add_users,
        typed="another long password\n",
    ),
    "repair": Case(
        ("cameras", "repair", "--data", "site", *WEIGHTS, "--camera", "door", "--profiles", "p.safetensors",
         "--out", "p.safetensors"),
        file_state(lambda path: Profiles.load(path).images, "p.safetensors"),
        (("calibrate", *WEIGHTS, "--data", "site", "--by", "camera", "--out", "p.safetensors"),),
    ),
    "start": Case(
        ("start", "crops", "--pattern", "{camera}/{identity}/*.png", *WEIGHTS, "--yes", "--no-adapt", "--no-page"),
        started_state,
    ),
    "export": Case(
        ("export", *WEIGHTS, "--out", "m.onnx"),
        file_state(lambda path: load_checkpoint(path).fingerprint if path.exists() else "none", "m.onnx"),
        (("export", *WEIGHTS, "--out", "m.onnx"),),
        steps=4,
        between=("none",),  # no model, rather than a new one beside an old card
    ),
    "serve": Case(
        ("serve", "--port", "0", "--data", "sites", "--galleries", "served", *WEIGHTS, "--plain", "w.safetensors"),
        served_state,
        prepare=make_sites,
        steps=4,
    ),
}  # fmt: skip
CASES |= GENERATION_CASES
WRITE_AS_OTHERS = {("recipe",): "it writes a manifest as init does, and a run as train does"}
WRITE_NOTHING: dict[tuple[str, ...], tuple[str, ...]] = {
    ("validate",): ("--data", "all.csv"),
    ("search",): (ANNA, "--gallery", "G"),
    ("cameras", "watch"): ("--data", "site", "--reference", "site", "--profiles", "s.safetensors", *WEIGHTS),
    ("cameras", "probe"): ("--data", "site", *WEIGHTS),
    ("index", "info"): ("G",),
    ("index", "list"): ("G",),
    ("index", "search"): ("G", ANNA),
    ("index", "verify"): ("G",),
    ("identify", "list"): IN_G,
    ("identify", "history"): IN_G,
    ("identify", "handoff"): IN_G,
    ("identify", "match"): (ANNA, *IN_G),
    ("weights", "list"): (),
    ("users", "list"): ("users.toml",),
}
BEFORE_READERS = (
    ALL,
    GROUP,
    SAME,
    ("calibrate", *WEIGHTS, "--data", "site", "--by", "camera", "--out", "s.safetensors"),
)
