"""The page of the report on cameras escapes what data say, and shows what was chosen and what was promised."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from reid.evaluation.analysis.camera_findings import CameraFinding
from reid.evaluation.analysis.camera_report import CameraReport
from reid.evaluation.reports.camera_report_page import MARK, camera_page_html, write_camera_page
from reid.norm import Profiles
from reid.retrieval.normalization_choice import AS_IT_IS, CameraLevels, Candidate
from reid.retrieval.normalization_report import CameraChoice, NormalizationReport

NAME = "<b>door</b>"
FOUND = CameraReport(
    "calibrate", (CameraFinding(NAME, 40, 12.5, verdict="leave", reason="a & b"),), {}, (), Profiles((), (), {}, {})
)
CHOSEN = NormalizationReport(
    (CameraChoice(NAME, 40, "centering"),),
    (Candidate(AS_IT_IS, 0.25, 0.0, 0.0), Candidate(CameraLevels(centering=True), 0.5, 0.25, 0.03)),
    0.5,
    "half of the crops",
    "csls",
    "enough crops",
)


def test_the_page_shows_the_choice_and_the_alternatives() -> None:
    text = camera_page_html(FOUND, CHOSEN)
    assert MARK in text
    for words in ("half of the crops", "csls: enough crops", "50.0 ", "+25.0", "3.0", "a &amp; b", "12.50"):
        assert words in text
    assert NAME not in text
    assert "&lt;b&gt;door" in text


def test_without_a_choice_the_findings_stand_alone(tmp_path: Path) -> None:
    text = camera_page_html(FOUND, None)
    assert "How the cameras are normalized" not in text
    assert "What was measured" in text
    write_camera_page(FOUND, None, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == text


def test_what_was_given_has_no_alternatives() -> None:
    given = replace(CHOSEN, candidates=(), score_norm="", score_reason="")
    assert "mutual nearest neighbour" not in camera_page_html(FOUND, given)
    assert not [line for line in given.lines() if line.startswith("scores")]
