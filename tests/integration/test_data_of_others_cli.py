"""The commands on data of others: what they say, with which exit code, and in which encoding."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest

from helpers.published_layouts import write_image
from reid.cli import main


def unlabelled(folder: Path, *cameras: str) -> Path:
    lines = ["path,identity,camera,split"]
    for number, camera in enumerate(cameras):
        write_image(folder / f"{number}.png", colour=40 * number + 10, size=(16, 32))
        lines.append(f"{number}.png,,{camera},gallery")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_an_unlabelled_gallery(reid, plain_weights: Path, tmp_path: Path) -> None:
    """Nothing is wrong with it, and its crops are of no identity."""
    data = unlabelled(tmp_path / "crops", "door", "hall")
    code, out, _ = reid("validate", "--data", data)
    assert code == 0
    assert "identities are unknown" in out
    folder = tmp_path / "gallery"
    code, out, _ = reid("index", "build", "--data", data, "--weights", plain_weights, "--out", folder)
    assert (code, "2 images of unknown identity in 2 cameras" in out) == (0, True)
    image = data / "0.png"
    code, out, err = reid("search", image, "--gallery", folder, "--camera", "dor", "--cross-camera", "-k", 1)
    assert (code, len(out.splitlines())) == (0, 1)
    assert '"dor"' in err
    assert 'did you mean "door"' in err
    _, _, err = reid("search", image, "--gallery", folder, "--cross-camera")
    assert "--camera" in err
    code, out, err = reid("search", image, "--gallery", folder, "--camera", "door", "--cross-camera", "--json")
    assert (code, [answer["camera"] for answer in json.loads(out)]) == (0, ["hall"])
    assert "hint" not in err
    code, out, err = reid("search", image, "--gallery", folder, "--category", "persn")
    assert (code, out) == (1, "")
    assert "--category" in err
    assert 'did you mean "person"' in err


def test_a_terminal_that_lacks_a_letter(plain_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = unlabelled(tmp_path / "crops", "门", "hall")
    with pytest.raises(SystemExit):
        main(["index", "build", "--data", str(data), "--weights", str(plain_weights), "--out", str(tmp_path / "g")])
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    with pytest.raises(SystemExit) as caught:
        main(["search", str(data / "0.png"), "--gallery", str(tmp_path / "g")])
    sys.stdout.flush()
    assert not caught.value.code
    assert b"\\u95e8" in written.getvalue()


def test_init_asks_in_a_terminal_what_folders_mean(reid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        write_image(tmp_path / f"cam{number}" / "1.png")
    code, out, _ = reid("init", tmp_path)
    assert (code, "assumed that each folder is one camera" in out) == (0, True)
    import reid.cli.init as module

    answers = iter([7, 2])
    monkeypatch.setattr(module.sys, "stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(module.typer, "prompt", lambda *args, **kwargs: next(answers))
    code, out, _ = reid("init", tmp_path, "--force")
    assert (code, "{identity}/*" in out) == (0, True)
    assert "one camera" in out


def test_pipes_are_refused_before_they_are_opened(fails, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    assert "pipe.csv" in fails("validate", "--data", tmp_path / "pipe.csv")
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "b.json").write_text("{}")
    assert "pipe.json" in fails("diff", tmp_path / "b.json", tmp_path / "pipe.json")
