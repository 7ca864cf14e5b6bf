"""The cases of the kill harness for the commands that write crops."""

from __future__ import annotations

from helpers.kill_states import Case, file_state, steps_state
from reid.data.manifest import read_manifest

WEIGHTS = ("--weights", "w.safetensors")
FILLING = ("--weights", "filling/weights.safetensors")
GENERATION_CASES = {
    "restyle": Case(
        ("restyle", "--data", "all.csv", "--from", "x", "--to", "y", "--out", "restyled"),
        file_state(lambda path: [(s.path.name, s.generated) for s in read_manifest(path)], "restyled/manifest.csv"),
    ),
    "restyle with a network": Case(
        (
            "restyle",
            "--data",
            "all.csv",
            "--to",
            "y",
            "--out",
            "restyled",
            "--method",
            "adain",
            "--epochs",
            "1",
            *WEIGHTS,
        ),
        file_state(lambda path: [(s.path.name, s.generated) for s in read_manifest(path)], "restyled/manifest.csv"),
    ),
    "train completion": Case(
        ("complete", "--train", "--data", "all.csv", "--out", "filling", "--steps", "4", "--batch", "2"),
        lambda folder: steps_state(folder / "filling", "completion"),
    ),
    "complete": Case(
        ("complete", "--data", "all.csv", "--out", "filled", "--guess", "--json", *FILLING),
        file_state(lambda path: [(s.path.name, s.generated) for s in read_manifest(path)], "filled/manifest.csv"),
        (("complete", "--train", "--data", "all.csv", "--out", "filling", "--steps", "1", "--batch", "2"),),
    ),
    "generate": Case(
        ("generate", "--weights", "drawing/weights.safetensors", "--out", "drawn-crops", "--count", "2"),
        file_state(lambda path: [s.path.name for s in read_manifest(path)], "drawn-crops/manifest.csv"),
        (("generate", "--train", "--data", "all.csv", "--out", "drawing", "--steps", "1", "--batch", "2"),),
    ),
}
