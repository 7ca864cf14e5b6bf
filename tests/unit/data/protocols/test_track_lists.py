"""Tracks are read from a list as VeRi-776 has it.

The tests find these errors: the name of a track taken for an image; an image in two tracks or in none, or one that does
not exist; two lines with the same name taken for one track.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import published_layouts
from reid.data.protocols.data_sets import count_differences, load_protocol, open_data
from reid.data.protocols.track_lists import with_tracks
from reid.errors import DataError
from reid.records import Sample, Split

SAMPLES = [Sample(Path(f"image_test/{name}.jpg"), "v", "c1") for name in ("a", "b", "c")]
LIST = Path("test_track.txt")


def test_a_line_is_a_name_and_images() -> None:
    tracked = with_tracks(SAMPLES, "t1 a.jpg c.jpg \n\nt2 b.jpg\r\n", LIST)
    assert [sample.path for sample in tracked] == [sample.path for sample in SAMPLES]
    first, second, third = (sample.track for sample in tracked)
    assert first == third != second
    again = with_tracks(SAMPLES, "t a.jpg\nt b.jpg\nt c.jpg\n", LIST)
    assert len({sample.track for sample in again}) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t1 a.jpg b.jpg c.jpg\nt2 a.jpg\n", r"line 2: a\.jpg"),
        ("t1 a.jpg d.jpg\n", r"line 1: d\.jpg"),
        ("t1\n", "line 1: .*'t1'"),
        ("t1 a.jpg b.jpg\n", r"image_test/c\.jpg .*\(1 "),
        ("", r"image_test/a\.jpg .*\(3 "),
    ],
)
def test_a_list_that_does_not_fit_the_images(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        with_tracks(SAMPLES, text, LIST)


def test_veri776_reads_tracks_only_to_rank_them(tmp_path: Path) -> None:
    published_layouts.veri776(tmp_path)
    images, tracks = open_data("veri776", tmp_path), open_data("veri776:search=track", tmp_path)
    assert not any(sample.track for sample in images.samples)
    gallery = [sample for sample in tracks.samples if sample.split is Split.GALLERY]
    assert (len(gallery), len({sample.track for sample in gallery})) == (5, 4)
    assert not any(sample.track for sample in tracks.samples if sample.split is not Split.GALLERY)
    assert (images.scoring.rule.ranked, tracks.scoring.rule.ranked) == ("image", "track")
    protocol = load_protocol("veri776")
    lines = count_differences(protocol, tracks.samples, **tracks.scoring.variant)
    assert lines[-1] == "VeRi-776, gallery: expected 2021 tracks, found 4"
    assert not any("tracks" in line for line in count_differences(protocol, images.samples, **images.scoring.variant))
    (tmp_path / "test_track.txt").unlink()
    assert open_data("veri776", tmp_path).samples == images.samples
    with pytest.raises(DataError, match=r"test_track\.txt"):
        open_data("veri776:search=track", tmp_path)
