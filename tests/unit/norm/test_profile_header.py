"""Absurd and mistyped headers of profiles end in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from reid.errors import WeightsError
from reid.norm import Profiles


@pytest.mark.parametrize("value", [5, None, "door", [5], {"a": 1}, 1e300, [["a"]], [-1], [10**400]])
@pytest.mark.parametrize("key", ["names", "images", "digest", "weights", "by", "date", "prior"])
def test_a_value_of_another_type_is_one_line(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "new.safetensors"
    Profiles(("door", "yard"), (3, 4), {"bn": torch.zeros(2, 3)}, {"bn": torch.ones(2, 3)}).save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    del metadata["check"]
    header = {**json.loads(metadata["profiles"]), key: value}
    if (key, value) in (("weights", "door"), ("date", "door"), ("prior", "door")):
        return
    for text in (json.dumps(header), "[" * 10**5):
        save_file(tensors, path, {**metadata, "profiles": text})
        with pytest.raises(WeightsError, match=r"new.safetensors.*damaged") as caught:
            Profiles.load(path)
        assert "\n" not in str(caught.value)
