from collections import Counter
from pathlib import Path

import pytest
import torch
from image_files import UNREADABLE, photograph, truncate
from PIL import Image
from torchvision.transforms import v2

from datasets import image_files
from datasets.augment.stages import HORIZONTAL_FLIP, ToFloat, View, Views
from datasets.augment.views import imagenet_views
from datasets.decoding import decode, open_picture
from datasets.imagenet import EvalImages, FileTrainLoader, ImageFiles, folder_names
from utils.errors import InputError

CPU = torch.device("cpu")
SIZE = 24
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def save_list(root, count, prefix="image"):
    root.mkdir(exist_ok=True)
    paths = [f"{prefix}{i}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        photograph(i, 40 + i % 3, 50 + i % 5).save(root / path, quality=95)
    return ImageFiles(root, paths, torch.arange(count) % 2)


def train_loader(files, outliers=None, views=None, **changes):
    settings = dict(
        image_size=SIZE, batch_size=4, outlier_batch_size=6, contrastive=True, num_workers=0, seed=5
    )
    return FileTrainLoader(files, outliers, views or imagenet_views(), device=CPU, **settings | changes)


@pytest.fixture
def files(tmp_path):
    return save_list(tmp_path / "id", 13)


@pytest.fixture
def outliers(tmp_path):
    return save_list(tmp_path / "ood", 7, prefix="outlier")


# --- the training loader


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        ("train/cat/a/1 train/dog/a/1 train/cat/b/1", ["cat", "dog"]),
        ("cat/1 lynx/2 dog/1", None),  # two folders of one class
        ("1 2 1", None),
    ],
)
def test_classes_are_named_after_the_first_folders_that_tell_them_apart(paths, names):
    labels = [int("dog" in path or path == "2") for path in paths.split()]
    assert folder_names(ImageFiles(Path(), paths.split(), torch.tensor(labels))) == names


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
    batch = next(train_loader(files, files, Views(*[View((HORIZONTAL_FLIP, ToFloat()))] * 3)).epoch(0))
    colours = ((batch.images * STD + MEAN) * 255).round().long()[:, :, 3, 4]
    for view in range(3):
        assert colours[view * 4 : view * 4 + 4, 0].tolist() == (30 * batch.indices).tolist()
    assert len(set(colours[12:, 0].tolist())) == 6  # the outliers are six different files


def test_an_image_is_read_and_decoded_once_for_its_three_views(files, outliers, monkeypatch):
    opened, decoded = Counter(), Counter()
    open_, crop = image_files.open_picture, image_files.decode_crops
    monkeypatch.setattr(image_files, "open_picture", lambda path: opened.update([path.name]) or open_(path))
    monkeypatch.setattr(image_files, "decode_crops", lambda *a: decoded.update([len(a[1])]) or crop(*a))
    next(train_loader(files, outliers).epoch(0))
    assert opened.total() == 4 + 6 and max(opened.values()) == 1
    assert decoded == {3: 4, 1: 6}  # boxes: files


def same(batches, others):
    return len(batches) == len(others) and all(
        torch.equal(a, b)
        for one, other in zip(batches, others, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def test_an_epoch_goes_on_at_any_step_whatever_the_number_of_workers(files, outliers):
    """Also where a file of each list is replaced."""
    truncate(files.root / "image3.jpg")
    truncate(outliers.root / "outlier2.jpg")
    alone = train_loader(files, outliers)
    whole = list(alone.epoch(3))
    assert not same(whole, list(train_loader(files, outliers).epoch(4)))
    assert not same(whole, list(train_loader(files, outliers, seed=6).epoch(3)))
    assert len(alone.replaced.reasons) == 2
    helped = train_loader(files, outliers, num_workers=2)
    next(helped.epoch(2))  # left after its first batch: the workers stay, and forget it
    for loader in (train_loader(files, outliers), helped, train_loader(files, outliers, num_workers=1)):
        for start in (1, 0, 2, 3):
            assert same(whole[start:], list(loader.epoch(3, start_step=start)))


def test_shares_of_the_processes_make_up_the_global_batch(files, outliers):
    alone = list(train_loader(files, outliers).epoch(2))
    shares = [list(train_loader(files, outliers, rank=rank, world_size=2).epoch(2)) for rank in range(2)]
    for batch, *parts in zip(alone, *shares, strict=True):
        assert torch.stack([part.indices for part in parts], 1).flatten().equal(batch.indices)
        assert all(part.images.shape[0] == 3 * 2 + 3 for part in parts)


# --- unreadable files in training


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_unreadable_file_is_replaced_by_one_of_its_class_and_named(files, outliers, kind):
    for root, name in ((files.root, "image3.jpg"), (outliers.root, "outlier2.jpg")):
        (root / name).write_bytes(UNREADABLE[kind])
    loader = train_loader(files, outliers, batch_size=13, outlier_batch_size=7)
    assert loader.replaced.expected == 13 + 7  # of an epoch: the first steps say little of the share
    (batch,) = loader.epoch(0)
    used = Counter(batch.indices.tolist())
    assert 3 not in used and used[5] == 2  # 5 is the next of class 1
    assert batch.labels.bincount().tolist() == [7, 6]
    list(loader.epoch(1))  # so few never stop a run, whatever their share
    assert loader.replaced.reasons.keys() == {files.root / "image3.jpg", outliers.root / "outlier2.jpg"}
    assert loader.replaced.times == 4
    (line,) = loader.report()
    assert f"{files.root}/image3.jpg" in line


def test_a_run_stops_when_more_than_one_percent_cannot_be_read(tmp_path):
    files = save_list(tmp_path / "id", 24)
    for i in range(0, 16, 2):
        truncate(files.root / f"image{i}.jpg")
    with pytest.raises(InputError, match=r"image\d+\.jpg"):
        list(train_loader(files).epoch(0))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_class_without_any_readable_file_is_an_error(files, num_workers):
    for path in files.paths[::2]:
        truncate(files.root / path)
    with pytest.raises(InputError, match=rf"^{files.root}/image\d+.jpg cannot be read"):
        list(train_loader(files, num_workers=num_workers).epoch(0))


# --- evaluation


@pytest.mark.parametrize(("height", "width"), [(40, 56), (56, 40), (31, 31), (90, 35), (12, 17)])
def test_central_crop_is_torchvisions(tmp_path, height, width):
    photograph(7, height, width).save(tmp_path / "a.jpg", quality=95)
    files = ImageFiles(tmp_path, ["a.jpg"], torch.tensor([0]))
    ((images, _),) = EvalImages(files, image_size=28, batch_size=4, num_workers=0, device=CPU)
    reference = v2.Compose([v2.Resize(32, antialias=True), v2.CenterCrop(28)])
    expected = reference(decode(open_picture(tmp_path / "a.jpg")))
    # Older versions of torch round a resized uint8 image by its memory layout: one level of 255.
    assert ((images[0] * STD + MEAN) * 255 - expected).abs().max() < 1.01


@pytest.mark.parametrize(("num_workers", "world_size"), [(0, 1), (2, 1), (2, 3), (0, 14)])
def test_every_image_counts_once(files, num_workers, world_size):
    """Of 13; one of 14 processes has none."""
    labels = torch.arange(len(files.paths))
    seen = []
    for rank in range(world_size):
        numbered = files._replace(labels=labels)
        share = dict(num_workers=num_workers, rank=rank, world_size=world_size)
        batches = EvalImages(numbered, image_size=SIZE, batch_size=4, device=CPU, **share)
        parts = list(batches)
        assert all(images.shape == (len(part), 3, SIZE, SIZE) for images, part in parts)
        seen += [label for _, part in parts for label in part.tolist()]
    assert sorted(seen) == labels.tolist()
    assert world_size > 1 or seen == labels.tolist()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_image_can_give_its_place_to_the_next_of_its_class(files, num_workers):
    settings = dict(image_size=SIZE, batch_size=4, num_workers=num_workers, device=CPU)
    intact = torch.cat([images for images, _ in EvalImages(files, **settings)])
    for name in ("image9.jpg", "image12.jpg"):  # of 13, in two classes by turns
        truncate(files.root / name)
    batches = EvalImages(files, **settings, replace=True)
    images, labels = map(torch.cat, zip(*batches, strict=True))
    assert labels.tolist() == files.labels.tolist()
    expected = [*range(9), 11, 10, 11, 0]
    assert torch.equal(images, intact[expected])
    (line,) = batches.replaced.report()
    assert "image9.jpg" in line and "image12.jpg" in line
    with pytest.raises(InputError, match=r"^\S+image9.jpg cannot be read"):
        list(EvalImages(files, **settings))
