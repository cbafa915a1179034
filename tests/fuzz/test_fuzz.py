"""Broken inputs: each is read or refused with a sentence; nothing else happens."""

import pickle

import numpy as np
import pytest
import torch
from fuzzing import damaged, fuzz, plain_values, read_or_refuse
from hypothesis import given
from hypothesis import strategies as st

from datasets.cifar import load_cifar
from datasets.image_list import ANY_LABEL, read_image_list

names = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["a.png", "../a.png", "/etc/passwd", "x/../../a", "a/..", ".", "a\x00b", "~/a"]),
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


@fuzz(1000)
@given(content=list_bytes, labels=st.sampled_from([ANY_LABEL, range(8), None]))
def test_image_lists(content, labels, tmp_path, record_count):
    record_count("fuzzed inputs")
    root = tmp_path / "root"
    (tmp_path / "list.txt").write_bytes(content)
    result = read_or_refuse(read_image_list, tmp_path / "list.txt", labels)
    if result is not None:
        paths, read = result
        assert len(paths) == len(read) > 0 and set(read.tolist()) <= set(labels or [-1])
        for path in paths:  # there is no link here, which would be the folder owner's and be followed
            assert "\0" in path or (root / path).resolve().is_relative_to(root.resolve())


arrays = st.tuples(
    st.sampled_from(["u1", "i4", "f8", "O"]),
    st.lists(st.integers(0, 6), max_size=3),
    st.sampled_from([1, 3072]),
).map(lambda t: np.zeros((*t[1], t[2]), dtype=t[0]))
cifar_dicts = st.dictionaries(
    st.sampled_from([b"data", b"labels", b"fine_labels", "data", b"x"]),
    st.one_of(arrays, st.lists(st.integers(-2, 12), max_size=4), plain_values),
    max_size=4,
)


@fuzz(600)
@given(value=st.one_of(cifar_dicts, plain_values), protocol=st.integers(2, 4), draw_from=st.data())
@pytest.mark.filterwarnings("ignore")
def test_cifar_batches(value, protocol, draw_from, tmp_path, record_count):
    record_count("fuzzed inputs")
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir(exist_ok=True)
    (folder / "test_batch").write_bytes(damaged(pickle.dumps(value, protocol=protocol), draw_from))
    result = read_or_refuse(load_cifar, "cifar10", tmp_path, False)
    if result is not None:
        assert result.images.shape == (len(result.labels), 3, 32, 32) and result.images.dtype == torch.uint8
