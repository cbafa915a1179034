import hashlib
import io
import os
import re
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from cifar_files import write_batch
from command_line import run
from PIL import Image

from datasets import prepare
from datasets.fetch import download, unpack
from datasets.outliers import map_outliers
from utils.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
CONTENT = np.random.default_rng(0).bytes(100_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """The address of a file with CONTENT."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "file").write_bytes(CONTENT)
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/file"
        server.shutdown()


def test_a_download_is_verified_and_not_repeated(url, tmp_path):
    target = tmp_path / "new" / "file"
    download(url, target, MD5)
    assert target.read_bytes() == CONTENT and os.listdir(target.parent) == ["file"]
    download("http://127.0.0.1:9/nobody", target, MD5)


@pytest.mark.parametrize(
    ("page", "md5", "check", "reason"),
    [
        ("", "0" * 32, lambda path: None, "MD5"),
        ("", None, map_outliers, "no .npy file"),
        ("/other", MD5, lambda path: None, "404"),
    ],
)
def test_a_download_that_fails_keeps_what_was_there(url, tmp_path, page, md5, check, reason):
    (tmp_path / "other").write_bytes(b"good")
    if md5:
        (tmp_path / "file").write_bytes(b"old")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(InputError, match=reason):
        download(url + page, tmp_path / "file", md5, check)
    assert sorted(os.listdir(tmp_path)) == before


def test_no_server_and_a_target_that_cannot_be_written(url, tmp_path):
    with pytest.raises(InputError, match="127.0.0.1:9/file cannot be downloaded"):
        download("http://127.0.0.1:9/file", tmp_path / "file", MD5)
    (tmp_path / "folder").write_bytes(b"")
    with pytest.raises(InputError, match="folder/file"):
        download(url, tmp_path / "folder" / "file", MD5)


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, kind, value in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            member.size = len(value) if kind == tarfile.REGTYPE else 0
            member.linkname = "" if kind == tarfile.REGTYPE else value.decode()
            archive.addfile(member, io.BytesIO(value))


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, kind, value in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = ((stat.S_IFLNK if kind == tarfile.SYMTYPE else stat.S_IFREG) | 0o644) << 16
            archive.writestr(info, value)


@pytest.fixture(params=[write_tar, write_zip])
def write(request):
    return request.param


FILE = tarfile.REGTYPE


def files_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_unpacking_beside_what_is_there(tmp_path, write):
    target = tmp_path / "to"
    (target / "a").mkdir(parents=True)
    (target / "a" / "old").write_bytes(b"old")
    write(tmp_path / "x", [("a/new", FILE, b"new"), ("a/b/c", FILE, b"c"), ("./2", FILE, b"")])
    unpack(tmp_path / "x", target)
    assert files_in(target) == {"a/old": b"old", "a/new": b"new", "a/b/c": b"c", "2": b""}
    write(tmp_path / "x", [("a/old", FILE, b"bad")])
    with pytest.raises(InputError, match="a/old exists already"):
        unpack(tmp_path / "x", target)
    assert files_in(target)["a/old"] == b"old"


@pytest.mark.parametrize(
    "member",
    [
        ("../evil", FILE, b"x"),
        ("a/../../evil", FILE, b"x"),
        ("evil", tarfile.SYMTYPE, b"/etc/passwd"),
        ("evil", tarfile.SYMTYPE, b"../x"),
    ],
)
def test_nothing_leaves_the_folder(tmp_path, write, member):
    """A tar is refused; zipfile and shutil skip such members, and write links as text."""
    write(tmp_path / "x", [("good", FILE, b"good"), member])
    target = tmp_path / "to"
    if write is write_tar:
        with pytest.raises(InputError, match="archive .*x cannot be unpacked"):
            unpack(tmp_path / "x", target)
        assert os.listdir(target) == []
    else:
        unpack(tmp_path / "x", target)
        assert not any(path.is_symlink() for path in target.rglob("*"))
    assert sorted(os.listdir(tmp_path)) == ["to", "x"]


def test_damaged_archives_leave_nothing(tmp_path, write):
    write(tmp_path / "x", [(f"{i}", FILE, CONTENT[i * 500 : (i + 1) * 500]) for i in range(20)])
    raw = (tmp_path / "x").read_bytes()
    for content in (b"", b"text", raw[:30], raw[: len(raw) // 2]):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(InputError, match="archive .*x cannot be unpacked"):
            unpack(tmp_path / "x", tmp_path / "to")
        assert os.listdir(tmp_path / "to") == []


def test_a_python_without_safe_unpacking_says_so(tmp_path, monkeypatch):
    write_tar(tmp_path / "x", [("a", FILE, b"")])
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(InputError, match="3.10.12"):
        unpack(tmp_path / "x", tmp_path / "to")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["cifar10"], "--drp"),
        (["cifar10", "imagenet", "--drp", "x"], "imagenet"),
        (["imagenet"], "folder"),
        (["imagenet", "x"], "--out --check"),
        (["imagenet", "x", "--out", "y", "--check", "z"], "not allowed with"),
        (["imagenet", "x", "--out", "y", "--rho", "2"], "at most 1"),
        (["cifar10", "--drp", "x", "--archive", "w"], "goes with scood"),
        (["ood", "x", "--drp", "y"], "folder"),
    ],
)
def test_flags_that_do_not_go_together(arguments, reason, capsys):
    assert run(prepare.main, *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: " in error and reason in error


def test_lists_are_checked_against_their_folder(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    check = ["imagenet", str(tmp_path), "--check", str(tmp_path / "list.txt")]
    (tmp_path / "list.txt").write_text("0.png 0\n")
    prepare.main(check)
    assert capsys.readouterr().out == f"{tmp_path}/list.txt: all 1 files are in {tmp_path}\n"
    (tmp_path / "list.txt").write_text("0.png 0\n8.png 0\n")
    with pytest.raises(InputError, match="1 of 2 images.*'8.png'"):
        prepare.main(check)


def test_what_cannot_be_downloaded_is_described_and_a_closed_pipe_is_no_error(tmp_path):
    command = [sys.executable, "-m", "datasets.prepare", "tinyimages", "scood", "--drp", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 2 and ran.stderr == "error: not ready yet, see above: tinyimages, scood\n"
    for needed in (
        prepare.TINY_IMAGES_URL,
        str(tmp_path / "Tiny_Images_Dataset" / "300K_random_images.npy"),
        "--allow_unverified",
        prepare.SCOOD_PAGE,
        str(tmp_path / "data" / "imglist" / "benchmark_cifar10" / "test_cifar100.txt"),
        str(tmp_path / "data" / "images"),
    ):
        assert needed in ran.stdout
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert ran.returncode == 2 and ran.stderr == "error: not ready yet, see above: tinyimages, scood\n"


def test_scood_from_an_archive_fetched_by_hand(tmp_path, capsys):
    image = io.BytesIO()
    Image.new("RGB", (32, 32)).save(image, "png")
    members = [("data/images/x/1.png", FILE, image.getvalue())]
    for benchmark, names in prepare.DEFAULT_SETS.items():
        members += [
            (f"data/imglist/benchmark_{benchmark}/test_{name}.txt", FILE, b"x/1.png -1\n") for name in names
        ]
    write_zip(tmp_path / "scood.zip", members)
    prepare.main(["scood", "--drp", str(tmp_path / "root"), "--archive", str(tmp_path / "scood.zip")])
    assert capsys.readouterr().out.count("all 1 files") == 12
    list_path = tmp_path / "root" / "data" / "imglist" / "benchmark_cifar10" / "test_tin.txt"
    list_path.write_text("x/1.png 10\n")
    with pytest.raises(InputError, match="see above: scood"):
        prepare.main(["scood", "--drp", str(tmp_path / "root")])
    assert re.search("test_tin.txt, line 1: .*label 10, outside", capsys.readouterr().out)


@pytest.mark.filterwarnings("ignore:the files in .* differ from the published")
def test_cifar_is_downloaded_verified_unpacked_and_read(tmp_path, monkeypatch, capsys):
    for split in ("train", "test"):
        write_batch(tmp_path / "made" / split, list(range(100)), b"fine_labels")
    with tarfile.open(tmp_path / "made.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "made", "cifar-100-python")
    asked = []

    def local(url, target, md5):
        asked.append((url, md5))
        target.parent.mkdir(exist_ok=True)
        target.write_bytes((tmp_path / "made.tar.gz").read_bytes())

    monkeypatch.setattr(prepare, "download", local)
    for _ in range(2):
        prepare.main(["cifar100", "--drp", str(tmp_path / "root")])
    address = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
    assert asked == [(address, "eb9058c3a382ffc7106e4002c42a8d85")]
    folder = tmp_path / "root" / "cifar-100-python"
    assert (folder / "train").read_bytes() == (tmp_path / "made" / "train").read_bytes()
    (folder / "test").unlink()
    with pytest.raises(InputError, match="see above: cifar100, tinyimages$"):  # it tries all
        prepare.main(["cifar100", "tinyimages", "--drp", str(tmp_path / "root")])
    out = capsys.readouterr().out
    assert "cifar-100-python/test" in out and "--allow_unverified" in out
