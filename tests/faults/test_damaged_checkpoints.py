"""Checkpoints that are damaged on the disk or cut short while written: damage is found, and one is whole."""

import os
import random
import zipfile

import pytest
import torch
from utils.run.checkpoint import LATEST, PREVIOUS, load_checkpoint, load_run, save_checkpoint

from utils.errors import InputError
from utils.run import checkpoint as checkpoint_module


def small_state():
    generator = torch.Generator().manual_seed(0)
    return {
        "model": {"weight": torch.randn(40, 5, generator=generator)},
        "epoch": 3,
        "names": ["a", "b"],
        "rate": 0.1,
    }


def same(a, b):
    return (
        a.keys() == b.keys()
        and torch.equal(a["model"]["weight"], b["model"]["weight"])
        and all(a[k] == b[k] for k in ("epoch", "names", "rate"))
    )


def test_every_flipped_bit_is_found_or_harmless(tmp_path, record_count):
    save_checkpoint(small_state(), tmp_path)
    whole = (tmp_path / LATEST).read_bytes()
    directory = 8 * whole.index(
        b"PK\x01\x02"
    )  # where no checksum reaches: all of it, and of the rest a sample
    flips = [*random.Random(0).sample(range(directory), 800), *range(directory, 8 * len(whole))]
    found = 0
    for bit in flips:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "x.pth").write_bytes(damaged)
        try:
            assert same(load_checkpoint(tmp_path / "x.pth"), small_state()), (
                f"bit {bit} changed what was read"
            )
        except InputError:
            found += 1
    assert found > 300
    record_count("bits flipped in checkpoints", len(flips))


def test_a_damaged_latest_does_not_take_the_place_of_the_previous(tmp_path):
    for epoch in (1, 2):
        save_checkpoint(small_state() | {"epoch": epoch}, tmp_path)
    (tmp_path / LATEST).write_bytes((tmp_path / LATEST).read_bytes()[:-100])
    save_checkpoint(small_state() | {"epoch": 3}, tmp_path)
    assert [load_checkpoint(tmp_path / name)["epoch"] for name in (PREVIOUS, LATEST)] == [1, 3]


@pytest.mark.parametrize("damage", ["empty", "half", "one byte short", "flipped"])
def test_a_damaged_latest_falls_back_to_the_previous(damage, tmp_path):
    first, second = small_state(), small_state() | {"epoch": 4}
    save_checkpoint(first, tmp_path)
    save_checkpoint(second, tmp_path)
    assert load_run(tmp_path)["epoch"] == 4
    file = tmp_path / LATEST
    whole = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        record = next(r for r in archive.infolist() if r.filename.endswith("data/0"))
    whole[record.header_offset + 200] ^= 4  # within the weights
    file.write_bytes(
        {
            "empty": b"",
            "half": whole[: len(whole) // 2],
            "one byte short": whole[:-1],
            "flipped": bytes(whole),
        }[damage]
    )
    with pytest.warns(UserWarning, match=LATEST):
        assert load_run(tmp_path)["epoch"] == 3
    (tmp_path / PREVIOUS).unlink()
    with pytest.raises(InputError, match=LATEST):
        load_run(tmp_path)


def test_a_crash_while_saving_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(small_state(), tmp_path)
    for step in ("save", "fsync", "first rename", "second rename"):
        renames = iter([None, OSError("crash")] if step == "second rename" else [OSError("crash")])

        def replace(source, target, renames=renames, original=os.replace):
            problem = next(renames)
            if problem is not None:
                raise problem
            original(source, target)

        def crash(*_):
            raise OSError("crash")

        with monkeypatch.context() as patch:
            if step == "save":
                patch.setattr(checkpoint_module.torch, "save", crash)
            elif step == "fsync":
                patch.setattr(checkpoint_module.os, "fsync", crash)
            else:
                patch.setattr(checkpoint_module.os, "replace", replace)
            with pytest.raises(OSError, match="crash"):
                save_checkpoint(small_state() | {"epoch": 9}, tmp_path)
        assert load_run(tmp_path)["epoch"] == 3, step
