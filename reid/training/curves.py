"""Draw the curves of a training as a self-contained SVG file: loss, accuracy and the scores of held-out identities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reid.evaluation.reports.camera_curve_plot import drawing_file
from reid.evaluation.reports.charts import COLOURS, HEIGHT, WIDTH, Trace, escape, trace_drawing
from reid.training.held_out import MAP, RANK1

MARK = "drawn by reid train"
_TITLE, _LEGEND = 26, 30  # heights in pixels
_SHARES = {"accuracy": "training accuracy", MAP: "held-out mAP", RANK1: "held-out rank-1"}


def curves_svg(history: Sequence[Mapping[str, float]]) -> str:
    """Draw the loss and, beside it, accuracy and held-out scores in percent, against the epochs.

    Args:
        history: The lines of ``metrics.jsonl``, at least one.

    Returns:
        The content of an SVG file, whose colours follow the light or dark mode of the reader's screen.

    Example:
        >>> drawing = curves_svg([{"epoch": 1, "loss": 3.5, "accuracy": 0.25}])
        >>> drawing.startswith("<svg"), drawing.count("<polyline")
        (True, 2)
    """
    loss = _trace(history, "loss", COLOURS[3])
    low, high = min(loss.y), max(loss.y)
    margin = max(0.05, 0.08 * (high - low))
    drawn = _panel(0, "Loss", trace_drawing([loss], (low - margin, high + margin), "epoch", "loss", 1))
    shown = {key: colour for key, colour in zip(_SHARES, COLOURS, strict=False) if any(key in line for line in history)}
    traces = [_trace(history, key, colour) for key, colour in shown.items()]
    drawn += _panel(1, "Shares", trace_drawing(traces, (0.0, 1.0), "epoch", "%"))
    return drawing_file(
        2 * WIDTH, _TITLE + HEIGHT + _LEGEND, drawn + _legend(shown), f"Training of {len(history)} epochs", MARK
    )


def _trace(history: Sequence[Mapping[str, float]], key: str, colour: str) -> Trace:
    points = [(line["epoch"], line[key]) for line in history if key in line]
    return Trace([x for x, _ in points], [y for _, y in points], colour)


def _panel(number: int, title: str, drawn: str) -> str:
    return (
        f'<g transform="translate({number * WIDTH} {_TITLE})">'
        f'<text class="title" x="{WIDTH / 2}" y="-8" text-anchor="middle">{escape(title)}</text>{drawn}</g>'
    )


def _legend(shown: Mapping[str, str]) -> str:
    middle, parts = _TITLE + HEIGHT + _LEGEND / 2, []
    for number, (key, colour) in enumerate(shown.items()):
        x = WIDTH + 46 + 140 * number
        parts.append(
            f'<line x1="{x}" x2="{x + 22}" y1="{middle - 4}" y2="{middle - 4}" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{x + 28}" y="{middle}">{escape(_SHARES[key])}</text>'
        )
    return "".join(parts)
