import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxdet.data import pictures
from jaxdet.data.records import DataError


def cut_off(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_picture(tmp_path, write_picture, suffix):
    path = tmp_path / f"a.{suffix}"
    write_picture(path)
    pictures.read_picture(path)
    cut_off(path)
    with pytest.raises(DataError, match=rf"a.{suffix}: the picture is cut off"):
        pictures.read_picture(path)


def test_thumbnail_does_not_hide_truncation(tmp_path, write_picture):
    """The end marker of a small picture within the header is not the end of the file."""
    path = tmp_path / "a.jpg"
    write_picture(path)
    whole, thumbnail = path.read_bytes(), cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1]
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail.tobytes()
    path.write_bytes(whole[:2] + segment + whole[2:])
    pictures.read_picture(path)
    cut_off(path)
    with pytest.raises(DataError, match="cut off"):
        pictures.read_picture(path)


def test_grey_and_alpha_pictures_are_rgb(tmp_path, rng):
    grey = rng.integers(0, 256, (6, 5), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([grey, grey, grey // 2, grey]))
    got = pictures.read_picture(tmp_path / "grey.png")
    np.testing.assert_array_equal(got, np.dstack([grey] * 3))
    got = pictures.read_picture(tmp_path / "alpha.png")
    np.testing.assert_array_equal(got, np.dstack([grey // 2, grey, grey]))


def test_missing_and_unreadable(tmp_path):
    with pytest.raises(DataError, match=r"gone.jpg: cannot be read \(No such file"):
        pictures.read_picture(tmp_path / "gone.jpg")
    (tmp_path / "text.jpg").write_text("text")
    with pytest.raises(DataError, match=r"text.jpg: not a picture"):
        pictures.read_picture(tmp_path / "text.jpg")
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(DataError, match=r"empty.jpg: the picture is cut off \(0 bytes\)"):
        pictures.read_picture(tmp_path / "empty.jpg")


def test_orientation_is_applied_on_request_only(tmp_path, write_picture):
    """EXIF orientation 6: turn the stored picture a quarter to the right to show it."""
    path = tmp_path / "a.jpg"
    write_picture(path, 40, 60)
    entry = bytes.fromhex("0112 0003 00000001 0006 0000")
    tiff = b"MM\x00\x2a\x00\x00\x00\x08\x00\x01" + entry + b"\x00\x00\x00\x00"
    exif = b"Exif\x00\x00" + tiff
    whole = path.read_bytes()
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    path.write_bytes(whole[:2] + segment + whole[2:])
    stored = pictures.read_picture(path)
    assert stored.shape == (40, 60, 3)
    shown = pictures.read_picture(path, orientation=True)
    np.testing.assert_array_equal(shown, np.rot90(stored, -1))


def test_headers(tmp_path, rng):
    pixels = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
    for name, array, mode in (
        ("a.png", pixels, "RGB"),
        ("b.jpg", pixels, "RGB"),
        ("c.png", pixels[..., 0], "L"),
        ("d.png", np.dstack([pixels, pixels[..., 0]]), "RGBA"),
        ("e.png", pixels[..., 0].astype(np.uint16), "I;16"),
        ("f.bmp", pixels, "RGB"),
        ("g.tif", pixels, "RGB"),
        ("h.webp", pixels, "RGB"),
    ):
        cv2.imwrite(str(tmp_path / name), array)
        assert pictures.read_header(tmp_path / name) == ((6, 5), mode, 1)
    with pytest.raises(DataError, match=r"gone.png: cannot be read"):
        pictures.read_header(tmp_path / "gone.png")


@pytest.mark.parametrize("suffix", ["png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_as_pillow_does(tmp_path, rng, orientation, suffix):
    path = tmp_path / f"a.{suffix}"
    picture = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8))
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(path, exif=exif, lossless=True)
    header = pictures.read_header(path)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert header == ((6, 5), "RGB", orientation) and header.upright == shown.shape[:2]
    files = pictures.PictureFiles((path,), upright=True)
    np.testing.assert_array_equal(files(0), shown)
    np.testing.assert_array_equal(files.select([0])(0), shown)
    assert pictures.PictureFiles((path,))(0).shape == (6, 5, 3)


def test_an_orientation_that_opencv_does_not_see(tmp_path):
    path = tmp_path / "a.jpg"
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/>'
    exif = Image.Exif()
    exif[0x010F] = "maker"
    Image.new("RGB", (5, 6)).save(path, exif=exif, xmp=xmp + b"</rdf:RDF></x:xmpmeta>")
    header = pictures.read_header(path)
    assert pictures.PictureFiles((path,), upright=True)(0).shape[:2] == header.upright


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_cmyk_and_turned_headers(tmp_path, suffix):
    picture = Image.new("CMYK" if suffix == "jpg" else "RGB", (5, 6))
    exif = picture.getexif()
    exif[0x0112] = 3
    picture.save(tmp_path / f"a.{suffix}", exif=exif)
    header = pictures.read_header(tmp_path / f"a.{suffix}")
    assert header == ((6, 5), picture.mode, 3)
    assert pictures.read_picture(tmp_path / f"a.{suffix}").shape == (6, 5, 3)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    """A PNG of a few bytes that says it is 60000 x 60000."""
    data = bytearray(cv2.imencode(".png", np.zeros((4, 4), np.uint8))[1].tobytes())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(data)
    monkeypatch.setattr(cv2, "imdecode", lambda *args: pytest.fail("decoded"))
    for read in (pictures.read_picture, pictures.read_mask, pictures.read_header):
        with pytest.raises(DataError, match=r"a.png: its header: height 60000 and width 60000"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_masks(tmp_path, channels):
    """What is neither black nor transparent."""
    pixels = np.zeros((3, 4, channels), np.uint8)
    pixels[0, 0], pixels[1, 1], pixels[2, 2] = 255, 1, 255
    if channels in (2, 4):
        pixels[..., -1] = [[255] * 4, [255] * 4, [0] * 4]
    image = Image.fromarray(pixels.squeeze(), {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels])
    image.save(tmp_path / "a.png")
    want = np.zeros((3, 4), bool)
    want[0, 0] = want[1, 1] = True
    want[2, 2] = channels in (1, 3)
    np.testing.assert_array_equal(pictures.read_mask(tmp_path / "a.png"), want)
