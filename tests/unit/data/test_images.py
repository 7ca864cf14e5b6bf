"""Images are read complete, upright and in RGB, or give an error of one line."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reid.data.images import IMAGE_FORMATS, decode_image, read_image, read_pixels
from reid.errors import ConfigError, DataError


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_rgb_is_read_unchanged(tmp_path: Path) -> None:
    pixels = noise(7, 5)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "RGBA", "P", "CMYK"])
def test_other_modes_become_rgb(mode: str, tmp_path: Path) -> None:
    original = Image.fromarray(noise(7, 5)).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    original.save(path)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (5, 7))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(original.convert("RGB")))


def test_a_palette_with_transparency_does_not_warn(tmp_path: Path) -> None:
    original = Image.fromarray(noise(7, 5)).convert("P")
    original.save(tmp_path / "a.png", transparency=bytes(range(256)))
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), np.asarray(original.convert("RGB")))


def test_16_bit_grey_images_are_scaled(tmp_path: Path) -> None:
    values = np.array([[0, 256, 257, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    pixels = np.asarray(read_image(tmp_path / "a.png"))
    assert pixels[0, :, 0].tolist() == [0, 1, 1, 128, 255]
    assert (pixels == pixels[:, :, :1]).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 70000]], dtype=np.int32), "16 bits"),
        (np.array([[0.0, 0.5]], dtype=np.float32), "floating-point"),
    ],
)
def test_pixels_without_an_agreed_range(values: np.ndarray, expected: str, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=expected):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_image_upright(orientation: int, tmp_path: Path) -> None:
    """The file is stored as a camera that is held in this orientation would store it."""
    upright = noise(6, 4)
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(undo[orientation](upright))).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.png")), upright)


def test_missing_and_empty_files_other_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "folder.jpg").mkdir()
    for name, expected in (
        ("none.jpg", "no such"),
        ("empty.jpg", "empty"),
        ("text.jpg", "format"),
        ("folder.jpg", "folder"),
    ):
        with pytest.raises(DataError, match=expected) as caught:
            read_image(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "gif", "webp"])
def test_an_incomplete_file(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(noise(64, 48)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"a.{ending}: ") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of some faults that it can repair
@pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "gif", "tif"])
def test_damage_anywhere_gives_an_image_or_a_data_error(ending: str, tmp_path: Path) -> None:
    """Bytes are overwritten at random; whatever a decoder raises becomes a DataError."""
    path = tmp_path / f"a.{ending}"
    Image.fromarray(noise(24, 16)).save(path)
    whole, rng, errors = path.read_bytes(), np.random.default_rng(1), 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(8):
            damaged[int(rng.integers(min(len(whole), 200)))] = int(rng.integers(256))
        path.write_bytes(damaged)
        try:
            assert read_image(path).mode == "RGB"
        except DataError:
            errors += 1
    assert errors > 0


def test_an_image_with_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(noise(30, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="too large"):
        read_image(tmp_path / "a.png")


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("name", ["a.eps", "a.ps", "a.jpg", "a.png"])
def test_postscript_starts_no_program(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow opens PostScript with Ghostscript; whatever the file is called, nothing is started."""
    started: list[object] = []
    monkeypatch.setattr("subprocess.check_call", started.append)
    monkeypatch.setattr("subprocess.Popen", started.append)
    (tmp_path / name).write_bytes(POSTSCRIPT)
    with pytest.raises(DataError, match="format"):
        read_image(tmp_path / name)
    with pytest.raises(DataError, match="format"):
        decode_image(POSTSCRIPT, Path(name))
    assert started == []
    assert not {"EPS", "WMF", "FITS", "HDF5", "GRIB", "BUFR"} & set(IMAGE_FORMATS)


@pytest.mark.parametrize("ending", ["jpg", "mpo", "png", "bmp", "webp", "tif", "gif", "ppm"])
def test_the_formats_of_cameras_are_read_whatever_the_name(ending: str, tmp_path: Path) -> None:
    image = Image.fromarray(noise(12, 8))
    image.save(tmp_path / f"a.{ending}", **({"save_all": True, "append_images": [image]} if ending == "mpo" else {}))
    (tmp_path / f"a.{ending}").rename(tmp_path / "a.dat")
    assert read_image(tmp_path / "a.dat").size == (8, 12)
    assert decode_image((tmp_path / "a.dat").read_bytes(), Path("a")).mode == "RGB"


@pytest.mark.parametrize("ending", ["ico", "tga", "pcx", "jp2", "pdf", "eps"])
def test_other_formats_are_refused(ending: str, tmp_path: Path) -> None:
    Image.fromarray(noise(16, 16)).save(tmp_path / f"a.{ending}")
    with pytest.raises(DataError, match="format"):
        read_image(tmp_path / f"a.{ending}")


def photograph(path: Path, height: int = 300, width: int = 200, **settings: object) -> Path:
    """Save a smooth image with some noise as a JPEG file."""
    ramp = np.linspace(0, 200, height * width * 3).reshape(height, width, 3)
    pixels = (ramp + noise(height, width) / 8).astype(np.uint8)
    Image.fromarray(pixels).save(path, "JPEG", **settings)
    return path


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_simplejpeg_gives_the_pixels_of_pillow(subsampling: str, orientation: int, tmp_path: Path) -> None:
    pytest.importorskip("simplejpeg", reason='pip install "reid-multidomain[jpeg]"')
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = photograph(tmp_path / "a.jpg", subsampling=subsampling, exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(path, "simplejpeg")), np.asarray(read_image(path)))
    np.testing.assert_array_equal(read_pixels(path, "simplejpeg"), np.asarray(read_image(path)))


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
def test_pixels_are_those_of_the_image(decoder: str, tmp_path: Path) -> None:
    """An orientation may also stand in XMP; grey and CMYK files, and those that are no JPEG, are Pillow's."""
    pytest.importorskip("simplejpeg", reason='pip install "reid-multidomain[jpeg]"')
    xmp = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/" note="http://ns.adobe.com/xap/1.0/"><a tiff:Orientation="6"/>
    </x:xmpmeta>"""
    image = Image.fromarray(noise(14, 10))
    image.save(tmp_path / "turned.jpg", xmp=xmp)
    image.save(tmp_path / "plain.jpg")
    image.save(tmp_path / "a.png")
    image.convert("L").save(tmp_path / "grey.jpg")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    shapes = {path.name: read_pixels(path, decoder).shape for path in tmp_path.iterdir()}
    assert shapes["turned.jpg"] == (*shapes["plain.jpg"][1::-1], 3)
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(read_pixels(path, decoder), np.asarray(read_image(path)))


def test_pixels_of_bad_files_are_the_errors_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("simplejpeg", reason='pip install "reid-multidomain[jpeg]"')
    whole = photograph(tmp_path / "a.jpg")
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:3000])
    for name in ("cut.jpg", "missing.jpg", ""):
        with pytest.raises(DataError) as expected:
            read_image(tmp_path / name)
        with pytest.raises(DataError) as found:
            read_pixels(tmp_path / name, "simplejpeg")
        assert str(found.value) == str(expected.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="far too large"):
        read_pixels(whole, "simplejpeg")


def test_simplejpeg_leaves_other_files_to_pillow(tmp_path: Path) -> None:
    pytest.importorskip("simplejpeg", reason='pip install "reid-multidomain[jpeg]"')
    Image.fromarray(noise(7, 5)).save(tmp_path / "a.png")
    Image.fromarray(noise(7, 5)).convert("CMYK").save(tmp_path / "b.jpg")
    for name in ("a.png", "b.jpg"):
        found = np.asarray(read_image(tmp_path / name, "simplejpeg"))
        np.testing.assert_array_equal(found, np.asarray(read_image(tmp_path / name)))
    damaged = tmp_path / "c.jpg"
    damaged.write_bytes(photograph(tmp_path / "d.jpg").read_bytes()[:3000])
    with pytest.raises(DataError, match="damaged or cut off"):
        read_image(damaged, "simplejpeg")


def test_a_missing_simplejpeg_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    with pytest.raises(ConfigError, match='pip install "simplejpeg"'):
        read_image(photograph(tmp_path / "a.jpg"), "simplejpeg")


@pytest.mark.parametrize("orientation", [1, 6])
def test_draft_decodes_no_smaller_than_asked(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = photograph(tmp_path / "a.jpg", exif=exif)
    whole = read_image(path).size
    assert read_image(path, "draft").size == whole
    assert read_image(path, "draft", (whole[0], whole[1])).size == whole
    smaller = read_image(path, "draft", (whole[0] // 2, whole[1] // 2)).size
    assert smaller == (whole[0] // 2, whole[1] // 2)
