"""Checkpoint files: whole or noticed to be damaged, without code, in every published form."""

import argparse
import math
import os
import pickle
import random

import numpy as np
import pytest
import torch
from command_line import Code, assert_same

from utils.checkpoint import (
    LATEST,
    PREVIOUS,
    load_checkpoint,
    open_checkpoint,
    require_classes,
    save_checkpoint,
)
from utils.errors import InputError
from utils.weights import network_weights


def state(epoch=1):
    g = torch.Generator().manual_seed(epoch)
    return {
        "model": {"w": torch.randn(5, 7, generator=g), "n": torch.tensor(3)},
        "epoch": epoch,
        "history": [{"loss": 0.5}],
        "args": {"ds": "digits", "rho": 0.1, "resume": None, "depart": ["crop"]},
    }


def test_a_checkpoint_is_read_as_it_was_saved_and_the_one_before_is_kept(tmp_path):
    for epoch in (1, 2, 3):
        save_checkpoint(state(epoch), tmp_path / LATEST)
    assert_same(load_checkpoint(tmp_path / LATEST), state(3))
    assert_same(load_checkpoint(tmp_path / PREVIOUS), state(2))
    assert_same(torch.load(tmp_path / LATEST, weights_only=True), state(3))
    assert sorted(p.name for p in tmp_path.iterdir()) == [LATEST, PREVIOUS]


def test_a_flipped_bit_is_noticed_or_harmless(tmp_path):
    save_checkpoint(state(), tmp_path / LATEST)
    path = tmp_path / LATEST
    whole = path.read_bytes()
    noticed = 0
    for bit in random.Random(0).sample(range(8 * whole.index(b"PK\x01\x02")), 800):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert_same(load_checkpoint(path), state(), f"bit {bit}")
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            noticed += 1
    assert noticed > 300


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_latest_is_replaced_by_the_previous_with_a_warning(share, tmp_path):
    for epoch in (1, 2):
        save_checkpoint(state(epoch), tmp_path / LATEST)
    path = tmp_path / LATEST
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.warns(UserWarning, match=f"{LATEST}.*{PREVIOUS}"):
        assert open_checkpoint(tmp_path)["epoch"] == 1
    (tmp_path / PREVIOUS).unlink()
    with pytest.raises(InputError, match=LATEST):
        open_checkpoint(tmp_path)


def test_a_damaged_latest_does_not_become_the_previous(tmp_path):
    for epoch in (1, 2):
        save_checkpoint(state(epoch), tmp_path / LATEST)
    (tmp_path / LATEST).write_bytes((tmp_path / LATEST).read_bytes()[:-99])
    save_checkpoint(state(3), tmp_path / LATEST)
    assert [load_checkpoint(tmp_path / name)["epoch"] for name in (LATEST, PREVIOUS)] == [3, 1]


@pytest.mark.parametrize("moment", ["write", "fsync", "first rename", "second rename"])
def test_a_crash_while_saving_leaves_a_whole_checkpoint(moment, tmp_path, monkeypatch):
    save_checkpoint(state(3), tmp_path / LATEST)
    replace, renames = os.replace, iter([moment == "first rename", True])

    def crash(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        if moment == "write":
            patch.setattr(torch, "save", crash)
        elif moment == "fsync":
            patch.setattr(os, "fsync", crash)
        else:
            patch.setattr(os, "replace", lambda *names: crash() if next(renames) else replace(*names))
        with pytest.raises(OSError, match="no space"):
            save_checkpoint(state(9), tmp_path / LATEST)
    assert open_checkpoint(tmp_path)["epoch"] == 3
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
@pytest.mark.parametrize("kind", ["code", "module", "array"])
def test_what_is_neither_a_tensor_nor_a_plain_value_is_refused_and_not_run(write, kind, tmp_path):
    path, target = tmp_path / "stranger.pth", tmp_path / "touched"
    value = {"code": Code(target), "module": torch.nn.Linear(2, 2), "array": np.zeros(3)}[kind]
    write({"model": {"w": torch.ones(1)}, "extra": value}, path)
    with pytest.raises(InputError, match="stranger.pth") as refusal:
        load_checkpoint(path)
    assert "\n" not in str(refusal.value) and "\x1b" not in str(refusal.value)
    assert not target.exists()


@pytest.mark.parametrize("new_format", [True, False])
def test_numpy_numbers_and_namespaces_beside_the_weights_are_read(new_format, tmp_path):
    """As published checkpoints of this field hold them; ``False`` is the format before torch 1.6."""
    numbers = [np.dtype(code).type(3) for code in "b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16".split()]
    numbers.append(np.frombuffer(np.array(-2.5, ">f8").tobytes(), ">f8")[0])
    saved = {"state_dict": {"w": torch.ones(2)}, "numbers": numbers, "nan": np.float64("nan")}
    saved["args"] = argparse.Namespace(lr=0.1, rho=np.float64(0.01), gpu=None)
    torch.save(saved, tmp_path / "x.pth", _use_new_zipfile_serialization=new_format)
    loaded = load_checkpoint(tmp_path / "x.pth")
    assert loaded["numbers"] == [number.item() for number in numbers] and math.isnan(loaded["nan"])
    assert {type(v) for v in loaded["numbers"]} == {bool, int, float, complex}
    assert loaded["args"].rho == 0.01 and network_weights(loaded).keys() == {"w"}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "module.module."])
@pytest.mark.parametrize(
    "path", [(), ("model",), ("state_dict",), ("net",), ("model_state_dict",), ("model", "net")]
)
def test_weights_are_found_in_every_published_form(prefix, path):
    weights = {"conv1.weight": torch.ones(2), "module_of_mine.bias": torch.zeros(1)}
    checkpoint = {prefix + name: value for name, value in weights.items()}
    for container in reversed(path):
        checkpoint = {"epoch": 7, "optimizer": {"state": {}}, container: checkpoint}
    assert_same(network_weights(checkpoint), weights)


@pytest.mark.parametrize(
    "counts,names,word",
    [
        ([9, 4, 1], None, r"\[1\] is 4 here"),
        ([9, 5], None, "2 classes"),
        ([9, 5, 2], ["apple", "cherry", "banana"], r"\[1\] is 'cherry'"),
    ],
)
def test_other_training_images_than_the_runs_are_refused_by_the_first_class_that_differs(counts, names, word):
    checkpoint = {"class_counts": [9, 5, 2], "class_names": ["apple", "banana", "cherry"]}
    require_classes(checkpoint, [9, 5, 2], ["apple", "banana", "cherry"])
    for unknown in ({}, {"class_names": None}):
        require_classes(unknown, counts, names)
    with pytest.raises(InputError, match=word):
        require_classes(checkpoint, counts, names)
