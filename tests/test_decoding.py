import os
import re

import numpy as np
import pytest
import torch
from image_files import UNREADABLE, locked_file, photograph, truncate
from PIL import Image, WebPImagePlugin, features
from torchvision.transforms import v2

from datasets.decoding import (
    Unreadable,
    decode_for_gpu,
    decode_image,
    decoding_shrink,
    open_image,
    read_again,
    resized_crops,
)

SIZE = 24


def upright(path):
    return np.asarray(decode_image(open_image(path)).permute(1, 2, 0)).astype(int)


def test_plain_jpeg_is_read_as_pillow_reads_it(tmp_path):
    photograph(1).save(tmp_path / "a.jpg")
    np.testing.assert_array_equal(upright(tmp_path / "a.jpg"), np.asarray(Image.open(tmp_path / "a.jpg")))


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


def test_broken_exif_does_not_spoil_a_good_picture(tmp_path):
    photograph(4).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00not a TIFF header at all")
    np.testing.assert_array_equal(upright(tmp_path / "a.jpg"), np.asarray(Image.open(tmp_path / "a.jpg")))


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


def test_for_the_gpu_whole_plain_jpegs_stay_bytes_and_the_rest_is_decoded(tmp_path):
    photograph(1).save(tmp_path / "plain.jpg")
    photograph(1).convert("L").save(tmp_path / "gray.jpg")
    plain, gray = (decode_for_gpu(open_image(tmp_path / name)) for name in ("plain.jpg", "gray.jpg"))
    assert plain.numpy().tobytes() == (tmp_path / "plain.jpg").read_bytes()
    assert torch.equal(gray, decode_image(open_image(tmp_path / "gray.jpg")))
    truncate(tmp_path / "plain.jpg")
    with pytest.raises(Unreadable):
        decode_for_gpu(open_image(tmp_path / "plain.jpg"))


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
