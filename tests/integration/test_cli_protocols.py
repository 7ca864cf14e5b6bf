"""Published protocols, validation and comparison from the command line, on small trees in the authors' layouts."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from helpers import published_layouts

STAMP = {
    "protocol", "variant", "rule", "settings", "ties", "gallery_source", "queries", "queries_valid",
    "queries_without_match", "gallery", "pairs_left_out", "fingerprint", "made", "version",
}  # fmt: skip


def results(path: Path) -> list[dict]:
    return json.loads(path.read_text())["results"]


def test_sysu_mm01_has_ten_trials_and_states_it(reid, plain_weights: Path, tmp_path: Path) -> None:
    root = published_layouts.sysu_permutations(published_layouts.sysu_mm01(tmp_path / "sysu"))
    common = ("evaluate", "--root", root, "--weights", plain_weights, "--json")
    code, out, err = reid(*common, tmp_path / "official.json", "--data", "sysu_mm01")
    assert code == 0, err
    assert all(len(line) <= 80 for line in out.splitlines())
    text = " ".join(out.split())
    assert (
        "protocol sysu_mm01, search all, rule market ignore=location cmc=identity gallery=permutation trials=10" in text
    )
    assert "mean of 10 trials" in text
    assert "gallery: rand_perm_cam.mat (sha256" in text
    assert "neck bnneck; flip no; version 0." in text
    (official,) = results(tmp_path / "official.json")
    assert official.keys() >= STAMP
    assert (official["queries"], official["gallery"], len(official["trials"])) == (8, 8, 10)
    assert official["variant"] == {"search": "all"}
    assert official["made"] == {"neck": "bnneck", "flip": False}
    assert official["reranking"] == ""
    assert reid(*common, tmp_path / "agw.json", "--data", "sysu_mm01:gallery=random")[0] == 0
    (agw,) = results(tmp_path / "agw.json")
    assert agw["gallery_source"] == "random, 1 per identity and camera, seeds 0 to 9"
    code, _, err = reid("diff", tmp_path / "official.json", tmp_path / "agw.json")
    assert code == 1
    assert "cannot be compared: sysu_mm01 all person infrared->visible: the rule differs" in err
    code, out, _ = reid("diff", tmp_path / "agw.json", tmp_path / "agw.json")
    assert code == 0
    assert "+0.0" in out


def test_regdb_both_directions_over_ten_splits(reid, plain_weights: Path, tmp_path: Path) -> None:
    """One network for each split; the mean stands last for each direction."""
    root = published_layouts.regdb(tmp_path / "regdb", trials=10)
    for trial in range(1, 11):
        shutil.copy(plain_weights, tmp_path / f"split-{trial}.safetensors")
    code, out, err = reid(
        "evaluate", "--data", "regdb:trial=all,direction=all", "--root", root, "--json", tmp_path / "r.json",
        "--weights", tmp_path / "split-{trial}.safetensors",
    )  # fmt: skip
    assert code == 0, err
    entries = results(tmp_path / "r.json")
    assert len(entries) == 22
    means = entries[-2:]
    assert [entry["variant"] for entry in means] == [
        {"trial": "mean of all", "direction": f"{one}-to-{other}"}
        for one, other in (("visible", "thermal"), ("thermal", "visible"))
    ]
    for mean in means:
        singles = [e for e in entries[:-2] if e["variant"]["direction"] == mean["variant"]["direction"]]
        assert mean["mAP"] == pytest.approx(sum(entry["mAP"] for entry in singles) / 10)
        assert [trial["mAP"] for trial in mean["trials"]] == [entry["mAP"] for entry in singles]
    assert out.count("mean of 10 trials") == 2
    (tmp_path / "split-7.safetensors").unlink()
    code, _, err = reid(
        "evaluate", "--data", "regdb:trial=all", "--root", root, "--weights", tmp_path / "split-{trial}.safetensors"
    )
    assert code == 1
    assert "split-7.safetensors" in err


def test_reranking_stands_beside_the_plain_numbers(
    reid, tiny_street: Path, plain_weights: Path, tmp_path: Path
) -> None:
    common = ("evaluate", "--data", tiny_street / "street-a", "--weights", plain_weights, "--json")
    assert reid(*common, tmp_path / "plain.json")[0] == 0
    code, out, _ = reid(*common, tmp_path / "both.json", "--rerank", 5, 2, 0.3)
    assert code == 0
    assert all(len(line) <= 80 for line in out.splitlines()[1:])
    assert "k-reciprocal, k1 5, k2 2, lambda 0.3" in " ".join(out.split())
    plain, both = results(tmp_path / "plain.json"), results(tmp_path / "both.json")
    assert [entry for entry in both if entry["reranking"] == ""] == plain
    changed = [entry for entry in both if entry["reranking"]]
    assert {entry["reranking"] for entry in changed} == {"k-reciprocal, k1 5, k2 2, lambda 0.3"}
    assert [e["direction"] for e in changed] == [e["direction"] for e in plain]
    assert [e["mAP"] for e in changed] != [e["mAP"] for e in plain]
    code, out, err = reid("diff", tmp_path / "plain.json", tmp_path / "both.json")
    assert (code, out.count("person visible->visible")) == (0, 1)
    assert str(tmp_path / "both.json") in err
    assert reid(*common, tmp_path / "more.json", "--expand-queries", 2)[0] == 0
    assert {e["reranking"] for e in results(tmp_path / "more.json")} == {"", "average query expansion over 2"}


def test_a_comparison_on_a_full_disk_is_one_line_and_loses_nothing(
    reid, plain_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is shown, the earlier file stays and no part of a new one is left behind."""
    root = published_layouts.regdb(tmp_path / "regdb", trials=1)
    written, out = tmp_path / "one.json", tmp_path / "out" / "both.json"
    common = ("evaluate", "--data", "regdb", "--root", root, "--weights", plain_weights, "--json", written)
    assert reid(*common)[0] == 0
    compared = ("diff", written, written, "--json", out)
    assert reid(*compared)[0] == 0
    (before, entries) = out.read_bytes(), results(written)
    assert json.loads(before)["pairs"][0]["mAP"]["before"] == entries[0]["mAP"]

    def full(path: Path, text: str, encoding: str) -> int:
        path.write_bytes(text[:100].encode(encoding))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    for arguments, what, file in ((compared, "comparison", out), (common, "report", written)):
        code, shown, err = reid(*arguments)
        assert code == 1
        assert "mAP" in shown
        assert err.splitlines()[-1] == f"error: {file}: the {what} cannot be written there: No space left on device"
        assert "Traceback" not in err
    assert out.read_bytes() == before
    assert results(written) == entries
    assert [path.name for path in out.parent.iterdir()] == ["both.json"]


def test_birds_ask_each_other(reid, plain_weights: Path, tmp_path: Path) -> None:
    for number in (1, 100, 101, 102):
        for view in (1, 2):
            published_layouts.write_image(
                tmp_path / f"images/{number:03d}.Bird/{view}.jpg", colour=40 * view + number % 50
            )
    common = ("evaluate", "--root", tmp_path, "--weights", plain_weights)
    code, out, err = reid(*common, "--data", "cub200", "--json", tmp_path / "r.json")
    assert code == 0, err
    assert "R-precision" in out
    (entry,) = results(tmp_path / "r.json")
    assert (entry["queries"], entry["gallery"], entry["pairs_left_out"]) == (4, 4, 4)
    assert entry["r_precision"] == entry["rank1"]  # one right answer each
    assert {"map_at_r", "r_precision"} <= entry.keys()


def test_a_rule_of_ones_own(reid, tiny_street: Path, plain_weights: Path, tmp_path: Path) -> None:
    manifest = tiny_street / "street-a" / "manifest.csv"
    common = ("evaluate", "--data", manifest, "--weights", plain_weights)
    assert (
        reid(*common, "--rule", "modalities=mixed", "--rule", "precision=trapezoid", "--json", tmp_path / "r.json")[0]
        == 0
    )
    entries = results(tmp_path / "r.json")
    assert {entry["direction"] for entry in entries} == {"visible->mixed", "infrared->mixed"}
    assert entries[0]["rule"] == "market precision=trapezoid modalities=mixed"
    for wrong, said in (
        ("precision=smooth", "expected one of rectangle, trapezoid"),
        ("precison=trapezoid", 'did you mean "precision"'),
        ("precision", "expected KEY=VALUE"),
        ("gallery=permutation", "needs a data set with such a file"),
    ):
        code, _, err = reid(*common, "--rule", wrong)
        assert code == 1
        assert said in err


def test_validate(reid, tiny_street: Path, tmp_path: Path) -> None:
    code, out, _ = reid("validate", "--data", tiny_street / "street-a")
    assert code == 0
    assert "note: nothing wrong was found" in out
    shutil.copytree(tiny_street / "street-a", tmp_path / "broken")
    min((tmp_path / "broken/images/gallery/person").glob("*.jpg")).write_bytes(b"not an image")
    code, out, err = reid("validate", "--data", tmp_path / "broken")
    assert code == 1
    assert "error: 1 images cannot be read" in out
    assert "Traceback" not in err
    code, out, _ = reid("validate", "--data", tmp_path / "broken", "--quick", "--json")
    assert code == 0
    assert json.loads(out)[str(tmp_path / "broken")][-1]["message"] == "nothing wrong was found"
    code, out, _ = reid("validate", "--data", "market1501", "--root", published_layouts.market1501(tmp_path / "market"))
    assert "warning: 6 counts differ from the published ones" in out
    code, _, err = reid("validate", "--data", "dukemtmc_reid", "--root", tmp_path)
    assert code == 1
    assert "documented but not offered" in err


def test_help_has_examples(reid) -> None:
    code, out, _ = reid("validate", "--help")
    assert code == 0
    assert "Example: reid validate" in " ".join(out.split())
