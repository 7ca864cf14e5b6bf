"""Files that version 0.1.0 left at its users are read, and mean the same numbers.

They lie in tests/data/version_0_1_0, made by make.py there; what that version said of them is in expected.json.
"""

from __future__ import annotations

import json
import lzma
import shutil
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from reid.config import load_config
from reid.data.images import read_image
from reid.data.manifest import read_manifest
from reid.evaluation import market_metrics
from reid.models.checkpoint import load_checkpoint
from reid.retrieval.embed import embed

FOLDER = Path(__file__).parents[1] / "data" / "version_0_1_0"
EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
RUN = Path("runs", "domain-bn-0")
CAMERA = ("--data", "manifest.csv", "--weights", "camera.safetensors")
PROFILED = (*CAMERA, "--profiles", "profiles.safetensors")
SCORES = ("rank1", "rank5", "rank10", "mAP", "mINP")
NEAR = 1e-5  # of a number in a vector of unit length: with SSE instead of AVX2 they differ by 3e-6
# Keys of an experiment file, and fields of a sample, as 0.1.0 calls them and as they are called now.
RENAMED = {"norm.kind": "norm.axis", "norm.by": "norm.domain_fields", "data.domains": "data.categories"}
VALUES = {"domain": "category"}

Command = Callable[..., str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder, which is the working directory."""
    copy = Path(shutil.copytree(FOLDER, tmp_path / FOLDER.name))
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def command(reid) -> Command:
    """Run a command that must succeed; what it prints."""

    def run(*arguments: object) -> str:
        code, out, err = reid(*arguments)
        assert code == 0, err
        return str(out)

    return run


def vectors(file: str | Path) -> npt.NDArray[np.float32]:
    """All vectors (N, D) of an embeddings file."""
    table: npt.NDArray[np.float32] = load_file(file)["vectors"]
    return table


def assert_near(found: npt.ArrayLike, name: str) -> None:
    """``found`` (N, D) has the numbers that 0.1.0 got: three rows, the first 12 numbers of each."""
    rows = np.asarray(found)[[0, 20, -1], :12]
    np.testing.assert_allclose(rows, EXPECTED["vectors"][name], rtol=0, atol=NEAR)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file() and file.name[0] != "."}


@pytest.mark.parametrize("name", ["manifest.csv", "manifest.parquet"])
def test_manifests(command: Command, name: str) -> None:
    samples = read_manifest(Path(name))
    assert [list(map(str, astuple(sample)[:8])) for sample in samples] == EXPECTED["rows"]
    assert {read_image(sample.path).size for sample in samples} == {(64, 128), (128, 96)}
    assert command("validate", "--data", name)


@pytest.mark.parametrize("name", EXPECTED["experiments"])
def test_experiments(name: str) -> None:
    table = load_config(Path(name)).model_dump(mode="json")
    found = {f"{section}.{key}": value for section, leaves in table.items() for key, value in leaves.items()}
    for key, value in EXPECTED["experiments"][name].items():
        if key in ("norm.kind", "norm.by"):
            value = [VALUES.get(one, one) for one in value] if isinstance(value, list) else VALUES.get(value, value)
        assert found[RENAMED.get(key, key)] == value, key


@pytest.mark.parametrize("name", EXPECTED["fingerprints"])
def test_weights(reid, name: str) -> None:
    assert load_checkpoint(Path(name), "osnet_x0_25").fingerprint == EXPECTED["fingerprints"][name]
    ask = ("search", EXPECTED["asked"], "--gallery", "gallery", "--weights", name, "--camera", "x", "--domain", "boat")
    assert f"known: {', '.join(EXPECTED['domains'][name])};" in reid(*ask)[2]


def test_embeddings_made_again(command: Command) -> None:
    samples = read_manifest(Path("manifest.parquet"))
    found = embed(load_checkpoint(Path("camera.safetensors")), samples).vectors
    assert_near(found, "embeddings")
    np.testing.assert_allclose(found, vectors("embeddings.safetensors"), rtol=0, atol=NEAR)
    printed = command("embed", *CAMERA, "--out", "embeddings.safetensors")  # in the place of the old file
    assert printed == EXPECTED["printed"]["embed"]
    assert_near(vectors("embeddings.safetensors"), "embeddings")


def test_centered_embeddings(command: Command) -> None:
    old = vectors("centered.safetensors")
    printed = command("cameras", "center", "embeddings.safetensors", "--out", "centered.safetensors")
    assert printed == EXPECTED["printed"]["center"]
    np.testing.assert_allclose(vectors("centered.safetensors"), old, rtol=0, atol=NEAR)
    assert_near(old, "centered")
    assert f"{len(old)} vectors" in command("cameras", "center", "centered.safetensors", "--out", "twice.safetensors")


def test_profiles(command: Command) -> None:
    printed = command("embed", *PROFILED, "--out", "profiled.safetensors")
    assert printed == EXPECTED["printed"]["embed --profiles"]
    assert_near(vectors("profiled.safetensors"), "profiled")
    lines = [line.split("\t") for line in EXPECTED["printed"]["calibrate"].splitlines()]
    twice = "".join(f"{name}\t{2 * int(images.split()[0])} images\n" for name, images in lines)
    assert command("cameras", "merge", *["profiles.safetensors"] * 2, "--out", "profiles.safetensors") == twice


def test_profiles_measured_again(command: Command) -> None:
    only = [word for line in EXPECTED["printed"]["calibrate"].splitlines() for word in ("--only", line.split("\t")[0])]
    old = load_file("profiles.safetensors")
    printed = command(
        "calibrate", *CAMERA, "--split", "gallery", "--prior", 4, "--prior-from", "network", *only,
        "--out", "profiles.safetensors",
    )  # fmt: skip
    assert printed == EXPECTED["printed"]["calibrate"]
    new = load_file("profiles.safetensors")
    assert new.keys() == old.keys()
    for name, table in new.items():
        np.testing.assert_allclose(table, old[name], rtol=1e-4, atol=1e-5, err_msg=name)
    numbers = [table.astype(np.float64) for table in old.values()]
    assert sum(t.sum() for t in numbers) == pytest.approx(EXPECTED["profiles"]["sum"], rel=1e-12)
    assert sum((t**2).sum() for t in numbers) == pytest.approx(EXPECTED["profiles"]["squares"], rel=1e-12)


def assert_answers(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    assert [answer["score"] for answer in found] == pytest.approx([e["score"] for e in expected], abs=NEAR)
    assert [answer | {"score": 0} for answer in found] == [answer | {"score": 0} for answer in expected]


def test_a_gallery_is_searched_and_a_person_erased(command: Command) -> None:
    """Its network has the profiles, and a policy for cameras that it does not know."""
    known = ("search", EXPECTED["asked"], "--gallery", "gallery", "--json", "--camera", "a5", "--modality", "infrared")
    found = json.loads(command(*known, "--k", 5, "--cross-camera"))
    assert_answers(found, EXPECTED["searches"]["known"])
    unseen = ("search", EXPECTED["asked"], "--gallery", "gallery", "--json", "--camera", "never-seen", "--k", 20)
    assert_answers(json.loads(command(*unseen)), EXPECTED["searches"]["unseen"])
    same = command(*unseen, "--weights", "camera.safetensors", *PROFILED[-2:], "--unseen-camera", "mixture")
    assert_answers(json.loads(same), EXPECTED["searches"]["unseen"])

    gone, before = found[0]["identity"], contents(Path("gallery"))
    rows = sum(row[1] == gone and row[5] == "gallery" for row in EXPECTED["rows"])
    assert command("index", "erase", "gallery", gone) == f"gallery\terased {rows} rows of {gone}\n"
    stay = [answer for answer in EXPECTED["searches"]["unseen"] if answer["identity"] != gone]
    assert_answers(json.loads(command(*unseen)), [a | {"rank": rank} for rank, a in enumerate(stay, 1)])
    assert not {name for name in before if name != "header.json"} & contents(Path("gallery")).keys()


def test_a_gallery_is_built_in_the_place_of_the_old_one(command: Command) -> None:
    build = ("index", "build", *PROFILED, "--unseen-camera", "mixture", "--out", "gallery")
    assert command(*build) == EXPECTED["printed"]["index build"]


@pytest.mark.parametrize("name", EXPECTED["evaluations"])
def test_results(command: Command, name: str) -> None:
    """Market rule with re-ranking, the rule of SYSU-MM01, and both in a protocol of one's own with drawn galleries."""
    words = ("evaluate", *EXPECTED["evaluations"][name], "--weights", "camera.safetensors", "--json", "new.json")
    command(*words)
    old, new = (json.loads(Path(file).read_text(encoding="utf-8"))["results"] for file in (name, "new.json"))
    assert len(old) == len(new)
    for before, after in zip(old, new, strict=True):
        for score in (*SCORES, "cmc"):
            assert after[score] == pytest.approx(before[score], abs=1e-9)
        assert after["fingerprint"] == before["fingerprint"]
    command("evaluate", "--compare", name, "new.json", "--json", "change.json")
    pairs = json.loads(Path("change.json").read_text(encoding="utf-8"))["pairs"]
    assert len(pairs) == len(old)
    assert all(pair[score]["change"] == pytest.approx(0, abs=1e-9) for pair in pairs for score in SCORES)
    command(*words[:-1], name)  # in the place of the old file


def test_scores_of_old_embeddings() -> None:
    """By the Market rule, both kinds of light in one gallery: what the vectors of the old file are worth."""
    found, rows = vectors("embeddings.safetensors"), np.array(EXPECTED["rows"])
    query, gallery = (
        np.flatnonzero((rows[:, 4] == "person") & (rows[:, 5] == split)) for split in ("query", "gallery")
    )
    metrics = market_metrics(
        found[query], found[gallery], query_identities=rows[query, 1], gallery_identities=rows[gallery, 1],
        query_cameras=rows[query, 2], gallery_cameras=rows[gallery, 2],
    )  # fmt: skip
    assert [metrics.mAP, metrics.mINP, metrics.rank(1)] == pytest.approx(EXPECTED["mixed"], abs=1e-9)


def test_a_finished_run_is_left_as_it_is(command: Command) -> None:
    before = contents(RUN)
    assert command("train", "domain.toml", "--out", RUN) == f"{RUN / 'weights.safetensors'}\n"
    assert command("train", RUN / "experiment.toml", "--out", RUN) == f"{RUN / 'weights.safetensors'}\n"
    assert contents(RUN) == before


def test_a_run_goes_on_where_it_stopped(command: Command) -> None:
    """After the first of two epochs, in bfloat16, of which processors differ in more than the last bit."""
    metrics, state = RUN / "metrics.jsonl", RUN / "state.pt.xz"
    before = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    command("embed", "--data", "manifest.csv", "--weights", RUN / "weights.safetensors", "--out", "before.safetensors")
    state.with_suffix("").write_bytes(lzma.decompress(state.read_bytes()))
    (RUN / "weights.safetensors").unlink()
    metrics.unlink()
    command("train", "domain.toml", "--out", RUN)
    after = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    assert after[0] == before[0]
    assert after[1]["epoch"] == 2
    assert after[1]["loss"] == pytest.approx(before[1]["loss"], rel=0.02)
    command("embed", "--data", "manifest.csv", "--weights", RUN / "weights.safetensors", "--out", "after.safetensors")
    np.testing.assert_allclose(vectors("after.safetensors"), vectors("before.safetensors"), rtol=0, atol=0.01)


def test_a_comparison_takes_its_finished_run(reid, command: Command) -> None:
    before = contents(RUN)
    shown = command("compare", "comparison.toml", "--out", "runs", "--only", "Domain BN", "--json")
    assert json.loads(shown) == EXPECTED["compared"]
    assert contents(RUN) == before
    code, _, err = reid("compare", "comparison.toml", "--out", "runs", "--only", "nobody")
    assert code == 1
    assert all(name in err for name in ("Domain BN", "Camera BN", "people", "vehicles beside people"))


def test_an_ingest_ends_in_the_same_bytes(command: Command) -> None:
    before, crop = contents(Path("ingest")), next(Path("ingest").glob("*.jpg"))
    assert "4 crops of 2 tracks" in command(*EXPECTED["ingest"], "--out", "ingest")
    assert contents(Path("ingest")) == before
    crop.unlink()  # cut out again, perhaps by another version of the JPEG library
    command(*EXPECTED["ingest"], "--out", "ingest")
    assert contents(Path("ingest")) | {crop.name: b""} == before | {crop.name: b""}


def test_the_card_of_an_exported_network(command: Command) -> None:
    printed = command("embed", "--data", "manifest.csv", "--weights", "tiny.onnx", "--out", "tiny.st")
    assert printed == EXPECTED["printed"]["embed tiny.onnx"]
    assert_near(vectors("tiny.st"), "tiny")
