import contextlib
import importlib
import os
import re
import runpy
import sys

import numpy as np
import pytest
import torch
import torchvision
from image_files import UNREADABLE, locked_file, photograph, truncate
from PIL import Image, ImageOps, WebPImagePlugin, features
from torchvision.transforms import v2

from datasets import decoding
from datasets.decoding import (
    JPEG_DECODERS,
    Unreadable,
    decode_image,
    decoding_shrink,
    is_for_gpu,
    jpeg_decoder,
    open_image,
    read_again,
    resized_crops,
)

SIZE = 24


CPU = torch.device("cpu")
WORKING = {}
for name in JPEG_DECODERS:
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
        WORKING[name] = JPEG_DECODERS[name]


@pytest.fixture(params=[*JPEG_DECODERS, "Pillow"])
def decoder(request, monkeypatch):
    """Has plain JPEG files decoded by each decoder that is installed, or by Pillow."""
    if request.param not in WORKING and request.param != "Pillow":
        pytest.skip(f"{request.param} is not installed")
    monkeypatch.setattr(decoding, "jpeg_decoder", lambda device: (WORKING.get(request.param), ""))
    return request.param


def upright(path):
    return np.asarray(decode_image(open_image(path)).permute(1, 2, 0)).astype(int)


def test_every_decoder_gives_the_same_pixels(tmp_path, decoder):
    picture = photograph(1, 200, 301)
    picture.save(tmp_path / "plain.jpg")
    picture.save(tmp_path / "coarse.jpg", quality=30, subsampling="4:2:0")
    picture.save(tmp_path / "fine.jpg", quality=100, subsampling="4:4:4")
    picture.save(tmp_path / "progressive.jpg", progressive=True)
    picture.convert("L").save(tmp_path / "grey.jpg")
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg")
    exif = Image.Exif()
    for orientation in (1, 6):
        exif[0x0112] = orientation
        picture.save(tmp_path / f"turned{orientation}.jpg", exif=exif)
    picture.save(tmp_path / "broken.jpg", exif=b"Exif\x00\x00not a TIFF header at all")
    for path in tmp_path.iterdir():
        expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB")).astype(int)
        assert abs(upright(path) - expected).max() <= 2, path.name


def test_every_decoder_notices_a_truncated_file(tmp_path, decoder):
    photograph(1).save(tmp_path / "a.jpg")
    truncate(tmp_path / "a.jpg")
    with pytest.raises(Unreadable):
        decode_image(open_image(tmp_path / "a.jpg"))


def test_the_first_decoder_that_works_is_taken_and_pillow_without_any(tmp_path, monkeypatch):
    photograph(1).save(tmp_path / "a.jpg")
    expected, choose = upright(tmp_path / "a.jpg"), jpeg_decoder.__wrapped__

    def lacking(files, device):
        raise ImportError("No module named 'lacking'")

    def other(files, device):
        return [torch.zeros(3, 16, 16, dtype=torch.uint8) for _ in files]

    monkeypatch.setattr(decoding, "JPEG_DECODERS", {"lacking": lacking, "other": other})
    assert choose(CPU) == (other, "lacking: No module named 'lacking'")
    monkeypatch.setattr(decoding, "JPEG_DECODERS", {"lacking": lacking})
    assert choose(CPU) == (None, "lacking: No module named 'lacking'")
    monkeypatch.setattr(decoding, "jpeg_decoder", choose)
    np.testing.assert_array_equal(upright(tmp_path / "a.jpg"), expected)


def test_a_torchvision_without_decoders_is_no_obstacle(tmp_path, monkeypatch):
    photograph(1).save(tmp_path / "a.jpg")
    for name in ("decode_jpeg", "ImageReadMode"):
        monkeypatch.delattr(torchvision.io, name)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    fresh = runpy.run_path(decoding.__file__)
    decode, reasons = fresh["jpeg_decoder"](CPU)
    assert decode is None and reasons.startswith("torchvision: cannot import name")
    image = fresh["decode_image"](fresh["open_image"](tmp_path / "a.jpg"))
    np.testing.assert_array_equal(image.permute(1, 2, 0), np.asarray(Image.open(tmp_path / "a.jpg")))


def test_odd_files_show_the_same_picture(tmp_path):
    picture = photograph(2)
    gray = picture.convert("L")
    gray.save(tmp_path / "gray.jpg", quality=98)
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=98)
    picture.save(tmp_path / "really_png.jpg", format="PNG")
    picture.quantize(200).save(tmp_path / "palette.png")
    picture.convert("RGBA").save(tmp_path / "alpha.png")
    picture.save(tmp_path / "progressive.jpg", quality=98, progressive=True)
    expected = np.asarray(picture).astype(int)
    assert abs(upright(tmp_path / "gray.jpg") - np.asarray(gray.convert("RGB"))).mean() < 2
    np.testing.assert_array_equal(upright(tmp_path / "really_png.jpg"), expected)
    np.testing.assert_array_equal(upright(tmp_path / "alpha.png"), expected)
    for name in ("cmyk.jpg", "progressive.jpg"):
        assert abs(upright(tmp_path / name) - expected).mean() < 3, name
    assert abs(upright(tmp_path / "palette.png") - expected).mean() < 12


def test_an_orientation_after_the_pixels_of_a_png_changes_nothing(tmp_path):
    """The header does not have it, so crops are drawn for the picture as it is stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph(0, 40, 56).save(tmp_path / "x.png", exif=exif)
    raw = (tmp_path / "x.png").read_bytes()
    start = raw.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(raw[start : start + 4], "big")
    (tmp_path / "x.png").write_bytes(raw[:start] + raw[end:-12] + raw[start:end] + raw[-12:])
    encoded = open_image(tmp_path / "x.png")
    decoded = decode_image(encoded)
    assert (encoded.height, encoded.width) == tuple(decoded.shape[1:]) == (40, 56)


def test_16_bit_grey_keeps_its_high_byte(tmp_path):
    values = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50) * 32
    Image.fromarray(values).save(tmp_path / "a.png")
    expected = np.repeat((values >> 8)[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(upright(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path, orientation):
    picture = photograph(3)
    undo = {
        2: "FLIP_LEFT_RIGHT",
        3: "ROTATE_180",
        4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE",
        6: "ROTATE_90",
        7: "TRANSVERSE",
        8: "ROTATE_270",
    }
    stored = (
        picture.transpose(getattr(Image.Transpose, undo[orientation])) if orientation in undo else picture
    )
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.jpg", quality=98, exif=exif)
    encoded = open_image(tmp_path / "turned.jpg")
    assert (encoded.width, encoded.height) == picture.size
    assert abs(upright(tmp_path / "turned.jpg") - np.asarray(picture).astype(int)).mean() < 2


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_unreadable_files_are_refused(tmp_path, kind):
    (tmp_path / "a.jpg").write_bytes(UNREADABLE[kind])
    with pytest.raises(Unreadable):
        decode_image(open_image(tmp_path / "a.jpg"))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("empty", "it has 0 bytes"),
        ("text", "it is no image of the formats JPEG, PNG"),
        ("truncated", "^Image is incomplete or truncated$"),
        ("gigabytes", "60,000 x 60,000|bomb"),
        ("a strip", "60000 x 10 pixels"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_reason_is_told(tmp_path, kind, reason):
    (tmp_path / "a.jpg").write_bytes(UNREADABLE[kind])
    assert re.search(reason, read_again(tmp_path / "a.jpg"))


def test_the_reason_of_other_accidents(tmp_path, monkeypatch):
    assert read_again(tmp_path / "a.jpg") == "No such file or directory"
    assert read_again(tmp_path) == "it is not a file"
    with locked_file("a.png") as path:
        assert read_again(path) == "Permission denied"
    photograph(1).save(tmp_path / "a.webp")
    monkeypatch.setattr(WebPImagePlugin, "SUPPORTED", False)
    monkeypatch.setattr(features, "check", lambda name: name != "webp")
    with pytest.warns(match="WEBP support not installed"):
        assert read_again(tmp_path / "a.webp").endswith("this Pillow was built without a decoder for WEBP")


def test_missing_files_folders_and_pipes_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "missing.jpg", "."):
        with pytest.raises(Unreadable):
            open_image(tmp_path / name)


def test_a_gpu_gets_whole_plain_jpegs_and_boxes_that_cuda_can_reduce(tmp_path):
    picture = Image.new("RGB", (65 * SIZE, 40))
    picture.save(tmp_path / "plain.jpg")
    picture.convert("L").save(tmp_path / "grey.jpg")
    picture.save(tmp_path / "png.jpg", format="PNG")
    for name in ("plain.jpg", "grey.jpg", "png.jpg"):
        encoded = open_image(tmp_path / name)
        assert is_for_gpu(encoded, torch.tensor([[0, 0, 40, 64 * SIZE]]), SIZE) is (name == "plain.jpg")
        assert not is_for_gpu(encoded, torch.tensor([[0, 0, 9, 9], [0, 0, 40, 65 * SIZE]]), SIZE)
    truncate(tmp_path / "plain.jpg", 0.99)
    assert not is_for_gpu(open_image(tmp_path / "plain.jpg"), torch.tensor([[0, 0, 9, 9]]), SIZE)


def test_crops_of_large_photographs_are_decoded_smaller_and_look_the_same(tmp_path):
    photograph(6, 1200, 1600).save(tmp_path / "a.jpg", quality=95)
    encoded = open_image(tmp_path / "a.jpg")
    boxes = torch.tensor([[100, 200, 900, 1100], [600, 800, 100, 104]])
    assert decoding_shrink(encoded, boxes, SIZE) == 4
    assert decoding_shrink(encoded, boxes[:1], SIZE) == 8
    assert decoding_shrink(encoded, boxes, 60) == 1
    exact = resized_crops(decode_image(encoded), boxes, SIZE)
    quick = resized_crops(decode_image(open_image(tmp_path / "a.jpg"), 4), boxes, SIZE, 4)
    for a, b in zip(exact, quick, strict=True):
        assert (a.int() - b.int()).abs().float().mean() < 2


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "bmp", "gif"])
def test_large_files_of_every_format_are_cropped_where_the_box_is(tmp_path, kind):
    """Red left, blue right, and a box on the right that is large enough for a JPEG to be decoded smaller."""
    picture = Image.new("RGB", (240, 200), (255, 0, 0))
    picture.paste((0, 0, 255), (120, 0, 240, 200))
    picture.save(tmp_path / f"a.{kind}")
    encoded, boxes = open_image(tmp_path / f"a.{kind}"), torch.tensor([[90, 130, 100, 100]])
    shrink = decoding_shrink(encoded, boxes, SIZE)
    assert (shrink > 1) is (kind == "jpg")
    (view,) = resized_crops(decode_image(encoded, shrink), boxes, SIZE, shrink)
    assert (view.float().mean((1, 2)) - torch.tensor([0.0, 0.0, 255.0])).abs().max() < 12


def test_crops_equal_torchvisions(tmp_path):
    photograph(0).save(tmp_path / "a.jpg", quality=95)
    image = decode_image(open_image(tmp_path / "a.jpg"))
    (crop,) = resized_crops(image, torch.tensor([[3, 5, 30, 41]]), SIZE)
    expected = v2.functional.resized_crop(image, 3, 5, 30, 41, [SIZE, SIZE], antialias=True)
    assert (crop.int() - expected.int()).abs().max() <= 1  # older versions of torch round by memory layout
