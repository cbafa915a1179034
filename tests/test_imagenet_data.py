import io
import itertools
import os
import struct
import time
import zlib
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from datasets import imagenet
from datasets.imagenet import EvalImages, FileTrainLoader, ImageFiles, Unreadable, decode_image, open_image
from datasets.views import HorizontalFlip, ToFloat, View, Views, imagenet_views
from utils.errors import InputError

CPU = torch.device("cpu")
SIZE = 24
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def photograph(seed, height=40, width=56):
    """A smooth random picture, PIL RGB: survives JPEG nearly unchanged."""
    noise = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def save_list(root, count, labels=None, prefix="image"):
    root.mkdir(exist_ok=True)
    paths = [f"{prefix}{i}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        photograph(i, 40 + i % 3, 50 + i % 5).save(root / path, quality=95)
    return ImageFiles(root, paths, torch.tensor(labels if labels is not None else [i % 2 for i in range(count)]))


def train_loader(files, outliers=None, **changes):
    settings = dict(image_size=SIZE, batch_size=4, outlier_batch_size=6, contrastive=True, num_workers=0, seed=5)
    return FileTrainLoader(files, outliers, imagenet_views(), device=CPU, **settings | changes)


@pytest.fixture
def files(tmp_path):
    return save_list(tmp_path / "id", 13)


@pytest.fixture
def outliers(tmp_path):
    return save_list(tmp_path / "ood", 7, prefix="outlier")


def upright(path):
    return np.asarray(decode_image(open_image(path)).permute(1, 2, 0)).astype(int)


def truncate(path, share=0.6):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


# --- single files


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
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
            7: "TRANSVERSE", 8: "ROTATE_270"}
    stored = picture.transpose(getattr(Image.Transpose, undo[orientation])) if orientation in undo else picture
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.jpg", quality=98, exif=exif)
    encoded = open_image(tmp_path / "turned.jpg")
    assert (encoded.width, encoded.height) == picture.size
    assert abs(upright(tmp_path / "turned.jpg") - np.asarray(picture).astype(int)).mean() < 2


def test_broken_exif_does_not_spoil_a_good_picture(tmp_path):
    photograph(4).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00not a TIFF header at all")
    np.testing.assert_array_equal(upright(tmp_path / "a.jpg"), np.asarray(Image.open(tmp_path / "a.jpg")))


def png_header(width, height):
    """A PNG that announces a size and holds nothing."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + \
        chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg_bytes(seed=1):
    stream = io.BytesIO()
    photograph(seed).save(stream, "JPEG", quality=95)
    return stream.getvalue()


UNREADABLE = {
    "empty": b"",
    "text": b"<html>404 not found</html>",
    "truncated": jpeg_bytes()[: len(jpeg_bytes()) * 6 // 10],
    "header only": jpeg_bytes()[:30],
    "gigabytes": png_header(60_000, 60_000),
    "a strip": png_header(60_000, 10),
    "not what we read": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
}


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_unreadable_files_are_refused(tmp_path, kind):
    (tmp_path / "a.jpg").write_bytes(UNREADABLE[kind])
    with pytest.raises(Unreadable):
        decode_image(open_image(tmp_path / "a.jpg"))


def test_missing_files_folders_and_pipes_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "missing.jpg", "."):
        with pytest.raises(Unreadable):
            open_image(tmp_path / name)


def test_for_the_gpu_whole_plain_jpegs_stay_bytes_and_the_rest_is_decoded(tmp_path):
    photograph(1).save(tmp_path / "plain.jpg")
    photograph(1).convert("L").save(tmp_path / "gray.jpg")
    plain, gray = (imagenet.decode_for_gpu(open_image(tmp_path / name)) for name in ("plain.jpg", "gray.jpg"))
    assert plain.numpy().tobytes() == (tmp_path / "plain.jpg").read_bytes()
    assert torch.equal(gray, decode_image(open_image(tmp_path / "gray.jpg")))
    unpacked = imagenet.Packed.pack([plain, gray, plain]).unpack()
    assert all(torch.equal(a, b) for a, b in zip(unpacked, [plain, gray, plain], strict=True))
    truncate(tmp_path / "plain.jpg")
    with pytest.raises(Unreadable):
        imagenet.decode_for_gpu(open_image(tmp_path / "plain.jpg"))


# --- the training loader


def test_batch_layout(files, outliers):
    loader = train_loader(files, outliers)
    assert len(loader) == 3
    batches = list(loader.epoch(0))
    assert len(batches) == 3
    for batch in batches:
        assert batch.images.shape == (3 * 4 + 6, 3, SIZE, SIZE) and batch.images.dtype == torch.float32
        assert batch.labels.tolist() == files.labels[batch.indices].tolist()
        unit = batch.images * STD + MEAN
        assert unit.min() > -1e-5 and unit.max() < 1 + 1e-5
    seen = torch.cat([batch.indices for batch in batches])
    assert len(set(seen.tolist())) == 12
    assert next(train_loader(files, outliers, contrastive=False).epoch(0)).images.shape[0] == 4 + 6
    assert next(train_loader(files).epoch(0)).images.shape[0] == 3 * 4


def test_views_of_a_batch_show_their_own_images(tmp_path):
    """One colour an image, and views that only crop and flip: every view must have the colour of its file."""
    for i in range(8):
        Image.new("RGB", (40, 30), (30 * i, 255 - 30 * i, 10 * i)).save(tmp_path / f"{i}.png")
    files = ImageFiles(tmp_path, [f"{i}.png" for i in range(8)], torch.arange(8))
    loader = train_loader(files, files)
    loader.views = Views(*[View((HorizontalFlip(), ToFloat()))] * 3)
    batch = next(loader.epoch(0))
    colours = ((batch.images * STD + MEAN) * 255).round().long()[:, :, 3, 4]
    for view in range(3):
        assert colours[view * 4 : view * 4 + 4, 0].tolist() == (30 * batch.indices).tolist()
    assert len(set(colours[12:, 0].tolist())) == 6  # the outliers are six different files


def test_an_image_is_read_and_decoded_once_for_its_three_views(files, outliers, monkeypatch):
    opened, decoded = Counter(), Counter()
    open_, decode = imagenet.open_image, imagenet.decode_image
    monkeypatch.setattr(imagenet, "open_image", lambda path: opened.update([path.name]) or open_(path))
    monkeypatch.setattr(imagenet, "decode_image", lambda *a: decoded.update([len(a[0].data)]) or decode(*a))
    loader = train_loader(files, outliers)
    next(loader.epoch(0))
    assert opened.total() == decoded.total() == 4 + 6 and max(opened.values()) == 1


def test_crops_of_large_photographs_are_decoded_smaller_and_look_the_same(tmp_path):
    photograph(6, 1200, 1600).save(tmp_path / "a.jpg", quality=95)
    encoded = open_image(tmp_path / "a.jpg")
    boxes = torch.tensor([[100, 200, 900, 1100], [600, 800, 100, 104]])
    assert imagenet.decoding_shrink(encoded, boxes, SIZE) == 4
    assert imagenet.decoding_shrink(encoded, boxes[:1], SIZE) == 8
    assert imagenet.decoding_shrink(encoded, boxes, 60) == 1
    exact = imagenet.resized_crops(decode_image(encoded), boxes, SIZE)
    quick = imagenet.resized_crops(decode_image(open_image(tmp_path / "a.jpg"), 4), boxes, SIZE, 4)
    for a, b in zip(exact, quick, strict=True):
        assert (a.int() - b.int()).abs().float().mean() < 2


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "bmp", "gif"])
def test_large_files_of_every_format_are_cropped_where_the_box_is(tmp_path, kind):
    """Red left, blue right, and a box on the right that is large enough for a JPEG to be decoded smaller."""
    picture = Image.new("RGB", (240, 200), (255, 0, 0))
    picture.paste((0, 0, 255), (120, 0, 240, 200))
    picture.save(tmp_path / f"a.{kind}")
    files = ImageFiles(tmp_path, [f"a.{kind}"], torch.tensor([0]))
    loader = train_loader(files, batch_size=1)
    (view,) = loader._crops(open_image(tmp_path / f"a.{kind}"), torch.tensor([[90, 130, 100, 100]]))
    assert (view.float().mean((1, 2)) - torch.tensor([0.0, 0.0, 255.0])).abs().max() < 12


def test_crops_equal_torchvisions(files):
    image = decode_image(open_image(files.root / files.paths[0]))
    (crop,) = imagenet.resized_crops(image, torch.tensor([[3, 5, 30, 41]]), SIZE)
    expected = v2.functional.resized_crop(image, 3, 5, 30, 41, [SIZE, SIZE], antialias=True)
    assert (crop.int() - expected.int()).abs().max() <= 1  # older versions of torch round by memory layout


def kept(batches):
    """The batches, with images of their own."""
    return [batch._replace(images=batch.images.clone()) for batch in batches]


def same(batches, others):
    return len(batches) == len(others) and all(
        torch.equal(a, b) for one, other in zip(batches, others, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_an_epoch_goes_on_at_any_step_whatever_the_number_of_workers(files, outliers):
    whole = kept(train_loader(files, outliers).epoch(3))
    assert same(whole[1:], kept(train_loader(files, outliers).epoch(3, start_step=1)))
    assert same(whole, kept(train_loader(files, outliers, num_workers=2).epoch(3)))
    assert same(whole[2:], kept(train_loader(files, outliers, num_workers=1).epoch(3, start_step=2)))
    assert list(train_loader(files, outliers).epoch(3, start_step=3)) == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_stays_as_it_is_until_the_next_but_one(files, outliers, num_workers):
    loader = train_loader(files, outliers, batch_size=1, num_workers=num_workers)
    whole = kept(loader.epoch(0))
    assert len(whole) == 13 > 2 * imagenet.STEPS_AHEAD + 2
    for step, (batch, later) in enumerate(itertools.pairwise(loader.epoch(0))):
        time.sleep(0.02)  # the workers go on
        assert torch.equal(batch.images, whole[step].images) and torch.equal(later.images, whole[step + 1].images)


def test_epochs_and_seeds_differ(files):
    first = kept(train_loader(files).epoch(0))
    for other in (train_loader(files).epoch(1), train_loader(files, seed=6).epoch(0)):
        assert not same(first, kept(other))


def test_shares_of_the_processes_make_up_the_global_batch(files, outliers):
    alone = list(train_loader(files, outliers).epoch(2))
    shares = [list(train_loader(files, outliers, rank=rank, world_size=2).epoch(2)) for rank in range(2)]
    for batch, *parts in zip(alone, *shares, strict=True):
        assert torch.stack([part.indices for part in parts], 1).flatten().equal(batch.indices)
        assert all(part.images.shape[0] == 3 * 2 + 3 for part in parts)


def test_an_epoch_may_need_more_outliers_than_there_are(files, tmp_path):
    few = save_list(tmp_path / "few", 2, prefix="outlier")
    assert next(train_loader(files, few).epoch(0)).images.shape[0] == 3 * 4 + 6


# --- unreadable files in training


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_unreadable_file_is_replaced_by_one_of_its_class_and_named(files, outliers, kind):
    for root, name in ((files.root, "image3.jpg"), (outliers.root, "outlier2.jpg")):
        (root / name).write_bytes(UNREADABLE[kind])
    loader = train_loader(files, outliers, batch_size=13, outlier_batch_size=7)
    (batch,) = loader.epoch(0)
    used = Counter(batch.indices.tolist())
    assert 3 not in used and used[5] == 2  # 5 is the next of class 1
    assert batch.labels.bincount().tolist() == [7, 6]
    assert loader.unreadable["image3.jpg"] == 1
    list(loader.epoch(1))
    assert loader.unreadable == {"image3.jpg": 2, "outlier2.jpg": 2}


def test_the_same_files_are_replaced_with_any_number_of_workers(files, outliers):
    truncate(files.root / "image3.jpg")
    truncate(outliers.root / "outlier2.jpg")
    alone, helped = train_loader(files, outliers), train_loader(files, outliers, num_workers=2)
    assert same(kept(alone.epoch(0)), kept(helped.epoch(0)))
    assert alone.unreadable == helped.unreadable and alone.unreadable.total() > 0


def test_a_run_stops_when_more_than_one_percent_cannot_be_read(tmp_path):
    files = save_list(tmp_path / "id", 24)
    for i in range(0, 16, 2):
        truncate(files.root / f"image{i}.jpg")
    with pytest.raises(InputError, match=r"more than 1%.*image\d+\.jpg"):
        list(train_loader(files).epoch(0))


def test_one_bad_file_in_a_small_set_never_stops_a_run(files):
    truncate(files.root / "image0.jpg")
    loader = train_loader(files, contrastive=False)
    for epoch in range(10):
        list(loader.epoch(epoch))
    assert loader.unreadable.total() > 0.01 * loader.files_read


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_class_without_any_readable_file_is_an_error(files, num_workers):
    for path in files.paths[::2]:
        truncate(files.root / path)
    with pytest.raises(InputError, match=r"^none of the 7 files in line for image\d+.jpg under \S+ can be read$"):
        list(train_loader(files, num_workers=num_workers).epoch(0))


def test_the_file_at_which_a_worker_died_is_named(files, monkeypatch):
    open_ = imagenet.open_image
    monkeypatch.setattr(imagenet, "open_image", lambda path: os._exit(1) if path.name == "image4.jpg" else open_(path))
    loader = train_loader(files, batch_size=13, num_workers=1)
    batches = EvalImages(files, image_size=SIZE, batch_size=4, num_workers=1, device=CPU)
    for consume in (lambda: list(loader.epoch(0)), lambda: list(batches)):
        with pytest.raises(InputError, match=f"died while it read {files.root}/image4.jpg: "):
            imagenet.naming_files_of_dead_workers()(consume)()


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="^out of memory$"), imagenet.naming_files_of_dead_workers():
        raise RuntimeError("out of memory")


# --- evaluation


@pytest.mark.parametrize(("height", "width"), [(40, 56), (56, 40), (31, 31), (90, 35), (12, 17)])
def test_central_crop_is_torchvisions(tmp_path, height, width):
    photograph(7, height, width).save(tmp_path / "a.jpg", quality=95)
    files = ImageFiles(tmp_path, ["a.jpg"], torch.tensor([0]))
    ((images, _),) = EvalImages(files, image_size=28, batch_size=4, num_workers=0, device=CPU)
    reference = v2.Compose([
        v2.Resize(32, antialias=True), v2.CenterCrop(28), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN.flatten().tolist(), STD.flatten().tolist()),
    ])  # fmt: skip
    # Older versions of torch round a resized uint8 image by its memory layout: one level of 255.
    expected = reference(decode_image(open_image(tmp_path / "a.jpg")))
    assert ((images[0] - expected).abs() * STD.view(3, 1, 1) <= 1.01 / 255).all()
    # Pillow rounds between the two passes of its resize, so that single levels of 255 may differ.
    by_pillow = reference(v2.functional.pil_to_tensor(v2.Resize(32)(Image.open(tmp_path / "a.jpg"))))
    assert ((images[0] - by_pillow) * STD * 255).abs().max() < 1.5


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 3])
def test_every_image_counts_once(files, num_workers, world_size):
    labels = torch.arange(len(files.paths))
    seen = []
    for rank in range(world_size):
        numbered = files._replace(labels=labels)
        share = dict(num_workers=num_workers, rank=rank, world_size=world_size)
        batches = EvalImages(numbered, image_size=SIZE, batch_size=4, device=CPU, **share)
        parts = list(batches)
        assert len(parts) == len(batches)
        assert all(images.shape == (len(part), 3, SIZE, SIZE) for images, part in parts)
        seen += torch.cat([part for _, part in parts]).tolist()
    assert sorted(seen) == labels.tolist()
    assert world_size > 1 or seen == labels.tolist()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_test_image_is_named(files, num_workers):
    truncate(files.root / "image9.jpg")
    with pytest.raises(InputError, match=r"^\S+image9.jpg cannot be decoded"):
        list(EvalImages(files, image_size=SIZE, batch_size=4, num_workers=num_workers, device=CPU))
