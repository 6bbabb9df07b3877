"""Images: limits, decoding of every mode, and preprocessing that is open_clip's own to the bit."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from engine import images
from engine.errors import KeyholeError, RecipeError, TaskError
from engine.images import Encoded, Files, check_images, digest
from engine.preprocessing import LONGEST, Preprocess, _shortened
from engine.task import Subset

SIZES = [(40, 30), (30, 40), (32, 32), (20, 20), (101, 37), (37, 230), (64, 64), (1, 1), (1, 50)]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "png", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decode(data: bytes, name: str) -> np.ndarray:
    return Encoded(data, name).decode()


def read_image(path) -> np.ndarray:
    return Files((str(path),)).read([0])[0]


@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [32, 33])
def test_agrees_with_open_clip_to_the_bit(resize, interpolation, size):
    from open_clip.transform import image_transform

    theirs = image_transform(
        size, False, (0.0,) * 3, (1.0,) * 3, resize_mode=resize, interpolation=interpolation, fill_color=7
    )
    ours = Preprocess(size=size, mean=(0.0,) * 3, std=(1.0,) * 3, interpolation=interpolation, resize=resize, fill=7)
    for height, width in SIZES:
        if resize == "longest" and min(height, width) == 1 < max(height, width):
            continue  # theirs rounds the short side to nothing and fails
        image = noise(height, width)
        expected = theirs(Image.fromarray(image)).numpy()
        np.testing.assert_array_equal(ours.pixels([image])[0], expected, err_msg=f"{height} x {width}")


def test_pixels_are_a_float32_batch_in_unit_range():
    pixels = Preprocess(size=8, mean=(0.5,) * 3, std=(0.5,) * 3).pixels([noise(9, 12), noise(30, 8)])
    assert pixels.shape == (2, 3, 8, 8) and pixels.dtype == np.float32
    assert pixels.min() >= 0 and pixels.max() <= 1
    assert Preprocess(size=8, mean=(0.5,) * 3, std=(0.5,) * 3).pixels([]).shape == (0, 3, 8, 8)


def test_pixels_refuses_what_is_not_an_rgb_image():
    with pytest.raises(TaskError, match="float64"):
        Preprocess(size=8, mean=(0.5,) * 3, std=(0.5,) * 3).pixels([np.zeros((4, 4, 3))])


def test_preprocess_survives_json_and_refuses_nonsense():
    import json

    made = Preprocess(size=8, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5), resize="squash", fill=3)
    assert Preprocess(**json.loads(json.dumps(made.as_dict()))).as_dict() == made.as_dict()
    with pytest.raises(RecipeError, match="shorter"):
        Preprocess(size=8, mean=(0.5,) * 3, std=(0.5,) * 3, resize="shorter")


def test_reads_a_file_as_pillow_does(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(noise(5, 7))))
    np.testing.assert_array_equal(read_image(path), noise(5, 7))
    np.testing.assert_array_equal(Files((str(path), str(path))).read([1])[0], noise(5, 7))
    assert len(Files((str(path),))) == 1


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    upright = decode(encoded(Image.fromarray(noise(5, 7)), exif=exif), "turned.png")
    np.testing.assert_array_equal(upright, np.rot90(noise(5, 7), -1))


def test_transparency_shows_white():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    shown = decode(encoded(Image.fromarray(rgba, "RGBA")), "a.png")
    assert shown[0, 0].tolist() == [10, 20, 30]
    assert shown[1, 1].tolist() == [255, 255, 255]


def test_palette_with_a_transparent_entry():
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert decode(encoded(palette), "a.png").tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert decode(encoded(palette, transparency=1), "a.png").tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_sixteen_bits_are_scaled_and_not_clipped():
    ramp = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    assert decode(encoded(Image.fromarray(ramp)), "a.png")[..., 0].tolist() == [[0, 1, 128, 255]]


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "YCbCr", "LA"])
def test_other_modes_become_rgb(mode):
    kind = {"CMYK": "tiff", "YCbCr": "tiff"}.get(mode, "png")
    image = Image.fromarray(noise(6, 4)).convert(mode)
    decoded = decode(encoded(image, kind), "a")
    assert decoded.shape == (6, 4, 3) and decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, np.asarray(image.convert("RGB")))


def test_thirty_two_bits_are_refused():
    with pytest.raises(TaskError, match=r"deep\.tiff.*32-bit"):
        decode(encoded(Image.fromarray(np.ones((2, 2), np.float32)), "tiff"), "deep.tiff")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp", "gif", "tiff"])
def test_truncated_and_corrupt_files_are_named(tmp_path, kind):
    whole = encoded(Image.fromarray(noise(64, 64)), kind)
    cut = tmp_path / f"cut.{kind}"
    cut.write_bytes(whole[: min(1024, len(whole) // 2)])
    with pytest.raises(TaskError, match=rf"cut\.{kind}"):
        read_image(cut)


def test_a_damaged_png_is_named(tmp_path):
    whole = bytearray(encoded(Image.fromarray(noise(64, 64))))
    whole[200:400] = bytes(200)
    (tmp_path / "bad.png").write_bytes(whole)
    with pytest.raises(TaskError, match=r"bad\.png"):
        read_image(tmp_path / "bad.png")


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_named(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(TaskError, match=r"x\.png"):
        read_image(tmp_path / "x.png")


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(TaskError, match=r"gone\.png: no such"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(TaskError, match="cannot be read"):
        read_image(tmp_path)


def test_too_many_bytes_are_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    (tmp_path / "big.png").write_bytes(bytes(101))
    with pytest.raises(TaskError, match=r"big\.png: 101 bytes"):
        read_image(tmp_path / "big.png")
    with pytest.raises(TaskError, match="101 bytes"):
        decode(bytes(101), "sent")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp", "gif", "tiff", "ppm"])
def test_a_header_and_an_end_tell_whether_a_file_can_be_read(tmp_path, kind, monkeypatch):
    whole = encoded(Image.fromarray(noise(64, 64)), kind)
    sound, cut, empty, text = paths = [tmp_path / f"{name}.{kind}" for name in ("sound", "cut", "empty", "text")]
    for path, data in zip(paths, (whole, whole[:-150], b"", b"no image" * 20), strict=True):
        path.write_bytes(data)
    check_images(Files((str(sound),)), Subset(Files((str(cut), str(sound))), (1,)))
    for path in (cut, empty, text, tmp_path / "gone.png", tmp_path):
        with pytest.raises(TaskError, match=rf"{path.name}"):
            check_images(Files((str(sound), str(path))))
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 63)
    with pytest.raises(TaskError, match="64 x 64 pixels"):
        check_images(Files((str(sound),)))


def test_a_sound_file_is_not_decoded_and_a_strange_end_is_no_fault(tmp_path, monkeypatch):
    from PIL import ImageFile

    decoded, load = [], ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: decoded.append(1) or load(self))
    for kind in ("png", "jpeg", "gif"):
        whole = encoded(Image.fromarray(noise(64, 64)), kind)
        (tmp_path / f"sound.{kind}").write_bytes(whole)
        (tmp_path / f"more.{kind}").write_bytes(whole + bytes(1000))  # as phones do, which append a film
        decoded.clear()
        check_images(Files((str(tmp_path / f"sound.{kind}"),)))
        assert not decoded
        check_images(Files((str(tmp_path / f"more.{kind}"),)))
        assert decoded


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that promises width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8200, 60_000])
def test_decompression_bombs_are_refused_before_decoding(side, monkeypatch):
    def decoded(*_):
        raise AssertionError("it was decoded")

    from PIL import PngImagePlugin

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", decoded)
    with pytest.raises(TaskError, match=r"bomb\.png.*(pixels|too large)"):
        decode(bomb(side, side), "bomb.png")


def test_errors_are_a_users_mistake():
    with pytest.raises(KeyholeError) as raised:
        decode(b"", "empty.png")
    assert raised.value.exit_code == 2 and "it is empty" in str(raised.value)


def test_digest_tells_content_shape_and_type_apart():
    image = noise(4, 6)
    assert digest(image) == digest(np.asfortranarray(image)) == digest(image.copy())
    others = [noise(4, 6, seed=1), image.reshape(6, 4, 3), image.astype(np.int16), image[:, ::-1]]
    assert len({digest(image), *map(digest, others)}) == 5


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
def test_a_very_long_image_takes_no_gigabytes(size):
    """Its middle is what the centre crop sees anyway; an image that is not so long is not touched."""
    preprocess = Preprocess(size=32, mean=(0.0,) * 3, std=(1.0,) * 3)
    white = Image.new("RGB", size, "white")
    assert max(_shortened(white).size) == LONGEST and (preprocess.pixels([white]) == 1).all()
    line = Image.fromarray(noise(8, 8 * 60))
    assert _shortened(line) is line
    middle = line.crop((8 * 28, 0, 8 * 32, 8))
    np.testing.assert_allclose(preprocess.pixels([line])[0, :, :, 8:24], preprocess.pixels([middle])[0, :, :, 8:24])
