import argparse
import io
import math
import pickle
import random
import shlex
import warnings
import zipfile

import numpy as np
import pytest
import torch
from utils.run.checkpoint import (
    LATEST,
    PREVIOUS,
    load_checkpoint,
    load_run,
    open_checkpoint,
    results_folder,
    save_checkpoint,
)
from utils.run.pickles import NUMPY_NUMBERS
from utils.run.stored import require_class_counts
from utils.run.weights import network_weights

from utils.errors import InputError


def state(epoch=1):
    g = torch.Generator().manual_seed(epoch)
    return {
        "model": {"w": torch.randn(5, 7, generator=g), "n": torch.tensor(3)},
        "epoch": epoch,
        "history": [{"loss": 0.5}],
        "args": {"ds": "digits", "rho": 0.1, "resume": None, "depart": ["crop"]},
        "rng": torch.get_rng_state(),
    }


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return a == b


def test_round_trip_without_code(tmp_path):
    saved = state()
    save_checkpoint(saved, tmp_path)
    assert equal(load_checkpoint(tmp_path / LATEST), saved)
    assert equal(torch.load(tmp_path / LATEST, weights_only=True), saved)
    assert [p.name for p in tmp_path.iterdir()] == [LATEST]


def test_the_one_before_is_kept(tmp_path):
    for epoch in (1, 2, 3):
        save_checkpoint(state(epoch), tmp_path)
    assert (
        load_checkpoint(tmp_path / LATEST)["epoch"] == 3
        and load_checkpoint(tmp_path / PREVIOUS)["epoch"] == 2
    )
    assert load_run(tmp_path)["epoch"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == [LATEST, PREVIOUS]


def test_a_flipped_bit_is_noticed_or_harmless(tmp_path):
    saved = state()
    save_checkpoint(saved, tmp_path)
    path, draw = tmp_path / LATEST, random.Random(0)
    whole = path.read_bytes()
    noticed = 0
    for _ in range(200):
        position = draw.randrange(len(whole))
        path.write_bytes(
            whole[:position] + bytes([whole[position] ^ 1 << draw.randrange(8)]) + whole[position + 1 :]
        )
        try:
            assert equal(load_checkpoint(path), saved), (
                position
            )  # padding, dates and attributes of the archive
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            noticed += 1
    assert noticed > 60


def test_a_flipped_bit_in_a_weight_is_noticed(tmp_path):
    saved = state()
    save_checkpoint(saved, tmp_path)
    path = tmp_path / LATEST
    whole, weight = path.read_bytes(), saved["model"]["w"].numpy().tobytes()
    start = whole.index(weight)
    for offset in range(0, len(weight), 13):
        path.write_bytes(
            whole[: start + offset] + bytes([whole[start + offset] ^ 1]) + whole[start + offset + 1 :]
        )
        with pytest.raises(InputError, match="damaged"):
            load_checkpoint(path)


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_and_empty_files(tmp_path, share):
    save_checkpoint(state(), tmp_path)
    path = tmp_path / LATEST
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match="latest.pth"):
        load_checkpoint(path)
    with pytest.raises(InputError, match="latest.pth"):
        load_run(tmp_path)


def test_a_damaged_latest_falls_back_to_the_previous_with_a_warning(tmp_path):
    save_checkpoint(state(1), tmp_path)
    save_checkpoint(state(2), tmp_path)
    (tmp_path / LATEST).write_bytes(b"half a file")
    with pytest.warns(UserWarning, match="latest.pth.*using .*previous.pth instead"):
        assert load_run(tmp_path)["epoch"] == 1


def test_a_crash_between_the_renames_leaves_the_previous(tmp_path):
    save_checkpoint(state(1), tmp_path)
    (tmp_path / LATEST).rename(tmp_path / PREVIOUS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_run(tmp_path)["epoch"] == 1


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    save_checkpoint(state(1), tmp_path)

    def full(value, file):
        file.write(b"some bytes")
        raise RuntimeError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(state(2), tmp_path)
    assert load_run(tmp_path)["epoch"] == 1
    assert [p.name for p in tmp_path.iterdir()] == [LATEST]


class Payload:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, write):
    path, target = tmp_path / "stranger.pth", tmp_path / "touched"
    write({"model": {"w": Payload(target)}}, path)
    with pytest.raises(InputError, match="only tensors and plain values"):
        load_checkpoint(path)
    assert not target.exists()


def with_pickle(path, change):
    """A checkpoint of one tensor whose pickle is ``change(pickle)``, its checksums right."""
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(4.0)}, buffer)
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(path, "w") as changed:
        for record in archive.namelist():
            content = archive.read(record)
            changed.writestr(record, change(content) if record.endswith("data.pkl") else content)
    return path


@pytest.mark.parametrize(
    "change,reason",
    [
        (
            lambda pickled: pickled.replace(b"K\x04", b"J" + (10**6).to_bytes(4, "little")),
            "1,000,000 elements",
        ),  # K 4: of 4
        (
            lambda _: b"\x80\x02}()" + b"\x85" * 10**6 + b"K\x01u.",
            "a key is neither",
        ),  # its hash would overflow the stack
        (
            lambda _: b"\x80\x02)q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"}h\x00K\x01s.",
            "a key is neither",
        ),  # 2^60 steps
        (
            lambda _: b"\x80\x02ccollections\nCounter\n)" + b"\x85" * 10**6 + b"\x85R.",
            "collections.Counter with arguments",
        ),
        (lambda _: b"\x80\x02ctorch._utils\n_rebuild_meta_tensor_no_storage\n.", "tensors of another kind"),
    ],
)
def test_crafted_pickles_are_refused_before_torch_reads_them(tmp_path, change, reason):
    with pytest.raises(InputError, match=reason):
        load_checkpoint(with_pickle(tmp_path / "stranger.pth", change))


NUMBERS = [np.dtype(code).newbyteorder(order).type(3) for code in sorted(NUMPY_NUMBERS) for order in "<>"]


@pytest.mark.parametrize("new_format", [True, False])
def test_numpy_numbers_beside_the_weights_are_read_as_pythons_own(new_format, tmp_path):
    """As the released latest.pth of this field hold them."""
    big_endian = np.frombuffer(np.array(-2.5, ">f8").tobytes(), ">f8")[0]
    saved = {"many_accs": [np.float64(0.1), np.float32(0.5)], "numbers": NUMBERS, "other": big_endian}
    saved |= {"rho": np.float64(0.01), "best": np.bool_(True), "nan": np.float64("nan")}
    torch.save(saved, tmp_path / "x.pth", _use_new_zipfile_serialization=new_format)
    loaded = load_checkpoint(tmp_path / "x.pth")
    assert loaded["many_accs"] == [0.1, 0.5] and loaded["other"] == -2.5 and math.isnan(loaded["nan"])
    assert loaded["numbers"] == [number.item() for number in NUMBERS] and loaded["best"] is True
    assert {type(v) for v in loaded["numbers"]} == {bool, int, float, complex} and type(
        loaded["rho"]
    ) is float


def test_a_numpy_dtype_alone_does_no_harm(tmp_path):
    torch.save({"w": torch.ones(2), "dtype": np.dtype("f4")}, tmp_path / "x.pth")
    assert torch.equal(load_checkpoint(tmp_path / "x.pth")["w"], torch.ones(2))


def pickled_number(
    code=b"f8", state=b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t", size=8
):
    """numpy.core.multiarray.scalar(dtype, bytes), as protocol 2 has it."""
    dtype = b"cnumpy\ndtype\nX%c\x00\x00\x00%b\x89\x88\x87R%bb" % (len(code), code, state)
    data = b"c_codecs\nencode\nX%c\x00\x00\x00%bX\x06\x00\x00\x00latin1\x86R" % (size, b"\x00" * size)
    return b"\x80\x02cnumpy.core.multiarray\nscalar\n" + dtype + data + b"\x86R."


def test_the_hand_made_number_is_one(tmp_path):
    assert pickle.loads(pickled_number()) == 0.0
    assert load_checkpoint(with_pickle(tmp_path / "x.pth", lambda _: pickled_number())) == 0.0


@pytest.mark.parametrize(
    "crafted",
    [
        pickled_number(code=b"O8"),
        pickled_number(code=b"O"),
        pickled_number(code=b"V8"),
        pickled_number(code=b"f9"),
        pickled_number(size=7),
        pickled_number(size=9),
        pickled_number(size=0),
        pickled_number(state=b"}"),
        pickled_number(state=b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ft"),
        pickled_number(state=b"(K\x03X\x01\x00\x00\x00|NX\x01\x00\x00\x00aNK\x08K\x01K\x00t"),
        b"\x80\x02cnumpy.core.multiarray\nscalar\n}(X\x08\x00\x00\x00__code__K\x01ub.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R.",
        b"\x80\x02cutils.run.pickles\nNumpyDtype\n.",
    ],
)
def test_numpy_values_that_are_no_numbers_are_refused(crafted, tmp_path):
    with pytest.raises(InputError, match="only tensors and plain values"):
        load_checkpoint(with_pickle(tmp_path / "stranger.pth", lambda _: crafted))


@pytest.mark.parametrize(
    "name,extra",
    [
        ("argparse.Namespace", argparse.Namespace(lr=0.1)),
        ("numpy.core.multiarray._reconstruct|numpy._core.multiarray._reconstruct", np.zeros(3)),
        ("torch.nn.modules.linear.Linear", torch.nn.Linear(2, 2)),
        ("__builtin__.set", {1, 2}),
        ("a key is neither", {(1, 2): 3}),
    ],
)
@pytest.mark.parametrize("container", ["model", "state_dict", None])
def test_what_is_not_plain_is_named_with_a_command_that_converts_it(name, extra, container, tmp_path):
    path, weights = tmp_path / "it's $HOME.pth", {"conv1.weight": torch.arange(3.0)}
    torch.save({container: weights, "extra": extra} if container else weights | {"extra": extra}, path)
    with pytest.raises(InputError, match=name) as refusal:
        load_checkpoint(path)
    text = str(refusal.value)
    assert "\x1b" not in text and "\n" not in text and text.count("; ") >= 1
    python, option, code = shlex.split(text[text.index("python -c ") :])
    exec(code, {})
    converted = load_checkpoint(tmp_path / "it's $HOME-weights.pth")
    assert equal(network_weights(converted), weights)


def test_torchs_own_refusal_is_shown_without_its_advice(tmp_path):
    with pytest.raises(InputError, match="admitted\\): Can only build Tensor") as refusal:
        load_checkpoint(with_pickle(tmp_path / "x.pth", lambda _: b"\x80\x02\x88}b."))
    assert "\x1b" not in str(refusal.value) and "weights_only" not in str(refusal.value)


def test_a_whole_module_is_named_and_converted(tmp_path):
    module = torch.nn.Linear(2, 3)
    for saved in (module, {"net": module, "epoch": 3}):
        torch.save(saved, tmp_path / "x.pth")
        with pytest.raises(InputError, match="it holds torch.nn.modules.linear.Linear") as refusal:
            load_checkpoint(tmp_path / "x.pth")
        exec(shlex.split(str(refusal.value).partition("python -c ")[2])[0], {})
        converted = network_weights(load_checkpoint(tmp_path / "x-weights.pth"))
        assert equal(converted, dict(module.state_dict()))


def test_a_pickle_that_torch_did_not_write_is_named(tmp_path):
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"model": {}}))
    with pytest.raises(InputError, match="torch.save did not write it"):
        load_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "module.module."])
@pytest.mark.parametrize(
    "path", [(), ("model",), ("state_dict",), ("net",), ("model_state_dict",), ("model", "net")]
)
def test_weights_are_found_in_every_published_form(prefix, path):
    weights = {"conv1.weight": torch.ones(2), "module_of_mine.bias": torch.zeros(1)}
    checkpoint = {prefix + name: value for name, value in weights.items()}
    for container in reversed(path):
        checkpoint = {
            "epoch": 7,
            "best": torch.tensor(1.0),
            "optimizer": {"state": {}},
            container: checkpoint,
        }
    assert equal(network_weights(checkpoint), weights)


def test_a_container_without_tensors_does_not_hide_the_weights():
    assert network_weights({"model": {"depth": 18}, "state_dict": {"w": torch.ones(1)}}).keys() == {"w"}
    endless = {"epoch": 1}
    endless["model"] = endless
    with pytest.raises(InputError, match="no network weights"):
        network_weights(endless)


def test_where_there_are_no_weights_the_message_lists_the_keys():
    with pytest.raises(InputError, match="no network weights.*'backbone', 'epoch'"):
        network_weights({"backbone": {"w": torch.ones(2)}, "epoch": 3})
    with pytest.raises(InputError, match="with and without"):
        network_weights({"w": torch.ones(2), "module.w": torch.ones(2)})


def test_a_record_that_says_it_is_a_folder_is_refused(tmp_path):
    """One bit of the archive's directory, under no checksum, for which torch would leave a tensor as the
    memory happens to be."""
    save_checkpoint(state(), tmp_path)
    whole = bytearray((tmp_path / LATEST).read_bytes())
    whole[whole.index(b"PK\x01\x02") + 38] ^= 0x10
    (tmp_path / LATEST).write_bytes(whole)
    with pytest.raises(InputError, match="marked as a folder"):
        load_checkpoint(tmp_path / LATEST)


def test_a_folder_or_a_file_can_be_opened(tmp_path):
    save_checkpoint(state(4), tmp_path)
    for path in (tmp_path, tmp_path / LATEST):
        assert open_checkpoint(path)["epoch"] == 4 and results_folder(path) == tmp_path


def test_the_results_of_two_files_in_one_folder_have_folders_of_their_own(tmp_path):
    files = [tmp_path / name for name in (LATEST, PREVIOUS, "a.pth", "a.pt", "a")]
    for file in files:
        file.touch()
    assert results_folder(files[0]) == tmp_path
    folders = {results_folder(file) for file in files}
    assert len(folders) == len(files) and not any(folder.is_file() for folder in folders)


def test_other_training_images_than_the_runs_are_refused_by_class():
    require_class_counts({"class_counts": [9, 5, 2]}, [9, 5, 2])
    require_class_counts({}, [9, 5, 2])
    with pytest.raises(InputError, match="class 1 has 4 images, in its run 5"):
        require_class_counts({"class_counts": [9, 5, 2]}, [9, 4, 1])
    for stored in ([9, 5], 3, torch.ones(3), {"a": 1}):
        with pytest.raises(InputError, match="there are 3 classes"):
            require_class_counts({"class_counts": stored}, [9, 5, 2])
    with pytest.raises(InputError, match="class 2 has 2 images, in its run 'x"):
        require_class_counts({"class_counts": [9, 5, "x" * 999]}, [9, 5, 2])


def test_missing_files_and_empty_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="nothing.pth"):
        open_checkpoint(tmp_path / "nothing.pth")
    with pytest.raises(InputError, match=str(tmp_path)):
        open_checkpoint(tmp_path)
