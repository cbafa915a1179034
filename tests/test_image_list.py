"""Lists of images."""

import os

import pytest
import torch
from PIL import Image

from datasets.image_list import ImageFiles, list_line, overlap, read_image_list, read_present, write_lines
from utils.errors import InputError


def read(path, content, labels=range(-1, 10)):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_image_list(path, labels)


def test_formats(tmp_path):
    paths, labels = read(
        tmp_path / "list.txt",
        '\ufeffa/1.png {"label": -1, "sc_label": 4}\n\n'
        "a/2.png {'label': 3, 'sc_label': -1}\r\n"
        "  a b/3.png 7  \n"
        "./a//4.png\t-1\n"
        "a/ü.png 0\n"
        "a/4\u202fPM\u00a0.png 5\n"
        "a/{5} 6.png 1",
    )
    names = ["a/1.png", "a/2.png", "a b/3.png", "a/4.png", "a/ü.png", "a/4\u202fPM\u00a0.png", "a/{5} 6.png"]
    assert paths == names and labels.dtype == torch.int64 and labels.tolist() == [4, -1, 7, -1, 0, 5, 1]


def test_without_labels(tmp_path):
    content = 'a/1.png\nb c/2.png\na/3.png 17\na/4.png {"sc_label": 2}\n'
    paths, labels = read(tmp_path / "list.txt", content, labels=None)
    assert paths == ["a/1.png", "b c/2.png", "a/3.png", "a/4.png"] and labels.tolist() == [-1] * 4


@pytest.mark.parametrize(
    "line",
    [
        b"/etc/passwd 0",
        b"a/../../x.png 0",
        b"a.png",
        b"a.png 1_0",
        b"a.png -2",
        b"a.png 10",
        b'a.png {"label": 1}',
        b'a.png {"sc_label": 1.5}',
        b"./good.png 1",  # one file under two labels
    ],
)
def test_bad_lines_are_named(tmp_path, line):
    with pytest.raises(InputError, match="list.txt, line 3"):
        read(tmp_path / "list.txt", b"good.png 0\n\n" + line + b"\n")


def test_lists_that_are_empty_or_not_there(tmp_path):
    for content in (b"", b"\n \n"):
        with pytest.raises(InputError, match="list.txt"):
            read(tmp_path / "list.txt", content)
    with pytest.raises(InputError, match="missing.txt"):
        read_image_list(tmp_path / "missing.txt")


def test_missing_images_are_counted_and_named_and_links_are_followed(tmp_path):
    root, disk = tmp_path / "root", tmp_path / "other disk"
    (root / "a" / "folder.png").mkdir(parents=True)
    disk.mkdir()
    Image.new("RGB", (4, 4)).save(disk / "x.png")
    (root / "top.png").write_bytes(b"")
    (root / "train").symlink_to(disk)  # a set on a disk of its own
    (root / "a" / "annexed.png").symlink_to(disk / "x.png")  # a file kept by git-annex or DVC
    (root / "a" / "dropped.png").symlink_to(disk / "no such file")
    there, missing = ["top.png", "train/x.png", "a/annexed.png"], ["b/1.png", "a/folder.png", "a/dropped.png"]
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in there))
    assert read_present(tmp_path / "list.txt", root, None)[0] == there
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in there + missing))
    with pytest.raises(InputError, match="3 of 6 .*'b/1.png', 'a/folder.png', 'a/dropped.png'$"):
        read_present(tmp_path / "list.txt", root, None)


def test_overlaps_are_counted_by_file(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "a")

    def files(root, *paths):
        return ImageFiles(root, list(paths), torch.zeros(len(paths)))

    first = files(tmp_path, "a/1", "a/2", "a/2", "a/3")
    assert overlap(first, files(tmp_path, "b/1", "a/1")) == 1
    assert overlap(first, files(tmp_path / "b", "3", "2", "new")) == 2
    assert overlap(first, files(tmp_path, "c/1")) == 0


def test_names_keep_their_bytes(tmp_path):
    names = [b"caf\xe9.png", "für\u00a0dich\u202f.png".encode(), b"a\xa0", b"\xc3\x80.png"]
    (tmp_path / "images").mkdir()
    for name in names:
        (tmp_path / "images" / os.fsdecode(name)).write_bytes(b"")
    listed = os.listdir(tmp_path / "images")
    write_lines({tmp_path / "list.txt": [list_line(name, 3) for name in listed]})
    assert read_present(tmp_path / "list.txt", tmp_path / "images", None)[0] == listed
    found = (tmp_path / "list.txt").read_bytes().splitlines()
    assert sorted(found) == sorted(name + b" 3" for name in names)


@pytest.mark.parametrize("path", ["a/\n1.png", " x.png"])
def test_names_that_no_list_can_hold(path):
    with pytest.raises(InputError, match=r"x.png|1.png"):
        list_line(path)


def test_no_list_is_overwritten(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(InputError, match="a exists already"):
        write_lines({tmp_path / "b": ["new"], tmp_path / "a": ["new"]})
    assert (tmp_path / "a").read_text() == "old" and os.listdir(tmp_path) == ["a"]
