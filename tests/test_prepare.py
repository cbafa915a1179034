import hashlib
import io
import os
import stat
import tarfile
import zipfile

import numpy as np
import pytest
from cifar_files import write_batch
from command_line import run
from PIL import Image
from torchvision.datasets import CIFAR100

from datasets import prepare
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
def test_nothing_leaves_the_folder(tmp_path, write, member):
    """A tar is refused; zipfile and shutil skip such members, and write links as text."""
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


@pytest.mark.parametrize(
    "arguments",
    [
        ["cifar10"],
        ["cifar10", "imagenet", "--drp", "x"],
        ["imagenet", "x"],
        ["imagenet", "x", "--out", "y", "--rho", "2"],
        ["ood", "x", "--drp", "y"],
    ],
)
def test_commands_that_are_incomplete(arguments, capsys):
    assert run(prepare.main, *arguments) == 2
    assert "error: " in capsys.readouterr().err.strip().splitlines()[-1]


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
    """From an archive that is there already; without the right MD5 sum, it would be downloaded again."""
    made, root = tmp_path / "made", tmp_path / "root"
    for name in ("train", "test", "meta"):
        write_batch(made / name, list(range(100)), "fine_labels")
    archive, address = root / "cifar-100-python.tar.gz", "http://127.0.0.1:9/cifar"
    root.mkdir()
    with tarfile.open(archive, "w:gz") as file:
        file.add(made, "cifar-100-python")
    monkeypatch.setattr(CIFAR100, "url", address)
    with pytest.raises(InputError, match="see above: cifar100"):
        prepare.main(["cifar100", "--drp", str(root)])
    assert address in capsys.readouterr().out and not (root / "cifar-100-python").exists()

    def md5(path):
        return hashlib.md5(path.read_bytes()).hexdigest()

    monkeypatch.setattr(CIFAR100, "tgz_md5", md5(archive))
    for split in ("train", "test"):
        monkeypatch.setattr(CIFAR100, f"{split}_list", [[split, md5(made / split)]])
    meta = CIFAR100.meta | {"md5": md5(made / "meta"), "key": "fine_labels"}
    monkeypatch.setattr(CIFAR100, "meta", meta)
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
