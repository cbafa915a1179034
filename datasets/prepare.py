"""Prepares data sets: downloads what may be downloaded, says what must be fetched by hand, and makes lists,
outliers and OOD sets of your own folders.

    python -m datasets.prepare cifar10 cifar100 tinyimages scood --drp DATA
    python -m datasets.prepare outliers FOLDER --drp DATA        pictures as the outliers of CIFAR
    python -m datasets.prepare ood NAME FOLDER --drp DATA        pictures as an OOD set of CIFAR
    python -m datasets.prepare imagenet PHOTOS --out LISTS --outliers FOLDER --ood FOLDER ...
"""

import argparse
import contextlib
import math
import shlex
import shutil
import sys
import tarfile
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torchvision.datasets.utils import check_integrity

from datasets.cifar import NUM_CLASSES, OUTLIERS, RELEASES, load_cifar, load_outliers
from datasets.decoding import Unreadable, open_picture
from datasets.folders import Lists, write_lists, write_ood_set, write_outliers
from datasets.image_list import read_image_list, read_present
from datasets.images import kept_outliers
from datasets.scood import DEFAULT_SETS, image_root, list_path
from utils import flags
from utils.errors import InputError, exit_cleanly, first_line, say
from utils.text_files import whole_file, writable_folder

TINY_IMAGES_URL = "https://people.eecs.berkeley.edu/~hendrycks/300K_random_images.npy"
# From the README of ICCV21_SCOOD.
SCOOD_LINK = "https://drive.google.com/file/d/1cbLXZ39xnJjxXnDM7g2KODHIjE0Qj4gu/view"
FEW = 20_000  # training pictures below which a network is better fine-tuned than trained from scratch
SMALL = 128  # pixels, the shorter side below which views of 224 pixels waste time


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["imagenet"]:
        prepare_imagenet(argv[1:])
    else:
        prepare_benchmarks(argv)


def prepare_imagenet(argv: list[str]) -> None:
    """Writes lists, and prints them and the commands that use them."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.prepare imagenet",
        description="Writes the lists that train_imagenet.py and test_imagenet.py need.",
        formatter_class=flags.HelpFormatter,
    )
    add = parser.add_argument
    add("images", type=flags.path, help="holds one folder per class, or train/ and test/, which do")
    add("--out", type=flags.path, required=True, metavar="DIR", help="where the lists are written")
    add("--test", type=flags.path, metavar="DIR", help="holds test pictures in folders of the same names")
    add("--outliers", type=flags.path, metavar="DIR", help="pictures of no class, for training")
    add("--ood", type=flags.path, nargs="+", default=[], metavar="DIR", help="folders of OOD test pictures")
    share = "share of each class that becomes the test list, at random, if there are no test folders"
    add("--test_share", type=flags.fraction, default=0.2, help=share)
    add("--seed", type=flags.seed, default=0, help="of the random choice")
    tail = "cut the training list to a long tail: rho is the smallest class's size over the largest's; labels"
    by_size = "then go by the classes' sizes, otherwise by their names"
    add("--rho", type=flags.imbalance_ratio, help=f"{tail} {by_size}")
    lists = write_lists(**vars(parser.parse_args(argv)))
    say("\n".join([*lists.report, "", *commands(lists)]))


def commands(lists: Lists) -> list[str]:
    files = lists.files
    ood = [path for name, path in files.items() if name.startswith("ood_")]
    words = ["--txtt", files["train"], "--iidp", lists.iidp]
    words += ["--txtv", files["test"]] if "test" in files else []
    words += ["--txt_ood_train", files["outliers"]] if "outliers" in files else []
    words += ["--txt_ood_test", *ood] if ood else []
    words += ["--iodp", lists.iodp] if ood or "outliers" in files else []
    training, test, batch = [], [], 32  # the paper's
    outliers = lists.num_outliers
    if lists.num_images < FEW:
        batch = min(16, max(2, lists.num_images // 4))
        training = "--init imagenet --md ResNet18 --opt adam --lr 3e-4 --epochs 30 --warmup_epochs 2".split()
        training += ["--val_fraction", 0.2, "-b", batch]
        outliers = kept_outliers(outliers, 0.2)
    side = shorter_side(lists)
    if side < SMALL:
        training += ["--image_size", 32 * math.ceil(side / 32)]
    if outliers < 1:
        training, test = [*training, "--oe", False], ["--calibration", "none"]
    elif batch < 32 or outliers < 64:
        training += ["--ob", min(2 * batch, outliers)]
    run = Path("runs", files["train"].resolve().parent.name)
    training, test = [*training, "--srp", run], [*test, "--ckpt_path", run]
    printed = [f"python train_imagenet.py {shlex.join(map(str, words + training))}"]
    if "test" in files:
        printed.append(f"python test_imagenet.py {shlex.join(map(str, words + test))}")
    return printed


def shorter_side(lists: Lists) -> float:
    """Returns the median shorter side of up to 200 training pictures, in pixels; infinity if none opens."""
    paths, _ = read_image_list(lists.files["train"])
    sides = []
    for path in paths[:: math.ceil(len(paths) / 200)]:
        with contextlib.suppress(Unreadable):  # training replaces it
            sides.append(min(open_picture(lists.iidp / path).size))
    return median(sides) if sides else math.inf


def prepare_benchmarks(argv: list[str]) -> None:
    """Gets ready what ``argv`` names; raises InputError if a set is incomplete when all were tried."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.prepare", description=__doc__, formatter_class=flags.HelpFormatter
    )
    add = parser.add_argument
    what = "cifar10, cifar100, tinyimages, scood: any of them; or outliers FOLDER; or ood NAME FOLDER"
    add("what", nargs="+", help=f"{what}; imagenet has flags of its own: ... imagenet --help")
    add("--data_root_path", "--drp", dest="drp", type=flags.path, required=True, help="the data folder")
    unverified = "download files that have no published checksum"
    add("--allow_unverified", action="store_true", help=unverified)
    add("--archive", type=flags.path, help="scood: an archive fetched by hand (tar or zip), to be unpacked")
    args = parser.parse_args(argv)
    if "" in args.what:  # as from an unset variable
        parser.error("a path is empty")
    sets = {name: partial(prepare_cifar, name, args.drp) for name in RELEASES}
    sets["tinyimages"] = partial(prepare_tinyimages, args.drp, args.allow_unverified)
    sets["scood"] = partial(prepare_scood, args.drp, args.archive)
    match args.what:
        case ["outliers", folder]:
            say("\n".join(write_outliers(flags.path(folder), args.drp)))
        case ["ood", name, folder]:
            say("\n".join(write_ood_set(name, flags.path(folder), args.drp)))
        case names if sets.keys() >= set(names):
            unready = []
            for name in names:
                try:
                    sets[name]()
                except InputError as error:  # the other sets may do better
                    say(f"{name}: {error}")
                    unready.append(name)
            if unready:
                raise InputError(f"not ready yet, see above: {', '.join(unready)}")
        case _:
            parser.error(f"expected {what}")


def prepare_cifar(name: str, root: Path) -> None:
    """Downloads and unpacks one CIFAR, unless its folder exists, and reads it."""
    release = RELEASES[name]
    if not (root / release.base_folder).exists():
        archive = root / release.filename
        if not check_integrity(archive, release.tgz_md5):
            download(release.url, archive, release.tgz_md5)
        unpack(archive, root)
    for train in (True, False):
        load_cifar(name, root, train)
    say(f"{name}: ready in {root / release.base_folder}")


def prepare_tinyimages(root: Path, allow_unverified: bool) -> None:
    path = root / OUTLIERS
    if not path.exists():
        if not allow_unverified:
            raise InputError(
                f"no checksum is published for {TINY_IMAGES_URL} (922 MB, 300,000 images); put that file at "
                f"{path}, or let --allow_unverified download it"
            )
        download(TINY_IMAGES_URL, path)
    say(f"tinyimages: ready, {len(load_outliers(root)):,} images in {path}")


def prepare_scood(root: Path, archive: Path | None) -> None:
    """Unpacks ``archive`` if given, then checks that lists and images are complete."""
    if archive is not None:
        unpack(archive, root)
    lists = {
        list_path(benchmark, name, root): range(-1, NUM_CLASSES[benchmark])
        for benchmark, names in DEFAULT_SETS.items()
        for name in names
    }
    if missing := [path for path in lists if not path.is_file()]:
        raise InputError(
            f"{len(missing)} of {len(lists)} lists are missing, such as {missing[0]}; download the archive "
            f"in a browser, {SCOOD_LINK}, and give it to --archive (images belong in {image_root(root)})"
        )
    for path, labels in lists.items():
        paths, _ = read_present(path, image_root(root), labels)
        say(f"scood: {path}: all {len(paths):,} files are there")


def download(url: str, target: Path, md5: str | None = None) -> None:
    """Downloads a file, which takes its name once it is whole: by its MD5 sum, or as an array."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target, "xb") as file:
            torch.hub.download_url_to_file(url, file.name)
            if md5 is None:
                np.load(file.name, mmap_mode="r")
            elif not check_integrity(file.name, md5):
                raise ValueError(f"what came does not have the published MD5 sum {md5}")
    except Exception as error:  # urllib, http and numpy have many kinds
        raise InputError(f"{url} cannot be downloaded to {target}: {first_line(error)}") from error


def unpack(archive: Path, target: Path) -> None:
    """Unpacks a tar or zip archive into the folder ``target``, once it is known to be whole. Nothing outside
    is written (a zip's members that leave the folder are skipped), and no file replaced: InputError."""
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=writable_folder(target)) as scratch:
        try:
            if tarfile.is_tarfile(archive):
                with tarfile.open(archive) as members:
                    _extract(members, scratch)
            else:
                shutil.unpack_archive(archive, scratch, "zip")
        except Exception as error:  # zlib, tarfile and zipfile have many kinds for a damaged archive
            raise InputError(f"the archive {archive} cannot be unpacked: {first_line(error)}") from error
        files = [path.relative_to(scratch) for path in Path(scratch).rglob("*") if not path.is_dir()]
        if there := [target / file for file in files if (target / file).exists()]:
            raise InputError(f"{there[0]} exists already; move it away to unpack again")
        for file in files:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(Path(scratch, file), target / file)  # a link may lead to another disk


def _extract(archive: tarfile.TarFile, folder: str) -> None:
    if hasattr(tarfile, "data_filter"):
        return archive.extractall(folder, filter="data")
    for member in archive:  # Python before 3.10.12 or 3.11.4, such as Debian 12's
        parts = Path(member.name).parts
        if not (member.isreg() or member.isdir()) or "/" in parts or ".." in parts:
            raise ValueError(f"{member.name} is not a file or folder inside it")
    archive.extractall(folder)


if __name__ == "__main__":
    exit_cleanly(main)
