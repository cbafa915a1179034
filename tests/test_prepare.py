import hashlib
import io
import os
import stat
import tarfile
import zipfile

import numpy as np
import pytest
from cifar_files import write_batch, write_outliers
from PIL import Image
from torchvision.datasets import CIFAR100

from datasets import prepare
from datasets.cifar import load_outliers
from datasets.prepare import unpack
from datasets.scood import DEFAULT_SETS
from utils.errors import InputError

FILE = tarfile.REGTYPE


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, kind, value in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            member.size = len(value) if kind == FILE else 0
            member.linkname = "" if kind == FILE else value.decode()
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


@pytest.mark.parametrize(
    "member",
    [
        ("../evil", FILE, b"x"),
        ("a/../../evil", FILE, b"x"),
        ("evil", tarfile.SYMTYPE, b"/etc/passwd"),
        ("evil", tarfile.SYMTYPE, b"../x"),
    ],
)
@pytest.mark.parametrize("filters", [True, False])
def test_nothing_leaves_the_folder(tmp_path, monkeypatch, write, member, filters):
    """A tar is refused, also by a Python without tarfile's filters; zipfile and shutil skip such members, and
    write links as text."""
    if not filters:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    write(tmp_path / "x", [("a/good", FILE, b"good"), member])
    target = tmp_path / "to"
    if write is write_tar:
        with pytest.raises(InputError, match="archive .*x cannot be unpacked"):
            unpack(tmp_path / "x", target)
    else:
        unpack(tmp_path / "x", target)
        assert (target / "a" / "good").read_bytes() == b"good"
    assert not any(path.is_symlink() for path in target.rglob("*"))
    assert sorted(os.listdir(tmp_path)) == ["to", "x"]


def test_damaged_archives_are_named(tmp_path, write):
    noise = np.random.default_rng(0).bytes(10_000)
    write(tmp_path / "x", [(f"{i}", FILE, noise[i * 500 : (i + 1) * 500]) for i in range(20)])
    raw = (tmp_path / "x").read_bytes()
    for content in (b"", b"text", raw[:30], raw[: len(raw) // 2]):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(InputError, match="archive .*x cannot be unpacked"):
            unpack(tmp_path / "x", tmp_path / "to")
        assert os.listdir(tmp_path / "to") == []


def test_archives_are_unpacked_beside_what_is_there(tmp_path, write):
    old = tmp_path / "to" / "a" / "old"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    write(tmp_path / "x", [("a/new", FILE, b"new"), ("a/b/c", FILE, b"c")])
    unpack(tmp_path / "x", tmp_path / "to")
    assert sorted(os.listdir(old.parent)) == ["b", "new", "old"] and os.listdir(tmp_path / "to") == ["a"]
    write(tmp_path / "x", [("a/old", FILE, b"bad")])
    with pytest.raises(InputError, match="a/old exists already"):
        unpack(tmp_path / "x", tmp_path / "to")
    assert old.read_bytes() == b"old"


def test_a_download_that_broke_off_leaves_nothing(tmp_path, monkeypatch):
    site, root = tmp_path / "site", tmp_path / "root"
    write_outliers(site, np.zeros((4, 32, 32, 3), np.uint8))
    (source,) = site.rglob("*.npy")
    whole = source.read_bytes()
    monkeypatch.setattr(prepare, "TINY_IMAGES_URL", source.as_uri())
    source.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="tinyimages"):
        prepare.main(["tinyimages", "--drp", str(root), "--allow_unverified"])
    assert not [path for path in root.rglob("*") if path.is_file()]
    source.write_bytes(whole)
    prepare.main(["tinyimages", "--drp", str(root), "--allow_unverified"])
    assert len(load_outliers(root)) == 4


def test_scood_from_an_archive_fetched_by_hand(tmp_path, capsys):
    image = io.BytesIO()
    Image.new("RGB", (32, 32)).save(image, "png")
    members = [("data/images/x/1.png", FILE, image.getvalue())]
    for benchmark, names in DEFAULT_SETS.items():
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
    assert "test_tin.txt, line 1" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:the files in .* differ from the published")
def test_cifar_is_verified_unpacked_and_read_and_the_rest_explained(tmp_path, monkeypatch, capsys):
    made, root, archive = tmp_path / "made", tmp_path / "root", tmp_path / "cifar-100-python.tar.gz"
    for name in ("train", "test"):
        write_batch(made / name, list(range(100)), "fine_labels")
    with tarfile.open(archive, "w:gz") as file:
        file.add(made, "cifar-100-python")
    monkeypatch.setattr(CIFAR100, "url", archive.as_uri())
    with pytest.raises(InputError, match="see above: cifar100"):
        prepare.main(["cifar100", "--drp", str(root)])
    assert archive.as_uri() in capsys.readouterr().out and os.listdir(root) == []
    monkeypatch.setattr(CIFAR100, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    prepare.main(["cifar100", "--drp", str(root)])
    assert (root / "cifar-100-python" / "train").read_bytes() == (made / "train").read_bytes()
    archive.unlink()
    prepare.main(["cifar100", "--drp", str(root)])  # nothing is downloaded again
    (root / "cifar-100-python" / "test").unlink()
    with pytest.raises(InputError, match="see above: cifar100, tinyimages, scood$"):  # it tries all
        prepare.main(["cifar100", "tinyimages", "scood", "--drp", str(root)])
    out = capsys.readouterr().out
    for needed in ("cifar-100-python/test", "--allow_unverified", "300K_random_images.npy", "--archive"):
        assert needed in out
