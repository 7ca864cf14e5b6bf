"""One flipped bit in any file that the program keeps gives one clear line or the same answer, never other numbers.

``REID_FLIPS=1000`` flips so many bits of each file; the suite flips some.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.random_embeddings import embeddings_of, random_rows
from reid.data.transforms import EvaluationTransform
from reid.errors import ReidError
from reid.evaluation import evaluate, write_reports
from reid.evaluation.reports.report_json import read_results
from reid.models.checkpoint import load_checkpoint, save_checkpoint
from reid.models.embedder import Embedder, NetworkSpec
from reid.norm import Profiles, calibrate, camera_batchnorm, convert_norm
from reid.retrieval.embed import load_embeddings, save_embeddings
from reid.retrieval.erasure import erase_identity
from reid.retrieval.gallery import Gallery
from reid.retrieval.query_file import load_queries, save_queries
from reid.training.run_folder import RunFolder

FLIPS = int(os.environ.get("REID_FLIPS", "40"))
Answer = Callable[[Path], object]


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return convert_norm(Embedder(NetworkSpec("resnet18_x0_25")), camera_batchnorm(["x", "y"])).eval()


def gallery_answer(folder: Path) -> object:
    gallery = Gallery.open(folder)
    ranking = gallery.search(random_rows(np.random.default_rng(1), 5, 12), 60, fingerprint="f00d")
    return ranking.rows.tobytes(), ranking.scores.tobytes(), gallery.samples, load_queries(folder).samples


def embeddings_answer(folder: Path) -> object:
    embeddings = load_embeddings(folder / "e.safetensors")
    return embeddings.samples, embeddings.vectors.tobytes(), embeddings.fingerprint


def weights_answer(folder: Path) -> object:
    checkpoint = load_checkpoint(folder / "w.safetensors")
    return (
        dict(checkpoint.extra),
        checkpoint.fingerprint,
        checkpoint.spec,
        checkpoint.transform,
        checkpoint.domains,
        checkpoint.domain_fields,
    )


def profiles_answer(folder: Path) -> object:
    profiles = Profiles.load(folder / "p.safetensors")
    mean = {layer: tensor.numpy().tobytes() for layer, tensor in profiles.mean.items()}
    return profiles.domains, profiles.images, profiles.weights, profiles.domain_fields, mean


def results_answer(folder: Path) -> object:
    try:
        return read_results(folder / "r.json")
    except ValueError as error:  # which reid diff turns into one line
        raise ReidError(str(error)) from error


def state_answer(folder: Path) -> object:
    state = RunFolder(folder).load_state()
    assert state is not None
    return state["weights"].numpy().tobytes(), state["history"], RunFolder(folder).read_metrics()


def write_gallery(folder: Path) -> None:
    rows = embeddings_of(random_rows(np.random.default_rng(8), 70, 12))
    gallery = Gallery.build(rows)
    gallery.save(folder, {"network.safetensors": lambda path: path.write_bytes(b"weights" * 20)})
    save_queries(folder, rows)
    erase_identity(folder, "id3")


def write_embeddings(folder: Path) -> None:
    save_embeddings(embeddings_of(random_rows(np.random.default_rng(8), 70, 12)), folder / "e.safetensors")


def write_weights(folder: Path) -> None:
    spec, transform = NetworkSpec("resnet18_x0_25"), EvaluationTransform(64, 32)
    save_checkpoint(folder / "w.safetensors", network(), spec, transform, ("camera",), ("x", "y"), {"note": "mine"})


def write_profiles(folder: Path) -> None:
    batch = torch.rand(4, 3, 64, 32)
    calibrate(network(), [(batch, torch.tensor([0, 0, 1, 1]))], ["x", "y"]).save(folder / "p.safetensors")


def write_results(folder: Path) -> None:
    write_reports([evaluate(embeddings_of(random_rows(np.random.default_rng(8), 70, 12)))], folder / "r.json")


def write_state(folder: Path) -> None:
    history = [{"epoch": 1.0, "loss": 0.5}, {"epoch": 2.0, "loss": 0.25}]
    RunFolder(folder).save_state({"weights": torch.arange(50.0), "history": history})
    RunFolder(folder).save_metrics(history)


CASES: dict[str, tuple[Callable[[Path], None], Answer]] = {
    "gallery": (write_gallery, gallery_answer),
    "embeddings": (write_embeddings, embeddings_answer),
    "weights": (write_weights, weights_answer),
    "profiles": (write_profiles, profiles_answer),
    "results": (write_results, results_answer),
    "run state": (write_state, state_answer),
}


def positions(content: bytes, draw: random.Random) -> list[int]:
    """Bits to flip: half of them at the beginning, where headers are, the others anywhere."""
    head = min(len(content), 2000)
    return [8 * draw.randrange(head if number % 2 else len(content)) + draw.randrange(8) for number in range(FLIPS)]


def answer_or_line(answer: Answer, folder: Path) -> object:
    """What is answered, or the message of the error; any other error is a traceback that nobody catches."""
    try:
        return answer(folder)
    except ReidError as error:
        return str(error)


@pytest.mark.parametrize("name", CASES)
def test_a_flipped_bit_gives_one_line_or_the_same_answer(name: str, tmp_path: Path) -> None:
    write, answer = CASES[name]
    (tmp_path / "whole").mkdir()
    write(tmp_path / "whole")
    right, draw = answer(tmp_path / "whole"), random.Random(name)
    refused = 0
    for file in sorted(path for path in (tmp_path / "whole").rglob("*") if path.is_file()):
        content = file.read_bytes()
        copy = Path(shutil.copytree(tmp_path / "whole", tmp_path / "copy"))
        for bit in positions(content, draw):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            (copy / file.name).write_bytes(changed)
            before = sorted(path.name for path in copy.iterdir())
            found = answer_or_line(answer, copy)
            if isinstance(found, str):
                refused += 1
                assert found.count("\n") == 0, (file.name, bit)
            else:
                assert found == right, (file.name, bit)
            assert sorted(path.name for path in copy.iterdir()) == before, "a reader removes nothing"
        shutil.rmtree(copy)
    assert refused
