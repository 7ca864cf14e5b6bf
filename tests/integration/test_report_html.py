"""``reid evaluate --html`` and ``--details`` on the command line."""

from __future__ import annotations

from pathlib import Path


def test_page_and_details(reid, tiny_street: Path, plain_weights: Path, tmp_path: Path) -> None:
    data = tiny_street / "street-a"
    common = ("evaluate", "--data", data, "--weights", plain_weights)
    code, plain, _ = reid(*common)
    assert code == 0
    page = tmp_path / "report.html"
    code, out, err = reid(*common, "--html", page, "--query-examples", 1, "--details")
    assert code == 0, err
    assert out.startswith(plain.rstrip("\n"))
    more = out[len(plain.rstrip("\n")) :]
    assert "wished false-match rate" in more
    assert "by modality" in more
    assert all(len(line) <= 80 for line in out.splitlines()[1:])
    text = page.read_text(encoding="utf-8")
    assert text.count('<figure class="query">') == 2 * text.count('class="part"') > 0
    assert str(tiny_street) not in text, "no path of this machine is in the page"
    code, _, _ = reid(*common, "--html", page, "--query-examples", 0)
    assert code == 0, "an earlier page may be replaced"
    assert "<img" not in page.read_text(encoding="utf-8")


def test_other_files_are_not_replaced(reid, tiny_street: Path, plain_weights: Path, tmp_path: Path) -> None:
    common = ("evaluate", "--data", tiny_street / "street-a", "--weights", plain_weights)
    other = tmp_path / "thesis.html"
    other.write_text("<html>years of work</html>")
    code, _, err = reid(*common, "--html", other)
    assert code == 1
    assert "thesis.html" in err
    assert other.read_text() == "<html>years of work</html>"
    code, _, err = reid(*common, "--html", tmp_path / "one", "--json", tmp_path / "one")
    assert code == 1
    assert "choose two names" in err
    code, _, err = reid("evaluate", "--compare", "a.json", "b.json", "--html", tmp_path / "p.html")
    assert code == 2
    assert "--html" in err


def test_a_mean_over_splits_has_its_scores_only(reid, plain_weights: Path, tmp_path: Path) -> None:

    from helpers import published_layouts

    root = published_layouts.regdb(tmp_path / "regdb", trials=10)
    page = tmp_path / "report.html"
    code, _out, err = reid(
        "evaluate", "--data", "regdb:trial=all", "--root", root, "--weights", plain_weights,
        "--html", page, "--query-examples", 0,
    )  # fmt: skip
    assert code == 0, err
    text = page.read_text(encoding="utf-8")
    sections = text.split('<section class="report"')[1:]
    assert len(sections) == 11
    assert ['class="part"' in section for section in sections] == [True] * 10 + [False]
    assert "trial mean of all" in sections[-1]
    assert text.count("<nav>") == 1
