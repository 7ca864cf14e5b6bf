"""A report as one HTML page that needs nothing else: no script, no request, images inside it.

Every text that comes from data is escaped, and the page's own policy forbids it to load anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from reid.evaluation.analysis.breakdown import CameraBias, PairTable
from reid.evaluation.analysis.details import Details, ResultDetails, Verification
from reid.evaluation.analysis.intervals import Interval
from reid.evaluation.analysis.query_examples import ExampleAnswer, QueryExample
from reid.evaluation.ranks import Float64Array
from reid.evaluation.reports.charts import COLOURS, Curve, cmc_chart, escape, heat, histogram
from reid.evaluation.reports.corruption_heat_map import corruption_heat_map
from reid.evaluation.reports.report_text import stamp_lines
from reid.evaluation.reports.text_file import write_text
from reid.evaluation.results import Report, Result
from reid.records import Modality, Sample

MARK = '<meta name="generator" content="reid evaluate">'  # by which files.check_output_file recognizes such a page
CMC_RANKS = 20
SPAN = 0.2  # least range of values that the colours of a heat map span, so that values that hardly differ look alike
NOTHING = "–"
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = (Path(__file__).parent / "html_page.css").read_text(encoding="utf-8")


def page_head(title: str, mark: str = MARK) -> str:
    """Write the beginning of a page, up to the opening tag of its body; ``mark`` is what the page is recognized by."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{mark}\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE}</style></head>\n<body>\n"
    )


def html_page(details: Sequence[Details]) -> str:
    """Write the page of all ``details``, with a section for each report."""
    titles = [_title(one.report) for one in details]
    links = "".join(f'<li><a href="#report-{i}">{escape(title)}</a></li>' for i, title in enumerate(titles))
    contents = f"<nav><ul>{links}</ul></nav>" if len(details) > 1 else ""
    sections = "\n".join(
        f'<section class="report" id="report-{i}"><h2>{escape(title)}</h2>{_report(one)}</section>'
        for i, (title, one) in enumerate(zip(titles, details, strict=True))
    )
    return (
        f"{page_head('Re-identification report')}<header><h1>Re-identification report</h1>{contents}</header>\n"
        f"<main>{sections}</main></body></html>\n"
    )


def write_page(details: Sequence[Details], path: Path) -> None:
    """Write the page to ``path``, readable by its owner only: the whole file appears, or the old one stays."""
    write_text(html_page(details), path, "page", private=True)


def _title(report: Report) -> str:
    return ", ".join([report.protocol, *(f"{name} {choice}" for name, choice in report.variant.items())])


def _report(details: Details) -> str:
    report = details.report
    categories = dict.fromkeys(result.category for result in report.results)
    charts = "".join(
        _cmc_figure(category, [r for r in report.results if r.category == category]) for category in categories
    )
    tables = "".join(
        _heat_maps(f"{category}: by modality of query and gallery", table) for category, table in details.modalities
    )
    maps = "".join(map(corruption_heat_map, details.corruptions))
    stamp = escape("\n".join(stamp_lines(report)))
    return (
        f'<div class="scroll">{_score_table(report.results)}</div><div class="row">{charts}{tables}{maps}</div>'
        f"{''.join(map(_result_section, details.results))}"
        f"<footer><h3>What was computed, and how</h3><pre>{stamp}</pre></footer>"
    )


def _score_table(results: Iterable[Result]) -> str:
    rows = []
    for result in results:
        metrics, intervals = result.metrics, result.intervals()
        name = ", ".join(filter(None, [_arrow(result.direction), result.change]))
        cells = [
            _percent(metrics.rank(1), intervals.get("rank1")),
            _percent(metrics.rank(5)),
            _percent(metrics.rank(10)),
            _percent(metrics.mAP, intervals.get("mAP")),
            _percent(metrics.mINP, intervals.get("mINP")),
            f"{metrics.queries:,}",
            f"{metrics.gallery:,}",
        ]
        rows.append(([result.category, name], cells))
    heads = ["category", "query → gallery", "rank-1", "rank-5", "rank-10", "mAP", "mINP", "queries", "gallery"]
    return table("Scores in percent; small: 95 % interval over identities", heads, rows, css_class="scores")


def _cmc_figure(category: str, results: Sequence[Result]) -> str:
    plain = [result.direction for result in results if result.is_plain]
    curves = []
    for result in results:
        name = ", ".join(filter(None, [_arrow(result.direction), result.change]))
        colour = COLOURS[plain.index(result.direction) % len(COLOURS)]
        curves.append(Curve(name, result.metrics.cmc[:CMC_RANKS], colour, not result.is_plain))
    title = f"{category}: CMC"
    return f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{cmc_chart(title, curves)}</figure>'


def _result_section(details: ResultDetails) -> str:
    name = f"{details.result.category} {_arrow(details.result.direction)} {details.result.change}".rstrip()
    other = details.gallery != details.result.metrics.gallery
    source = f"; the scores above have another gallery ({details.result.gallery_source})" if other else ""
    note = f" Over all {details.gallery:,} gallery images{source}." if other else ""
    pieces = [
        _histogram(details.verification) if details.verification else "",
        f'<div class="block">{_threshold_table(details.verification)}{_identification_table(details)}</div>',
        _heat_maps("By camera of query and gallery", details.cameras) if details.cameras else "",
        _bias_table(details.bias) if details.bias else "",
    ]
    return (
        f'<details open class="part"><summary>{escape(name)}</summary>'
        f'<p class="note">{details.result.metrics.queries:,} queries.{escape(note)}</p>'
        f'<div class="row">{"".join(pieces)}</div>'
        f"{_examples('Best queries', details.best)}{_examples('Worst queries', details.worst)}</details>"
    )


def _histogram(found: Verification) -> str:
    shares = [
        (f"{name} ({counts.sum():,} pairs)", counts / counts.sum())
        for name, counts in (("same identity", found.same), ("different identities", found.different))
    ]
    marks = [(f"{100 * point.wished:g} %", point.threshold) for point in found.points]
    return histogram("Scores of valid pairs; lines: thresholds by false-match rate", found.edges, shares, marks)


def _threshold_table(found: Verification | None) -> str:
    if found is None:
        return "<p>Thresholds: there are no valid pairs of one identity and of two identities to compare.</p>"
    rows = [
        (
            [f"{100 * point.wished:g} %"],
            [f"{point.threshold:.4f}", _percent(point.true_match_rate.value, point.true_match_rate)],
        )
        for point in found.points
    ]
    rate, threshold = found.equal_error
    title = "Thresholds: a score of at least this counts as the same identity; small: 95 % interval over identities"
    thresholds = table(title, ["wished false-match rate", "threshold", "true-match rate"], rows)
    return f"{thresholds if rows else ''}<p>Equal error rate {100 * rate:.1f} % at threshold {threshold:.4f}.</p>"


def _identification_table(details: ResultDetails) -> str:
    if not details.identification:
        count = f"{details.unmatched:,} of {details.result.metrics.queries:,} queries are unmatched"
        return f"<p>Open-set identification: {count}, so there is no rate.</p>"
    rows = [
        (
            [f"{100 * one.wished:g} %"],
            [f"{100 * one.false_alarm_rate:.1f}", f"{one.threshold:.4f}", _percent(one.rate.value, one.rate)],
        )
        for one in details.identification
    ]
    one = details.identification[0]
    title = f"Open-set identification: {one.known:,} queries with a right answer, {one.unmatched:,} unmatched"
    return table(title, ["wished false-alarm rate", "reached", "threshold", "identified at rank 1"], rows)


def _heat_maps(title: str, table: PairTable) -> str:
    maps = _heat_map("mAP", table.mAP, table) + _heat_map("rank-1", table.rank1, table)
    return f'<div class="maps"><h3>{escape(title)}</h3>{maps}</div>'


def _heat_map(name: str, values: Float64Array, table: PairTable) -> str:
    """Write a heat map as a table; its rows are the groups of queries."""
    rows, columns = _sorted_positions(table.query_groups), _sorted_positions(table.gallery_groups)
    known = values[~np.isnan(values)]
    high = float(known.max(initial=0))
    low = min(float(known.min(initial=1)), high - SPAN)
    head = "".join(f'<th scope="col">{escape(table.gallery_groups[j])}</th>' for j in columns)
    body = []
    for i in rows:
        cells = []
        for j in columns:
            value, count = float(values[i, j]), int(table.matched[i, j])
            if np.isnan(value):
                cells.append(f'<td class="none" title="no query with a right answer">{NOTHING}</td>')
            else:
                cells.append(f'<td style="{heat(value, low, high)}" title="{count:,} queries">{100 * value:.1f}</td>')
        body.append(f'<tr><th scope="row">{escape(table.query_groups[i])}</th>{"".join(cells)}</tr>')
    return (
        f'<table class="heat"><caption>{name}, %</caption><thead><tr><th>query \\ gallery</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def _sorted_positions(names: Sequence[str]) -> list[int]:
    """Sort the positions of ``names``: modalities as they are defined, other names by the numbers in them."""

    def key(position: int) -> list[tuple[bool, int, str]]:
        words = re.findall(r"[0-9]+|[^0-9]+", names[position])
        return [(not word.isdecimal(), int(word) if word.isdecimal() else 0, word) for word in words]

    known = [str(modality) for modality in Modality]
    return sorted(range(len(names)), key=(lambda i: known.index(names[i])) if set(names) <= set(known) else key)


def _bias_table(bias: CameraBias) -> str:
    rows = [
        ([bias.cameras[i]], [f"{bias.queries[i]:,}", _percent(bias.observed[i]), _percent(bias.expected[i])])
        for i in _sorted_positions(bias.cameras)
    ]
    factor = NOTHING if np.isnan(bias.factor) else f"{bias.factor:.2f}"
    title = (
        f"Camera bias {factor}: how many times as often as by chance the nearest row of another identity"
        " has the query's camera"
    )
    heads = ["camera", "queries", "observed", "by chance"]
    return f'<div class="block">{table(title, heads, rows)}</div>'


def _examples(title: str, examples: Sequence[QueryExample]) -> str:
    if not examples:
        return ""
    return f'<h3>{title}</h3><div class="examples">{"".join(map(_example, examples))}</div>'


def _example(example: QueryExample) -> str:
    precision = f"AP {100 * example.average_precision:.1f}"
    words = escape(f"query: {_describe(example.query)}")
    query = (
        f'<figure class="query"><img src="{example.image}" alt="{words}" title="{words}">'
        f"<figcaption>{escape(example.query.camera or '?')}<br>{precision}</figcaption></figure>"
    )
    return f'<div class="example">{query}{"".join(map(_answer, example.answers))}</div>'


def _answer(answer: ExampleAnswer) -> str:
    verdict, mark = ("right", "✓") if answer.right else ("wrong", "✗")
    words = escape(f"rank {answer.rank}, {verdict}: {_describe(answer.sample)}, score {answer.score:.3f}")
    return (
        f'<figure class="{verdict}"><img src="{answer.image}" alt="{words}" title="{words}">'
        f"<figcaption>{answer.rank} {mark}<br>{escape(answer.sample.camera or '?')}</figcaption></figure>"
    )


def _describe(sample: Sample) -> str:
    return f"{sample.category} {sample.identity or 'unknown'}, {sample.modality} camera {sample.camera or 'unknown'}"


def _arrow(direction: str) -> str:
    return direction.replace("->", " → ")


def _percent(value: float, interval: Interval | None = None) -> str:
    """Write a fraction in percent as markup, with its interval if there is one."""
    around = f" <small>{100 * interval.low:.1f}–{100 * interval.high:.1f}</small>" if interval else ""
    return f"{100 * value:.1f}{around}"


def table(
    title: str, heads: Sequence[str], rows: Iterable[tuple[Sequence[str], Sequence[str]]], *, css_class: str = ""
) -> str:
    """Write a table of ``rows`` (names, cells): names are escaped, cells are markup."""
    body = "".join(
        "<tr>"
        + "".join(f'<th scope="row">{escape(name)}</th>' for name in names)
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
        for names, cells in rows
    )
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    return (
        f'<table class="{css_class or "plain"}"><caption>{escape(title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )
