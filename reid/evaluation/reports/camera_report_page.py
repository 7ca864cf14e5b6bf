"""The report on cameras as one HTML page that needs nothing else: what was chosen, why, and what else was tried."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from reid.evaluation.analysis.camera_report import CameraReport
from reid.evaluation.reports.charts import escape
from reid.evaluation.reports.text_file import write_text
from reid.retrieval.normalization_report import NormalizationReport

MARK = '<meta name="generator" content="reid cameras report">'  # by which files.check_output_file knows such a page
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = (Path(__file__).parent / "html_page.css").read_text(encoding="utf-8")
_BAR = (
    '<svg width="{width}" height="10" role="img" aria-label="{label}"><rect width="{width}" height="10"'
    ' fill="#4269d0"/></svg>'
)
BAR_WIDTH = 200  # pixels of a share of 1


def write_camera_page(found: CameraReport, chosen: NormalizationReport | None, path: Path) -> None:
    """Write the page, readable by its owner only: the whole file appears, or the old one stays.

    Args:
        found: The findings of all cameras.
        chosen: What was chosen for them; None where nothing was.
        path: The file.
    """
    write_text(camera_page_html(found, chosen), path, "page", private=True)


def camera_page_html(found: CameraReport, chosen: NormalizationReport | None) -> str:
    """Return the text of the page; every text that comes from data is escaped."""
    sections = [_choice_section(chosen)] if chosen is not None else []
    sections += [_findings_section(found), _scores_section(found)]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{MARK}\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">\n'
        f"<title>Report on cameras</title>\n<style>\n{_STYLE}</style></head>\n<body>\n"
        f"<header><h1>Report on cameras</h1></header>\n<main>{''.join(sections)}</main></body></html>\n"
    )


def _choice_section(chosen: NormalizationReport) -> str:
    candidates = [
        (
            [str(one.levels)],
            [
                f"{100 * one.share:.1f} {_bar(one.share)}",
                f"{100 * one.gain:+.1f}",
                f"{100 * one.error:.1f}",
            ],
        )
        for one in chosen.candidates
    ]
    cameras = [([camera.camera], [str(camera.crops), escape(camera.levels)]) for camera in chosen.cameras]
    score_norm = chosen.score_norm or "left open"
    scores = f"<p>Scores: {score_norm}: {escape(chosen.score_reason)}.</p>" if chosen.score_reason else ""
    promised = _table(
        "Crops with a mutual nearest neighbour in another camera, in percent",
        ("levels", "share", "gain", "error"),
        candidates,
    )
    return (
        f'<section class="report"><h2>How the cameras are normalized</h2><p>{escape(chosen.reason)}.</p>{scores}'
        f'<div class="row">{_table("What is used", ("camera", "crops", "levels"), cameras)}'
        f"{promised if candidates else ''}</div></section>"
    )


def _findings_section(found: CameraReport) -> str:
    rows = [
        (
            [camera.camera],
            [
                str(camera.crops),
                *(_number(value) for value in (camera.effective, camera.shift, camera.gap, camera.error)),
                escape(camera.verdict),
                escape(camera.reason),
            ],
        )
        for camera in found.cameras
    ]
    heads = ("camera", "crops", "worth", "shift", "gap", "error", "verdict", "reason")
    return f'<section class="report"><h2>What was measured</h2>{_table("Each camera", heads, rows)}</section>'


def _scores_section(found: CameraReport) -> str:
    if not found.scores:
        return ""
    methods = list(found.scores[0].metrics)
    rows = [
        (
            [f"{line.category} {line.direction}"],
            [f"{100 * line.metrics[name].mAP:.1f} / {100 * line.metrics[name].rank(1):.1f}" for name in methods],
        )
        for line in found.scores
    ]
    table = _table("mAP / rank-1 in percent", ("queries", *methods), rows)
    return f'<section class="report"><h2>What labels say</h2>{table}</section>'


def _bar(share: float) -> str:
    return _BAR.format(width=round(BAR_WIDTH * share), label=f"{100 * share:.1f} percent")


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _table(title: str, heads: Sequence[str], rows: Iterable[tuple[Sequence[str], Sequence[str]]]) -> str:
    """Write a table of rows (names, cells): names are escaped, cells are markup."""
    body = "".join(
        "<tr>"
        + "".join(f'<th scope="row">{escape(name)}</th>' for name in names)
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
        for names, cells in rows
    )
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    return (
        f'<table class="plain"><caption>{escape(title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )
