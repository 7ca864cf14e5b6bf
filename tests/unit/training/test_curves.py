"""The drawing of a training."""

from __future__ import annotations

from xml.etree import ElementTree

from reid.training.curves import MARK, curves_svg


def line(epoch: int, **scores: float) -> dict[str, float]:
    return {"epoch": epoch, "loss": 4.0 / epoch, "accuracy": 0.1 * epoch, **scores}


def test_a_drawing_is_valid_and_has_a_line_for_each_value() -> None:
    plain = curves_svg([line(1), line(2)])
    measured = curves_svg([line(1), line(2, held_out_mAP=0.5, held_out_rank1=0.6)])
    for drawing in (plain, measured):
        ElementTree.fromstring(drawing)
        assert MARK in drawing
    assert (plain.count("<polyline"), measured.count("<polyline")) == (2, 4)
    assert "held-out mAP" in measured
    assert "held-out mAP" not in plain


def test_many_epochs_write_few_numbers() -> None:
    drawing = curves_svg([line(epoch) for epoch in range(1, 301)])
    assert drawing.count("<text") < 70
