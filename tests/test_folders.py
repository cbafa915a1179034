"""Folders of pictures as lists, and as outliers or OOD sets of CIFAR."""

import os
import shlex
from pathlib import Path

import pytest
import torch
from command_line import load_script, run
from image_files import photograph

import train_imagenet
from datasets import prepare
from datasets.cifar import load_outliers
from datasets.folders import write_lists
from datasets.image_list import read_present
from datasets.preprocessing import Preprocessing
from datasets.registry import BENCHMARKS
from utils.errors import InputError


def write_pictures(folder, *names):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        photograph(i, 24, 32).save(folder / name)


def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def photos(tmp_path):
    """Classes of 5, 1 and 2 pictures, outliers, and two folders of OOD pictures."""
    write_pictures(tmp_path / "photos", *(f"lynx/{i}.jpg" for i in range(2)), "golden retriever/x.webp")
    write_pictures(tmp_path / "photos", *(f"cat/{i}.png" for i in range(3)), "cat/summer/1.JPEG", "cat/9.GIF")
    write_pictures(tmp_path / "things", "a b.png", "deep/er/c.bmp")
    write_pictures(tmp_path / "far" / "sky", "1.png")
    write_pictures(tmp_path / "far" / "sea", "1.png", "2.png")
    return tmp_path


def test_every_list_from_folders(photos):
    out = photos / "lists"
    ood = [photos / "far" / "sky", photos / "far" / "sea"]
    lists = write_lists(photos / "photos", out, outliers=photos / "things", ood=ood, test_share=0.4)
    assert lists.num_images == 5 and lists.num_outliers == 2
    names = "train.txt", "test.txt", "classes.txt", "outliers.txt", "ood_sky.txt", "ood_sea.txt"
    assert sorted(os.listdir(out)) == sorted(names)
    assert lines_of(out / "classes.txt") == ["cat", "golden retriever", "lynx"]
    train, test = lines_of(out / "train.txt"), lines_of(out / "test.txt")
    assert [line[-1] for line in train] == list("00012") and [line[-1] for line in test] == list("002")
    found = {str(path.relative_to(photos / "photos")) for path in (photos / "photos").rglob("*.*")}
    assert sorted(line[:-2] for line in train + test) == sorted(found)
    assert sorted(lines_of(out / "outliers.txt")) == ["things/a b.png", "things/deep/er/c.bmp"]
    assert lines_of(out / "ood_sky.txt") == ["far/sky/1.png"]
    assert lines_of(out / "ood_sea.txt") == ["far/sea/1.png", "far/sea/2.png"]
    for name, file in lists.files.items():
        read_present(file, *((lists.iidp, range(3)) if name in ("train", "test") else (lists.iodp, None)))


def test_the_split_is_random_and_follows_the_seed(tmp_path):
    write_pictures(tmp_path / "photos", *(f"{name}/{i:02}.png" for name in "ab" for i in range(30)))
    write_pictures(tmp_path / "things", *(f"{i:02}.png" for i in range(30)))
    tests = []
    for out, seed in (("1", 0), ("2", 0), ("3", 1)):
        things = tmp_path / "things"
        write_lists(tmp_path / "photos", tmp_path / out, outliers=things, test_share=0.2, seed=seed)
        tests.append(lines_of(tmp_path / out / "test.txt"))
        train = lines_of(tmp_path / out / "train.txt")
        assert len(tests[-1]) == 12 and len(train) == 48 and not set(train) & set(tests[-1])
        for lines in (train[:24], lines_of(tmp_path / out / "outliers.txt")):
            assert lines != sorted(lines)  # --val_fraction holds out the last ones
    assert tests[0] == tests[1] != tests[2]
    assert tests[0] != [f"{name}/{i}.png {label}" for label, name in enumerate("ab") for i in range(24, 30)]


@pytest.mark.parametrize(
    "train, test, named", [("train", "test", 0), ("train", "test", 1), ("Training", "Test", 0)]
)
def test_ready_train_and_test_folders(tmp_path, train, test, named):
    photos = tmp_path / "photos"
    names = f"{train}/cat/1.png", f"{train}/cat/2.png", f"{train}/dog/1.png", f"{test}/dog/9.png"
    write_pictures(photos, *names)
    folders = {"images": photos / train, "test": photos / test} if named else {"images": photos}
    lists = write_lists(**folders, out=tmp_path / "lists")
    lines = [f"{name} {label}" for name, label in zip(names, (0, 0, 1, 1), strict=True)]
    assert sorted(lines_of(lists.files["train"])) == lines[:3] and lists.iidp == photos
    assert lines_of(lists.files["test"]) == lines[3:]
    write_pictures(photos, f"{test}/fox/1.png")
    with pytest.raises(InputError, match=f"{test} has classes that .*{train} lacks: fox"):
        write_lists(**folders, out=tmp_path / "again")


def test_one_class_is_refused_before_anything_is_written(tmp_path):
    write_pictures(tmp_path / "photos", "dataset/cat/1.png", "dataset/dog/1.png")
    with pytest.raises(InputError, match="the class dataset alone"):
        write_lists(tmp_path / "photos", tmp_path / "lists")
    assert not (tmp_path / "lists").exists()


def test_a_long_tail_takes_as_much_as_the_classes_admit(tmp_path):
    for name, size in (("a", 3), ("b", 30), ("c", 12), ("d", 8)):
        write_pictures(tmp_path / "photos", *(f"{name}/{i:02}.png" for i in range(size)))
    lists = write_lists(tmp_path / "photos", tmp_path / "lists", test_share=0, rho=0.1)
    assert lines_of(tmp_path / "lists" / "classes.txt") == ["b", "c", "d", "a"] and "test" not in lists.files
    # int(27 * 0.1 ** (c / 3)) is 27, 12, 5, 2; with 28, class 1 would need int(12.996) = 12 as well; with 29,
    # 13, which it does not have.
    assert [line[-1] for line in lines_of(lists.files["train"])] == list("0" * 28 + "1" * 12 + "2" * 6 + "33")
    assert "4 classes of 2 to 28 " in lists.report[-2] and lists.report[-1].startswith("2 of them")


def test_what_is_left_out_is_said(photos):
    images = photos / "photos"
    for name in ("cat/IMG_1.heic", "cat/notes.TXT", "lynx/.DS_Store"):
        (images / name).write_bytes(b"")
    write_pictures(images, "loose.png", ".thumbnails/1.png")
    (images / "empty").mkdir()
    report = write_lists(images, photos / "lists").report[-1]
    assert lines_of(photos / "lists" / "classes.txt") == ["cat", "golden retriever", "lynx"]
    for what in (".heic", ".txt", "pictures outside the classes' folders"):
        assert f"1 {what}" in report, what


def test_links_are_followed_and_loops_end(photos):
    write_pictures(photos / "disk", "1.png", "2.png")
    images = photos / "photos"
    (images / "fish").symlink_to(photos / "disk")
    (images / "cat" / "more").symlink_to(photos / "far")
    (photos / "far" / "loop").symlink_to(images / "cat")
    write_lists(images, photos / "lists", test_share=0)
    train = lines_of(photos / "lists" / "train.txt")
    assert "fish/1.png 1" in train and "cat/more/sky/1.png 0" in train
    assert len(train) == len(set(train)) == 8 + 2 + 3


@pytest.mark.parametrize(
    ("folders", "named"),
    [
        ({"outliers": "photos/lynx"}, "lynx is inside .*photos"),
        ({"ood": ["."]}, "photos is inside "),
        ({"ood": ["far/sky", "near/sky"]}, "names"),
        ({"images": "nowhere"}, "nowhere"),
        ({"images": "split"}, "split holds train, val"),
        ({"ood": ["empty"]}, "empty"),
        ({"images": "photos/cat/summer"}, "summer"),
    ],
)
def test_folders_that_cannot_be_used(photos, folders, named, monkeypatch):
    monkeypatch.chdir(photos)
    write_pictures(photos, "near/sky/1.png", "split/train/cat/1.png", "split/val/cat/2.png")
    (photos / "empty").mkdir()
    as_paths = {k: [Path(p) for p in v] if k == "ood" else Path(v) for k, v in folders.items()}
    with pytest.raises(InputError, match=named):
        write_lists(**{"images": Path("photos"), "out": Path("lists")} | as_paths)
    assert not (photos / "lists").exists()


def commands(capsys, *argv):
    """What prepare prints as commands: the arguments of train_imagenet.py and of test_imagenet.py, if any."""
    assert run(prepare.main, "imagenet", *argv) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("python ")]
    return [shlex.split(line)[2:] for line in lines]


def test_the_flags_suit_the_set(photos, capsys, monkeypatch):
    train, test = commands(capsys, photos / "photos", "--out", photos / "1")
    assert "txt_ood" not in " ".join(train + test) and "--iodp" not in train
    assert train[train.index("--oe") + 1] == "False" and test[test.index("--calibration") + 1] == "none"
    assert train[train.index("--init") + 1] == "imagenet" and int(train[train.index("-b") + 1]) < 5
    assert train[train.index("--opt") :][:4] == ["--opt", "adam", "--lr", "3e-4"]
    assert train[train.index("--image_size") + 1] == "32"  # the pictures have 24 x 32 pixels
    assert len(commands(capsys, photos / "photos", "--out", photos / "2", "--test_share", "0")) == 1
    monkeypatch.setattr(prepare, "FEW", 5)
    train, _ = commands(capsys, photos / "photos", "--out", photos / "3", "--outliers", photos / "things")
    assert "--init" not in train and "--lr" not in train and train[train.index("--ob") + 1] == "2"


@pytest.mark.parametrize(("small", "large", "size"), [(2, 1, "64"), (1, 2, None)])
def test_small_pictures_get_views_of_their_size(tmp_path, capsys, small, large, size):
    """The median of the shorter sides counts: 40 and 128 pixels here."""
    for i in range(small + large):
        (tmp_path / "photos" / str(i)).mkdir(parents=True)
        photograph(i, *((90, 40) if i < small else (130, 128))).save(tmp_path / "photos" / str(i) / "x.png")
    (tmp_path / "photos" / "0" / "y.png").write_bytes(b"broken")
    (train,) = commands(capsys, tmp_path / "photos", "--out", tmp_path / "lists", "--test_share", "0")
    assert dict(zip(train, train[1:], strict=False)).get("--image_size") == size


def test_the_printed_commands_train_and_test(photos, monkeypatch, capsys):
    """From folders to a table of results, with the commands as printed, at small sizes."""
    monkeypatch.chdir(photos)
    write_pictures(photos / "photos", *(f"{name}/y{i}.webp" for name in ("lynx", "cat") for i in range(9)))
    write_pictures(photos / "photos", *(f"golden retriever/y{i}.webp" for i in range(3)))
    folders = ["--outliers", "things", "--ood", "far/sky", "far/sea"]
    train, test = commands(capsys, "photos", "--out", "my lists", "--test_share", "0.3", *folders)
    for flag in ("--init", "--warmup_epochs"):  # the first would download a network
        del train[train.index(flag) : train.index(flag) + 2]
    small = ["--gpu", "cpu", "--num_workers", "0", "--image_size", "32"]
    assert run(train_imagenet.main, *train, *small, "-e", "1", "--randaug_n", "1") == 0
    assert run(load_script("test_imagenet").main, *test, *small, "--num_cal", "7") == 0
    assert (photos / "runs" / "my lists" / "results.json").is_file()


# --- for CIFAR

squash = Preprocessing(32, "squash").of_file


@pytest.fixture
def pictures(tmp_path):
    write_pictures(tmp_path / "pictures", *(f"{number % 2}/{number}.jpg" for number in range(6)))
    (tmp_path / "pictures" / "broken.jpg").write_bytes(b"broken")
    return tmp_path / "pictures"


def test_outliers(pictures, tmp_path, capsys):
    prepare.main(["outliers", str(pictures), "--drp", str(tmp_path)])
    out = capsys.readouterr().out
    assert "6 outliers" in out and "1 unreadable" in out
    outliers = load_outliers(tmp_path).numpy()
    squashed = {squash(path).numpy().tobytes() for path in pictures.glob("*/*.jpg")}
    assert outliers.shape == (6, 3, 32, 32) and {image.tobytes() for image in outliers} == squashed
    with pytest.raises(InputError, match="300K_random_images.npy exists already"):
        prepare.main(["outliers", str(pictures), "--drp", str(tmp_path)])


def test_an_ood_set(pictures, tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        prepare.main(["ood", "wild", str(tmp_path / "nowhere"), "--drp", str(tmp_path)])
    (pictures / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (pictures / "film.mov").write_bytes(b"frames")
    prepare.main(["ood", "wild", str(pictures), "--drp", str(tmp_path)])
    copied = [path for path in (tmp_path / "data" / "images" / "wild").rglob("*") if path.is_file()]
    assert sorted(path.name for path in copied) == sorted(path.name for path in pictures.glob("*/*.jpg"))
    expected = [squash(path) for path in sorted(pictures.glob("*/*.jpg"))]
    for name in ("cifar10", "cifar100"):
        found = BENCHMARKS[name].load_ood(["wild"], tmp_path, "squash")["wild"]
        assert found.labels.tolist() == [-1] * 6
        assert torch.equal(found.images, torch.stack(expected))
    for name, words in (("wild", "wild exists already"), ("a/b", "slash: 'a/b'")):
        with pytest.raises(InputError, match=words):
            prepare.main(["ood", name, str(pictures), "--drp", str(tmp_path)])
