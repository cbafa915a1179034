import io
import pickle
import random
import warnings
import zipfile

import pytest
import torch

from utils.errors import InputError
from utils.run.checkpoint import LATEST, PREVIOUS, load_checkpoint, load_run, open_checkpoint, save_checkpoint


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
    with pytest.warns(UserWarning, match="latest.pth.*going on from .*previous.pth"):
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
        checkpoint, folder = open_checkpoint(path)
        assert checkpoint["epoch"] == 4 and folder == tmp_path


def test_missing_files_and_empty_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="nothing.pth"):
        open_checkpoint(tmp_path / "nothing.pth")
    with pytest.raises(InputError, match=str(tmp_path)):
        open_checkpoint(tmp_path)
