"""Embedding samples, and embeddings in files."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from reid.data.loading import load_batches
from reid.data.transforms import EvaluationTransform
from reid.errors import ConditionError, ConfigError, DataError
from reid.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from reid.models.embedder import Embedder, NetworkSpec
from reid.models.execution import Execution
from reid.norm import camera_batchnorm, convert_norm
from reid.norm.unseen_domains import UNSEEN_DOMAIN_ANSWERS
from reid.records import Embeddings, Modality, Sample, Split
from reid.retrieval.embed import dimension_of, embed, embed_distinct, load_embeddings, save_embeddings
from reid.retrieval.search import embed_image

TRANSFORM = EvaluationTransform(height=32, width=16)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    """A small network whose two cameras have clearly different statistics."""
    torch.manual_seed(0)
    spec = NetworkSpec("osnet_x0_25")
    network = convert_norm(Embedder(spec), camera_batchnorm(["c0", "c1"]))
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if buffer.is_floating_point() and buffer.ndim >= 2 and len(buffer) == 2 and "mean" in name:
                buffer[1] += 0.5
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_checkpoint(path, network, spec, TRANSFORM, ("camera",), ("c0", "c1"), {})
    return load_checkpoint(path)


@pytest.fixture
def samples(tmp_path):
    random = np.random.default_rng(0)
    rows = []
    for i in range(7):
        path = tmp_path / f"{i}.png"
        Image.fromarray(random.integers(0, 256, (40, 20, 3), dtype=np.uint8)).save(path)
        rows.append(Sample(path, f"id{i}", f"c{i % 2}"))
    return tuple(rows)


def test_rows_belong_to_their_samples(checkpoint, samples):
    whole = embed(checkpoint, samples, batch_size=3)
    assert whole.samples == samples
    assert whole.fingerprint == checkpoint.fingerprint
    for i, sample in enumerate(samples):
        single = embed(checkpoint, [sample])
        np.testing.assert_allclose(whole.vectors[i], single.vectors[0], atol=1e-5)
    back = embed(checkpoint, samples[::-1], workers=2)
    np.testing.assert_allclose(back.vectors[::-1], whole.vectors, atol=1e-5)


def test_the_camera_of_a_sample_decides_its_normalization(checkpoint, samples):
    one = samples[0]
    other = Sample(one.path, one.identity, "c1")
    vectors = embed(checkpoint, [one, other]).vectors
    assert vectors[0] @ vectors[1] < 0.999
    with pytest.raises(ConditionError, match="c9"):
        embed(checkpoint, [one, Sample(one.path, one.identity, "c9")])


def test_progress_counts_images(checkpoint, samples):
    steps = []
    embed(checkpoint, samples, batch_size=3, progress=steps.append)
    assert steps == [3, 3, 1]


def test_embedding_no_samples_is_an_error(checkpoint):
    with pytest.raises(DataError, match="no samples"):
        embed(checkpoint, [])


def test_a_corrupt_image_stops_the_run(checkpoint, samples):
    samples[4].path.write_bytes(samples[4].path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"4\.png"):
        embed(checkpoint, samples)


@pytest.fixture
def saved(tmp_path):
    vectors = np.eye(4, 6, dtype=np.float32)
    rows = (
        Sample(
            Path("crops/ä b.jpg"), "a", "c1", Modality.INFRARED, "vehicle", Split.QUERY, datetime(2024, 2, 29, 1, 2, 3)
        ),
        Sample(Path("/abs/2.jpg"), "", ""),
        Sample(Path("3.jpg"), "b,\n", 'say "x"'),
        Sample(Path("3.jpg"), "b", "c", split=Split.TRAIN),
    )
    before = os.umask(0)
    save_embeddings(Embeddings(rows, vectors, "f00d"), tmp_path / "deep" / "e.safetensors")
    os.umask(before)
    return Embeddings(rows, vectors, "f00d"), tmp_path / "deep" / "e.safetensors"


def test_embeddings_read_back(saved):
    expected, path = saved
    loaded = load_embeddings(path)
    assert loaded.samples == expected.samples
    assert loaded.fingerprint == "f00d"
    np.testing.assert_array_equal(loaded.vectors, expected.vectors)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_an_empty_table_reads_back(tmp_path):
    empty = Embeddings((), np.zeros((0, 3), np.float32), "f")
    save_embeddings(empty, tmp_path / "e")
    assert load_embeddings(tmp_path / "e").vectors.shape == (0, 3)


def test_a_file_that_cannot_be_written_is_an_error(saved):
    expected, path = saved
    with pytest.raises(DataError) as caught:
        save_embeddings(expected, path / "e")
    assert str(path / "e") in str(caught.value)


def other_format(path):
    save_file({"x": np.zeros(1)}, path, {"format": "reid-weights-1"})


def without_samples(path):
    save_file({"vectors": np.eye(2, dtype=np.float32)}, path, {"format": "reid-embeddings-1", "fingerprint": "f"})


def damaged_samples(path):
    tensors = {"vectors": np.eye(2, dtype=np.float32), "samples": np.arange(9, dtype=np.uint8)}
    save_file(tensors, path, {"format": "reid-embeddings-1", "fingerprint": "f"})


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: os.truncate(path, path.stat().st_size - 1), "damaged"),
        (lambda path: path.write_bytes(b"\x89PNG and more than eight bytes"), "damaged"),
        (other_format, "reid-weights-1"),
        (without_samples, "damaged"),
        (damaged_samples, "samples"),
    ],
)
def test_a_bad_file_is_one_clear_line(saved, damage, word):
    _, path = saved
    damage(path)
    with pytest.raises(DataError, match=word) as caught:
        load_embeddings(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("policy", ["nearest", "mixture"])
def test_an_unknown_camera_by_policy(checkpoint, samples, tmp_path, policy):
    """Known cameras are embedded as before, unknown ones as the policy defines; files and fingerprints keep it."""
    ready = checkpoint.with_unseen_camera_policy(policy)
    with pytest.raises(ConditionError, match="new"):
        embed(checkpoint, [replace(samples[0], camera="new")])
    mixed = [replace(sample, camera="new" if i % 3 == 0 else sample.camera) for i, sample in enumerate(samples)]
    found, known = embed(ready, mixed, batch_size=3), embed(checkpoint, samples)
    rows = [i for i in range(len(mixed)) if i % 3]
    np.testing.assert_allclose(found.vectors[rows], known.vectors[rows], atol=1e-5)
    images = next(load_batches(mixed[:1], checkpoint.transform)).images
    with torch.no_grad():
        expected = UNSEEN_DOMAIN_ANSWERS[policy](checkpoint.network, images)
    np.testing.assert_allclose(found.vectors[:1], expected.numpy(), atol=1e-5)
    one = embed_image(ready, mixed[0].path, camera="new")
    np.testing.assert_allclose(one, expected.numpy(), atol=1e-5)
    assert (
        len({checkpoint.fingerprint, found.fingerprint, checkpoint.with_unseen_camera_policy("prior").fingerprint}) == 3
    )
    ready.save(tmp_path / "kept.safetensors")
    again = load_checkpoint(tmp_path / "kept.safetensors")
    assert (again.fingerprint, again.unseen_camera_policy, again.weights) == (
        ready.fingerprint,
        policy,
        checkpoint.weights,
    )
    assert again.with_domains(["c2"]).unseen_camera_policy == again.with_flip().unseen_camera_policy == policy
    assert load_checkpoint(tmp_path / "kept.safetensors", size=(64, 32)).unseen_camera_policy == policy
    assert checkpoint.with_unseen_camera_policy("error").fingerprint == checkpoint.fingerprint
    with pytest.raises(ConfigError, match="guess"):
        checkpoint.with_unseen_camera_policy("guess")


def test_samples_that_are_embedded_camera_by_camera_keep_their_order(checkpoint, samples):
    folded = checkpoint.with_execution(Execution(runtime="folded"))
    done = []
    found = embed(folded, samples, batch_size=3, workers=2, progress=done.append)
    assert found.samples == samples
    assert sum(done) == len(samples)
    one_by_one = np.concatenate([embed(folded, [sample]).vectors for sample in samples])
    np.testing.assert_allclose(found.vectors, one_by_one, atol=2e-5)


@pytest.mark.parametrize("runtime", ["eager", "folded"])
def test_images_that_cannot_be_read_are_left_out_and_told(checkpoint, samples, runtime):
    samples[1].path.unlink()
    samples[4].path.write_bytes(b"no image")
    told = {}
    moved = checkpoint.with_execution(Execution(runtime=runtime))
    found = embed(moved, samples, batch_size=2, on_unreadable=lambda sample, error: told.update({sample: str(error)}))
    assert set(told) == {samples[1], samples[4]}
    assert "no such image" in told[samples[1]]
    assert found.samples == tuple(sample for sample in samples if sample not in told)
    np.testing.assert_allclose(found.vectors, embed(moved, found.samples).vectors, atol=2e-5)
    with pytest.raises(DataError, match=r"no such image|not an image"):  # whichever is due first
        embed(moved, samples)


def test_nothing_that_can_be_read(checkpoint, samples):
    for sample in samples:
        sample.path.unlink()
    with pytest.raises(DataError, match="embedded 0 of 7"):
        embed(checkpoint, samples, on_unreadable=lambda *_: None)


def test_an_image_that_is_listed_twice_is_embedded_once(checkpoint, samples):
    again = replace(samples[2], split=Split.QUERY)
    done = []
    found = embed_distinct(checkpoint, (*samples, again), progress=done.append)
    assert sum(done) == len(samples)
    assert found.samples == (*samples, again)
    np.testing.assert_array_equal(found.vectors[2], found.vectors[7])
    samples[2].path.unlink()
    found = embed_distinct(checkpoint, (*samples, again), on_unreadable=lambda *_: None)
    assert found.samples == (*samples[:2], *samples[3:])
    np.testing.assert_array_equal(found.vectors, embed(checkpoint, found.samples).vectors)


def test_the_length_of_a_vector(checkpoint):
    assert dimension_of(checkpoint) == 128
