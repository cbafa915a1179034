import os
import shlex
from pathlib import Path

import pytest
from command_line import load_script, run
from image_files import photograph

import train_imagenet
from datasets import prepare
from datasets.folders import write_lists
from datasets.image_list import find_missing, read_image_list
from utils.errors import InputError


def write_pictures(folder, *names):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        photograph(i, 24, 32).save(folder / name)


def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def photos(tmp_path):
    """Classes of 5, 2 and 1 pictures, outliers, and two folders of OOD pictures."""
    write_pictures(tmp_path / "photos", *(f"lynx/{i}.jpg" for i in range(2)), "golden retriever/x.webp")
    write_pictures(tmp_path / "photos", *(f"cat/{i}.png" for i in range(3)), "cat/summer/1.JPEG", "cat/9.GIF")
    write_pictures(tmp_path / "things", "a b.png", "deep/er/c.bmp")
    write_pictures(tmp_path / "far" / "sky", "1.png")
    write_pictures(tmp_path / "far" / "sea", "1.png", "2.png")
    return tmp_path


def test_every_list_from_folders(photos):
    out = photos / "lists"
    ood = [photos / "far" / "sky", photos / "far" / "sea"]
    write_lists(photos / "photos", out, outliers=photos / "things", ood=ood, test_share=0.4)
    assert {p.name for p in out.iterdir()} == {
        *("train.txt", "test.txt", "classes.txt", "outliers.txt", "ood_sky.txt", "ood_sea.txt")
    }
    assert lines_of(out / "classes.txt") == ["cat", "golden retriever", "lynx"]
    assert lines_of(out / "train.txt") == [
        "cat/0.png 0",
        "cat/1.png 0",
        "cat/2.png 0",
        "golden retriever/x.webp 1",
        "lynx/0.jpg 2",
    ]
    assert lines_of(out / "test.txt") == ["cat/9.GIF 0", "cat/summer/1.JPEG 0", "lynx/1.jpg 2"]
    assert lines_of(out / "outliers.txt") == ["things/a b.png", "things/deep/er/c.bmp"]
    assert lines_of(out / "ood_sky.txt") == ["far/sky/1.png"]
    assert lines_of(out / "ood_sea.txt") == ["far/sea/1.png", "far/sea/2.png"]
    for name, root in (("train", "photos"), ("test", "photos"), ("outliers", "."), ("ood_sea", ".")):
        labels = None if root == "." else range(3)
        paths, _ = read_image_list(out / f"{name}.txt", photos / root, labels)
        assert paths and find_missing(paths, photos / root) == []


def test_a_long_tail_takes_as_much_as_the_classes_admit(tmp_path):
    for name, size in (("a", 3), ("b", 30), ("c", 12), ("d", 8)):
        write_pictures(tmp_path / "photos", *(f"{name}/{i:02}.png" for i in range(size)))
    report = write_lists(tmp_path / "photos", tmp_path / "lists", rho=0.1)
    assert lines_of(tmp_path / "lists" / "classes.txt") == ["b", "c", "d", "a"]
    labels = [int(line.split()[-1]) for line in lines_of(tmp_path / "lists" / "train.txt")]
    # int(27 * 0.1 ** (c / 3)) is 27, 12, 5, 2; with 28, class 1 would need int(12.996) = 12 as well; with 29,
    # 13, which it does not have.
    assert [labels.count(c) for c in range(4)] == [28, 12, 6, 2]
    assert lines_of(tmp_path / "lists" / "train.txt")[:28] == [f"b/{i:02}.png 0" for i in range(28)]
    assert "4 classes of 2 to 28 training pictures" in report
    (tmp_path / "ids.txt").write_text("a\nb\n")
    write_lists(tmp_path / "photos", tmp_path / "two", rho=0.5, class_ids=tmp_path / "ids.txt")
    labels = [int(line.split()[-1]) for line in lines_of(tmp_path / "two" / "train.txt")]
    assert [labels.count(c) for c in range(2)] == [3, 1]
    with pytest.raises(InputError, match="rho .* leaves class 3 without an image"):
        write_lists(tmp_path / "photos", tmp_path / "none", rho=0.01)


def test_what_is_left_out_is_said(photos):
    images = photos / "photos"
    for name in ("cat/IMG_1.heic", "cat/notes.TXT", "lynx/.DS_Store", "lynx/noise"):
        (images / name).write_bytes(b"")
    write_pictures(images, "loose.png", ".thumbnails/1.png")
    (images / "empty").mkdir()
    report = write_lists(images, photos / "lists", test_share=0.4)
    assert lines_of(photos / "lists" / "classes.txt") == ["cat", "golden retriever", "lynx"]
    assert f"1 pictures outside the class folders of {images}" in report
    for what in (".heic", ".txt", "hidden files", "files without an ending", "folders without a picture"):
        assert f"1 {what}" in report, what
    assert "1 classes have one picture, and none in test.txt" in report


def test_folders_within_class_folders_are_said(tmp_path):
    """A folder of splits gives the classes "train" and "val"."""
    write_pictures(tmp_path / "photos", "train/cat/1.png", "train/lynx/1.png", "val/cat/2.png")
    report = write_lists(tmp_path / "photos", tmp_path / "lists")
    assert "3 pictures are in folders within their class's folder" in report
    report = write_lists(tmp_path / "photos" / "train", tmp_path / "right")
    assert "folders within" not in report and "2 classes" in report


def test_links_are_followed_and_loops_end(photos):
    write_pictures(photos / "disk", "1.png", "2.png")
    images = photos / "photos"
    (images / "fish").symlink_to(photos / "disk")
    (images / "cat" / "more").symlink_to(photos / "far")
    (photos / "far" / "loop").symlink_to(images / "cat")
    write_lists(images, photos / "lists")
    train = lines_of(photos / "lists" / "train.txt")
    assert "fish/1.png 1" in train and "cat/more/sky/1.png 0" in train
    assert len(train) == len(set(train)) == 8 + 2 + 3
    (images / "lynx" / "gone.jpg").symlink_to(photos / "nowhere.jpg")
    with pytest.raises(InputError, match="'gone.jpg' in .*lynx is a broken link"):
        write_lists(images, photos / "again")


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ("cat\ndog\nfox\n", "2 of 3 class ids, the first: dog, fox"),
        ("cat\nlynx\ncat\n", "line 3.*twice"),
        ("../photos/cat\n", "climbs"),
        ("\n", "no class id"),
        ("lynx\nempty\n", "empty holds no picture"),
    ],
)
def test_bad_class_ids(photos, ids, reason):
    (photos / "ids.txt").write_text(ids)
    (photos / "photos" / "empty").mkdir()
    with pytest.raises(InputError, match=reason):
        write_lists(photos / "photos", photos / "lists", class_ids=photos / "ids.txt")
    assert not (photos / "lists").exists()


def test_class_ids_order_the_labels_and_a_list_of_classes_is_one(photos):
    (photos / "ids.txt").write_text("lynx Lynx lynx, a cat\n\ngolden retriever\n")
    write_lists(photos / "photos", photos / "lists", class_ids=photos / "ids.txt")
    train = ["lynx/0.jpg 0", "lynx/1.jpg 0", "golden retriever/x.webp 1"]
    assert lines_of(photos / "lists" / "train.txt") == train
    write_lists(photos / "photos", photos / "again", class_ids=photos / "lists" / "classes.txt")
    assert lines_of(photos / "again" / "train.txt") == train


@pytest.mark.parametrize("name", [b"a\nx.jpg", b"\xff.jpg"])
def test_names_that_would_break_a_list(photos, name):
    Path(os.fsdecode(os.fsencode(photos / "photos" / "cat") + b"/" + name)).write_bytes(b"")
    with pytest.raises(InputError, match="unprintable character"):
        write_lists(photos / "photos", photos / "lists")


def test_a_name_that_begins_with_a_space(photos):
    write_pictures(photos / "things", " x.png")
    with pytest.raises(InputError, match="' x.png' in .*things begins with a space"):
        write_lists(photos / "photos", photos / "lists", outliers=photos / "things")


def test_folders_may_not_overlap(photos):
    inside = photos / "photos" / "lynx"
    for others in (
        {"outliers": inside},
        {"ood": [photos]},
        {"outliers": photos / "far", "ood": [photos / "far"]},
    ):
        with pytest.raises(InputError, match="is inside .* may not overlap"):
            write_lists(photos / "photos", photos / "lists", **others)
    write_pictures(photos / "near" / "sky", "1.png")
    with pytest.raises(InputError, match="named 'sky'; rename one"):
        write_lists(
            photos / "photos", photos / "lists", ood=[photos / "far" / "sky", photos / "near" / "sky"]
        )
    assert not (photos / "lists").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda root: {"outliers": root / "nowhere"}, "nowhere is missing"),
        (lambda root: {"ood": [root / "empty"]}, "empty holds no picture"),
        (lambda root: {"images": root / "empty"}, "empty has no folder with pictures"),
        (lambda root: {"images": root / "photos" / "cat" / "summer"}, "has no folder with pictures"),
    ],
)
def test_folders_that_cannot_be_used(photos, change, reason):
    (photos / "empty").mkdir()
    with pytest.raises(InputError, match=reason):
        write_lists(**{"images": photos / "photos", "out": photos / "lists"} | change(photos))
    assert not (photos / "lists").exists()


def test_nothing_is_overwritten(photos):
    write_lists(photos / "photos", photos / "lists")
    before = (photos / "lists" / "train.txt").read_bytes()
    with pytest.raises(InputError, match="train.txt exists already"):
        write_lists(photos / "photos", photos / "lists", ood=[photos / "far" / "sky"])
    assert (photos / "lists" / "train.txt").read_bytes() == before
    assert not (photos / "lists" / "ood_sky.txt").exists()


def test_the_folder_one_stands_in_has_a_name(photos, monkeypatch):
    monkeypatch.chdir(photos / "far")
    write_lists(photos / "photos", photos / "lists", ood=[Path(".")])
    assert len(lines_of(photos / "lists" / "ood_far.txt")) == 3


def test_without_outliers_the_commands_say_so(photos):
    report = write_lists(photos / "photos", photos / "lists", ood=[photos / "far"], test_share=0.4)
    train, test = report.splitlines()[-2:]
    assert "train_imagenet.py" in train and "--oe False" in train and "txt_ood_train" not in report
    assert "test_imagenet.py" in test and "--calibration none" in test
    report = write_lists(photos / "photos", photos / "train only")
    both = (
        "test_imagenet.py also needs test pictures of the classes (--test_share) and a folder of OOD images"
    )
    assert both in report and "python test_imagenet.py" not in report
    report = write_lists(photos / "photos", photos / "tested", test_share=0.4)
    assert report.endswith("test_imagenet.py also needs a folder of OOD images (--ood)")


def test_the_printed_commands_train_and_test(photos, monkeypatch, capsys):
    """From folders to a table of results, with the commands as printed, at small sizes."""
    monkeypatch.chdir(photos)
    write_pictures(photos / "photos", "lynx/7.jpg", "golden retriever/y.webp", "golden retriever/z.webp")
    folders = ["--outliers", "things", "--ood", "far/sky", "far/sea"]
    assert run(prepare.main, "imagenet", "photos", "--out", "my lists", "--test_share", "0.3", *folders) == 0
    commands = [line for line in capsys.readouterr().out.splitlines() if line.startswith("python ")]
    train, test = (shlex.split(command)[2:] for command in commands)
    small = ["--gpu", "cpu", "--num_workers", "0", "--image_size", "32"]
    sizes = ["--md", "ResNet18", "-e", "1", "-b", "4", "--ob", "2", "--randaug_n", "1"]
    assert run(train_imagenet.main, *train, *small, *sizes) == 0
    assert run(load_script("test_imagenet").main, *test, *small, "--num_cal", "7") == 0
    assert (photos / "OUT" / "results.json").is_file()
