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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from cifar_files import write_batch
from command_line import run
from PIL import Image

from datasets import prepare
from datasets.files import archives
from datasets.files.archives import unpack
from datasets.files.download import download
from datasets.outliers import map_outliers
from utils.errors import InputError

CONTENT = np.random.default_rng(0).bytes(1_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT at /file; ``breaks`` holds after how many bytes each coming answer breaks off."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.breaks, self.ranges, self.honour_range = [], [], True
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/file")
            self.end_headers()
            return
        if self.path != "/file":
            self.send_error(404)
            return
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.server.honour_range else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        end = start + self.server.breaks.pop(0) if self.server.breaks else len(CONTENT)
        self.wfile.write(CONTENT[start:end])


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(server, target, md5=MD5, **options):
    return download(f"{server.url}/file", target, md5, schemes=("http",), **options)


def test_a_download_is_verified_and_not_repeated(server, tmp_path):
    target = tmp_path / "new" / "file"
    assert fetch(server, target) is True
    assert target.read_bytes() == CONTENT and os.listdir(target.parent) == ["file"]
    assert fetch(server, target) is False
    assert server.ranges == [None]


def test_a_break_is_resumed_within_one_call(server, tmp_path):
    server.breaks = [300_000, 200_000]
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-", "bytes=500000-"]


def test_a_break_is_resumed_by_a_later_call(server, tmp_path):
    server.breaks = [300_000, 0]
    with pytest.raises(InputError, match="broke off after 300,000 bytes.*same command"):
        fetch(server, tmp_path / "file")
    assert os.listdir(tmp_path) == ["file.part"]
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT and server.ranges[-1] == "bytes=300000-"


def test_a_server_that_cannot_resume_sends_it_all(server, tmp_path):
    (tmp_path / "file.part").write_bytes(b"x" * 1000)
    server.honour_range = False
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_complete_part_is_used(server, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT)
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_part_of_another_file_is_dropped(server, tmp_path):
    (tmp_path / "file.part").write_bytes(b"x" * 1000)
    with pytest.raises(InputError, match="MD5"):
        fetch(server, tmp_path / "file")
    assert os.listdir(tmp_path) == []
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_wrong_checksum_keeps_what_was_there(server, tmp_path):
    (tmp_path / "file").write_bytes(b"good")
    with pytest.raises(InputError, match="MD5"):
        fetch(server, tmp_path / "file", md5="0" * 32)
    assert (tmp_path / "file").read_bytes() == b"good" and os.listdir(tmp_path) == ["file"]


def test_without_a_checksum_the_flag_and_the_check_decide(server, tmp_path):
    target = tmp_path / "file"
    with pytest.raises(InputError, match="--allow_unverified"):
        fetch(server, target, md5=None)
    with pytest.raises(InputError, match="not the right file"):
        fetch(server, target, md5=None, allow_unverified=True, check=map_outliers)
    assert server.ranges == [None] and os.listdir(tmp_path) == []
    assert fetch(server, target, md5=None, allow_unverified=True) is True
    assert fetch(server, target, md5=None, allow_unverified=True) is False


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/file", "ftp://x/file", "file:///etc/passwd", "/etc/passwd"]
)
def test_only_https_by_default(tmp_path, url):
    with pytest.raises(InputError, match="https only"):
        download(url, tmp_path / "file", MD5)
    assert os.listdir(tmp_path) == []


def test_a_redirection_to_another_scheme_is_refused(server, tmp_path):
    with pytest.raises(InputError, match="ftp://.*http only"):
        download(f"{server.url}/redirect", tmp_path / "file", MD5, schemes=("http",))


def test_a_missing_page_and_a_missing_server(server, tmp_path):
    with pytest.raises(InputError, match="404"):
        download(f"{server.url}/other", tmp_path / "file", MD5, schemes=("http",))
    with pytest.raises(InputError, match="broke off after 0 bytes"):
        download("http://127.0.0.1:9/file", tmp_path / "file", MD5, schemes=("http",))


def test_a_target_that_cannot_be_written(server, tmp_path):
    (tmp_path / "folder").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be written"):
        fetch(server, tmp_path / "folder" / "file")


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, kind, value in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            if kind == tarfile.REGTYPE:
                member.size = len(value)
            else:
                member.linkname = value
            archive.addfile(member, io.BytesIO(value) if kind == tarfile.REGTYPE else None)


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, kind, value in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            links = {tarfile.SYMTYPE: stat.S_IFLNK, tarfile.FIFOTYPE: stat.S_IFIFO}
            info.external_attr = (links.get(kind, stat.S_IFREG) | 0o644) << 16
            archive.writestr(info, value)


@pytest.fixture(params=[write_tar, write_zip])
def write(request):
    return request.param


FILE = tarfile.REGTYPE


def test_unpacking(tmp_path, write):
    write(tmp_path / "x", [("a/b/1", FILE, b"one"), ("./2", FILE, b"two"), ("a/empty", FILE, b"")])
    unpack(tmp_path / "x", tmp_path / "to")
    files = {
        str(path.relative_to(tmp_path / "to")): path.read_bytes()
        for path in (tmp_path / "to").rglob("*")
        if path.is_file()
    }
    assert files == {"a/b/1": b"one", "2": b"two", "a/empty": b""}


def test_unpacking_beside_what_is_there(tmp_path, write):
    (tmp_path / "to" / "a").mkdir(parents=True)
    (tmp_path / "to" / "a" / "old").write_bytes(b"old")
    write(tmp_path / "x", [("a/new", FILE, b"new"), ("a/b/c", FILE, b"c")])
    unpack(tmp_path / "x", tmp_path / "to")
    assert sorted(os.listdir(tmp_path / "to" / "a")) == ["b", "new", "old"]
    write(tmp_path / "x", [("a/another", FILE, b""), ("a/old", FILE, b"bad")])
    with pytest.raises(InputError, match="a/old is there already"):
        unpack(tmp_path / "x", tmp_path / "to")
    assert (tmp_path / "to" / "a" / "old").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path / "to" / "a")) == ["b", "new", "old"]


@pytest.mark.parametrize(
    "member",
    [
        ("../evil", FILE, b"x"),
        ("/tmp/evil", FILE, b"x"),
        ("a/../../evil", FILE, b"x"),
        ("evil", tarfile.SYMTYPE, b"/etc/passwd"),
        ("evil", tarfile.LNKTYPE, b"good"),
        ("evil", tarfile.FIFOTYPE, b""),
        ("evil", tarfile.CHRTYPE, b""),
        ("evil", FILE, bytes(2_000_000)),
        ("good", FILE, b"evil: the name of another member"),
        ("good/evil", FILE, b"x"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_members_leave_nothing_behind(tmp_path, write, member):
    name, kind, value = member
    if write is write_zip and kind in (tarfile.LNKTYPE, tarfile.CHRTYPE):
        kind = tarfile.SYMTYPE
    if write is write_tar and kind != FILE:
        value = value.decode()
    write(tmp_path / "x", [("good", FILE, b"good"), (name, kind, value)])
    target = tmp_path / "to"
    target.mkdir()
    with pytest.raises(InputError) as caught:
        unpack(tmp_path / "x", target, max_bytes=1_000_000)
    assert str(tmp_path / "x") in str(caught.value) and "\n" not in str(caught.value)
    assert os.listdir(target) == [] and sorted(os.listdir(tmp_path)) == ["to", "x"]


def test_a_huge_extended_header_is_refused(tmp_path):
    with tarfile.open(
        tmp_path / "x", "w:gz", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x" * 3_000_000}
    ):
        pass
    with pytest.raises(InputError, match="header of 3,0"):
        unpack(tmp_path / "x", tmp_path / "to")


def test_too_many_members(tmp_path, write, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    write(tmp_path / "x", [(f"{i}", FILE, b"") for i in range(4)])
    with pytest.raises(InputError, match="bounds"):
        unpack(tmp_path / "x", tmp_path / "to")


def test_damaged_archives(tmp_path, write):
    write(tmp_path / "x", [(f"{i}", FILE, CONTENT[i * 500 : (i + 1) * 500]) for i in range(20)])
    raw = (tmp_path / "x").read_bytes()
    rng = np.random.default_rng(0)
    for number in range(60):
        damaged = bytearray(raw)
        damaged[rng.integers(len(raw))] ^= 1 << rng.integers(8)
        cut = raw[: rng.integers(len(raw))]
        for content in (damaged, cut):
            (tmp_path / "x").write_bytes(content)
            try:
                unpack(tmp_path / "x", tmp_path / f"to{number}")
            except InputError as error:
                assert str(tmp_path / "x") in str(error)
                assert list((tmp_path / f"to{number}").iterdir()) == []
                continue
            assert content is damaged  # some bits say nothing about the members, but a cut is always seen
            (tmp_path / f"to{number}").rename(tmp_path / f"read{number}")


def test_lists_are_checked_against_their_folder(tmp_path, capsys):
    (tmp_path / "cat").mkdir()
    for i in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / "cat" / f"{i}.png")
    (tmp_path / "list.txt").write_text("cat/0.png 0\ncat/1.png 0\n")
    prepare.main(["imagenet", str(tmp_path), "--check", str(tmp_path / "list.txt")])
    assert capsys.readouterr().out == f"{tmp_path}/list.txt: all 2 files are in {tmp_path}\n"
    (tmp_path / "list.txt").write_text("cat/0.png 0\ncat/8.png 0\ndog/1.png 1\n")
    with pytest.raises(InputError, match="2 of 3 images.*'cat/8.png', 'dog/1.png'"):
        prepare.main(["imagenet", str(tmp_path), "--check", str(tmp_path / "list.txt")])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["cifar10"], "--drp"),
        (["cifar10", "imagenet", "--drp", "x"], "imagenet"),
        (["imagenet"], "folder"),
        (["imagenet", "x"], "--out --check"),
        (["imagenet", "x", "--out", "y", "--check", "z"], "not allowed with"),
        (["imagenet", "x", "--check", "z", "--rho", "0.1"], "--rho goes with --out"),
        (["imagenet", "x", "--out", "y", "--rho", "2"], "at most 1"),
        (["cifar10", "--drp", "x", "--archive", "w"], "goes with scood"),
    ],
)
def test_flags_that_do_not_go_together(arguments, reason, capsys):
    assert run(prepare.main, *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: " in error and reason in error


def test_what_cannot_be_downloaded_is_described(tmp_path):
    command = [sys.executable, "-m", "datasets.prepare", "tinyimages", "scood", "--drp", str(tmp_path)]
    ran = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert ran.returncode == 2 and ran.stderr == "error: not ready yet, see above: tinyimages, scood\n"
    for needed in (
        prepare.TINY_IMAGES_URL,
        str(tmp_path / "Tiny_Images_Dataset" / "300K_random_images.npy"),
        "--allow_unverified",
        prepare.SCOOD_PAGE,
        str(tmp_path / "data" / "imglist" / "benchmark_cifar10" / "test_<set>.txt"),
        str(tmp_path / "data" / "images"),
    ):
        assert needed in ran.stdout


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
    raw = (tmp_path / "made.tar.gz").read_bytes()
    release = prepare.RELEASES["cifar100"]._replace(archive_md5=hashlib.md5(raw).hexdigest())
    monkeypatch.setitem(prepare.RELEASES, "cifar100", release)
    asked = []

    def local(url, target, md5):
        asked.append((url, md5))
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(raw)

    monkeypatch.setattr(prepare, "download", local)
    prepare.main(["cifar100", "--drp", str(tmp_path / "root")])
    prepare.main(["cifar100", "--drp", str(tmp_path / "root")])
    assert asked == [("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", release.archive_md5)]
    folder = tmp_path / "root" / "cifar-100-python"
    assert (folder / "train").read_bytes() == (tmp_path / "made" / "train").read_bytes()
    (folder / "test").unlink()
    capsys.readouterr()
    with pytest.raises(InputError, match="see above: cifar100, tinyimages, scood$"):  # it tries all
        prepare.main(["cifar100", "tinyimages", "scood", "--drp", str(tmp_path / "root")])
    out = capsys.readouterr().out
    assert "cifar-100-python/test" in out and "--allow_unverified" in out and "Google Drive" in out
