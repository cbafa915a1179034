"""Thousands of hostile or broken inputs: each is read or refused with a sentence; nothing else happens.

Everything runs in this process, so a hang or a crash of the interpreter would end the test run.
"""

import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import load_script
from fuzzing import damaged, fuzz, plain_values, read_or_refuse
from hypothesis import given
from hypothesis import strategies as st

import train
import train_imagenet
from datasets.cifar import load_cifar
from datasets.files.archives import unpack
from datasets.image_list import ANY_LABEL, read_image_list
from datasets.outliers import load_outliers
from datasets.scood import load_ood_sets
from utils.errors import InputError

evaluation = load_script("test")


def snapshot(folder):
    return {p: p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


names = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["a.png", "../a.png", "/etc/passwd", "x/../../a", "link/a.png", ".", "..", "a\x00b", "~/a", "C:\\a"]
    ),
)
lines = st.one_of(
    st.text(max_size=60),
    st.tuples(names, st.integers(-5, 10**20)).map(lambda t: f"{t[0]} {t[1]}"),
    st.tuples(names, st.one_of(st.integers(-3, 12), st.text(max_size=5), st.none(), st.floats())).map(
        lambda t: f'{t[0]} {{"label": -1, "sc_label": {t[1]}}}'
    ),
)
list_bytes = st.one_of(
    st.binary(max_size=200), st.lists(lines, max_size=6).map(lambda x: "\n".join(x).encode("utf-8", "ignore"))
)


@fuzz(1500)
@given(content=list_bytes, labels=st.sampled_from([ANY_LABEL, range(8), None]))
def test_image_lists(content, labels, tmp_path, record_count):
    record_count("fuzzed inputs")
    root = tmp_path / "root"
    root.mkdir(exist_ok=True)
    (tmp_path / "list.txt").write_bytes(content)
    result = read_or_refuse(read_image_list, tmp_path / "list.txt", root, labels)
    if result is not None:
        paths, read = result
        assert len(paths) == len(read) > 0 and set(read.tolist()) <= set(labels or [-1])
        for path in paths:  # there is no link here, which would be the folder owner's and be followed
            assert (root / path).resolve().is_relative_to(root.resolve())


@fuzz(300)
@given(content=list_bytes)
def test_scood_lists(content, tmp_path, record_count):
    record_count("fuzzed inputs")
    folder = tmp_path / "data" / "imglist" / "benchmark_cifar10"
    folder.mkdir(parents=True, exist_ok=True)
    (tmp_path / "data" / "images").mkdir(exist_ok=True)
    (folder / "test_tin.txt").write_bytes(content)
    assert read_or_refuse(load_ood_sets, "cifar10", ["tin"], tmp_path, 10) is None  # there is no image


class Harmful:
    """What a pickle with code looks like."""

    def __reduce__(self):
        return (open, ("/tmp/patt-fuzz-was-here", "w"))


arrays = st.tuples(
    st.sampled_from(["u1", "i4", "f8", "O"]),
    st.lists(st.integers(0, 6), max_size=3),
    st.sampled_from([1, 3072]),
).map(lambda t: np.zeros((*t[1], t[2]), dtype=t[0]))
cifar_dicts = st.dictionaries(
    st.sampled_from([b"data", b"labels", b"fine_labels", "data", b"x"]),
    st.one_of(arrays, st.lists(st.integers(-2, 12), max_size=4), plain_values, st.just(Harmful())),
    max_size=4,
)


@fuzz(1200)
@given(value=st.one_of(cifar_dicts, plain_values), protocol=st.integers(2, 5), draw_from=st.data())
@pytest.mark.filterwarnings("ignore")
def test_cifar_batches(value, protocol, draw_from, tmp_path, record_count):
    record_count("fuzzed inputs")
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir(exist_ok=True)
    content = damaged(pickle.dumps(value, protocol=protocol), draw_from)
    (folder / "test_batch").write_bytes(content)
    result = read_or_refuse(load_cifar, "cifar10", tmp_path, False)
    if result is not None:
        assert result.images.shape == (len(result.labels), 3, 32, 32) and result.images.dtype == torch.uint8
    assert not Path("/tmp/patt-fuzz-was-here").exists()


@fuzz(1200)
@given(
    shape=st.lists(st.integers(0, 40), max_size=5),
    dtype=st.sampled_from(["u1", "i8", "f4", "O", "U3"]),
    right=st.booleans(),
    draw_from=st.data(),
)
def test_npy_files(shape, dtype, right, draw_from, tmp_path, record_count):
    record_count("fuzzed inputs")
    folder = tmp_path / "Tiny_Images_Dataset"
    folder.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    array = np.zeros((3, 32, 32, 3), np.uint8) if right else np.zeros(shape, dtype)
    np.save(buffer, array, allow_pickle=True)
    content = buffer.getvalue()
    header = damaged(content[:128], draw_from)
    (folder / "300K_random_images.npy").write_bytes(header + content[128:])
    images = read_or_refuse(load_outliers, tmp_path, 2)
    if images is not None:
        assert images.dtype == torch.uint8 and images.shape[1:] == (3, 32, 32) and 0 < len(images) <= 2
        images.clone()


members = st.lists(
    st.tuples(
        names,
        st.binary(max_size=20),
        st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE]),
    ),
    max_size=4,
)


@fuzz(600)
@given(members=members, draw_from=st.data(), kind=st.sampled_from(["tar", "zip"]))
@pytest.mark.filterwarnings("ignore")
def test_archives(members, draw_from, kind, tmp_path, tmp_path_factory, record_count):
    record_count("fuzzed inputs")
    work = tmp_path_factory.mktemp("archive")
    (work / "outside.txt").write_text("stays")
    buffer = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, content, member_kind in members:
                info = tarfile.TarInfo(name)
                info.type, info.linkname = member_kind, "../outside.txt"
                info.size = len(content) if member_kind == tarfile.REGTYPE else 0
                try:
                    archive.addfile(info, io.BytesIO(content))
                except (ValueError, UnicodeError):  # a name that tar itself cannot hold
                    continue
    else:
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content, _ in members:
                try:
                    archive.writestr(name or "x", content)
                except (ValueError, UnicodeError):
                    continue
    (work / f"a.{kind}").write_bytes(damaged(buffer.getvalue(), draw_from))
    before = snapshot(work)
    read_or_refuse(unpack, work / f"a.{kind}", work / "target")
    after = {p: content for p, content in snapshot(work).items() if not p.is_relative_to(work / "target")}
    assert after == before
    assert not any(p.is_symlink() for p in work.rglob("*"))


FLAGS = (
    "--ds --md --rho -b --ob -e --lr --wd --seed --isac --FC --gpu --temperature --opt --recipe "
    "--depart --dout "
    "--val_fraction --num_ood_samples --image_size --de --score"
).split()
words = st.one_of(
    st.sampled_from(FLAGS),
    st.text(max_size=6),
    st.integers(-3, 10**9).map(str),
    st.floats().map(str),
    st.sampled_from("digits cifar10 ResNet18 True False 0 1 nan inf -inf 1e999 released --".split()),
)


@fuzz(2500)
@given(argv=st.lists(words, max_size=8), script=st.sampled_from(["train", "train_imagenet", "test"]))
def test_flags(argv, script, record_count, capsys):
    record_count("fuzzed inputs")
    parse = {"train": train, "train_imagenet": train_imagenet, "test": evaluation}[script].parse_args
    try:
        args = parse(argv if script != "test" else [*argv, "--ckpt_path", "x"])
    except SystemExit as end:
        assert end.code in (0, 2)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        json.dumps(vars(args), default=str)
        assert script == "test" or (args.epochs >= 1 and args.lr > 0 and args.batch_size >= 1)
    output = capsys.readouterr()
    assert "Traceback" not in output.err
