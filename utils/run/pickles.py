"""Reads pickles of strangers. Forbidding code is not enough: a key may overflow the stack, and a size may go
beyond the file."""

import pickle

import torch

PLAIN_TENSORS = (
    "_rebuild_tensor",
    "_rebuild_tensor_v2",
    "_rebuild_tensor_v3",
    "_rebuild_parameter",
)  # dense, on the CPU


class Refused(Exception):
    """A pickle asks for something that a reader of plain values does not give; the message says for what."""


class Instructions(dict):
    """The unpickler's methods by instruction; those that are not among ``names`` are refused."""

    def __init__(self, names, checks):
        every = pickle._Unpickler.dispatch
        super().__init__(
            {getattr(pickle, name)[0]: every[getattr(pickle, name)[0]] for name in names.split()}
        )
        self.update({getattr(pickle, name)[0]: method for name, method in checks.items()})

    def __missing__(self, code):
        raise Refused(f"it uses the instruction {bytes([code])!r}")


def _set_item(unpickler):
    _check_keys(unpickler.stack[-2:-1])
    unpickler.load_setitem()


def _set_items(unpickler):
    _check_keys(unpickler.stack[::2])
    unpickler.load_setitems()


KEY_CHECKS = {"SETITEM": _set_item, "SETITEMS": _set_items}


def _check_keys(keys):
    """The hash of nested tuples recurses in C, where nothing bounds it, and doubles with each level of shared
    ones."""
    for key in keys:
        if not isinstance(key, (str, bytes, int, float, type(None))):
            raise Refused("a key is neither text nor a number")


class Inspector(pickle._Unpickler):
    """Walks through the pickle in a checkpoint without making anything of it; a first look, before
    ``torch.load``.

    Args:
        file: where the pickle begins.
        storage_bytes: key of a storage -> how many bytes there are of it, or None. Older versions of torch
            believe the pickle and read beyond the end of the storage.

    Raises:
        Refused: from ``load``, for what holds more than tensors and plain values or has a size that is not
            true.
    """

    dispatch = Instructions(
        """PROTO STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT SHORT_BINSTRING
        BINUNICODE EMPTY_LIST EMPTY_DICT EMPTY_TUPLE APPEND APPENDS TUPLE TUPLE1 TUPLE2 TUPLE3 BINPUT
        LONG_BINPUT BINGET LONG_BINGET BINPERSID GLOBAL REDUCE BUILD""",
        KEY_CHECKS,
    )

    def __init__(self, file, storage_bytes):
        super().__init__(file, encoding="utf-8")
        self.storage_bytes = storage_bytes

    def find_class(self, module, name):
        if module == "torch._utils" and name not in PLAIN_TENSORS:
            raise Refused(f"it holds tensors of another kind, by {name[:80]}")
        return _Named(f"{module}.{name}"[:200])

    def persistent_load(self, pid):
        kind, storage, key, _, size, *_ = pid
        if (
            kind != "storage"
            or type(storage) is not _Named
            or type(key) is not str
            or type(size) is not int
            or size < 0
        ):
            raise Refused("a storage is not described as torch does")
        there = self.storage_bytes(key)
        if there is None or size * storage.item_bytes() > there:
            raise Refused(
                f"a tensor's storage has {size:,} elements, and the file {there or 0:,} bytes of it"
            )
        return _Made()


class _Named:
    """Stands in for a class or a function."""

    def __init__(self, name):
        self.name = name

    def __call__(self, *args):
        # What fills a container from its arguments takes keys from there.
        if self.name.startswith(("collections.", "builtins.", "__builtin__.")) and any(
            type(a) is not dict for a in args
        ):
            raise Refused(f"it calls {self.name} with arguments")
        return _Made()

    def item_bytes(self):
        """Bytes of one element of a storage class."""
        module, _, name = self.name.rpartition(".")
        if name == "UntypedStorage":
            return 1
        kind = getattr(torch, name, None) if module == "torch" and name.endswith("Storage") else None
        if getattr(kind, "dtype", None) is None:
            raise Refused(f"it names {self.name} as a storage")
        return kind.dtype.itemsize


class _Made:
    """Stands in for what a call returns."""

    def __setitem__(self, key, value):
        pass

    def __setstate__(self, state):
        pass

    def append(self, value):
        pass

    def extend(self, values):
        pass
