"""Reads untrusted pickles, in which not only code is a danger: keys may overflow the stack, and sizes may
exceed the file."""

import pickle
from collections.abc import Callable

import numpy as np
import torch

# Names that occur in pickles of tensors and plain values, besides storages, dtypes and numpy's numbers.
PLAIN = {
    "torch._utils._rebuild_tensor",  # dense tensors on the CPU
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch.Size",
    "torch.device",
    "collections.OrderedDict",
    "collections.Counter",
    "_codecs.encode",
}
NUMPY_NUMBERS = frozenset("b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16".split())
BYTE_ORDERS = [(order,) for order in ("<", ">", "|", "=", b"<", b">", b"|", b"=")]
NUMPY_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # numpy 1 and 2


class Refused(Exception):
    """A pickle asks for something that plain values do not need; the message says what."""


class NotPlain(Refused):
    """It holds something that is neither a tensor nor a plain value, and may well be harmless."""


class NumpyDtype:
    """Replaces ``numpy.dtype``, for numbers only; numpy's own also takes objects and records.

    Args:
        code: such as "f8"; Python 2 pickled bytes. align, copy: as numpy pickles them, False and True.

    Raises:
        Refused: another dtype.
    """

    def __init__(self, code: str | bytes, align: bool, copy: bool):
        code = code.decode("ascii") if type(code) is bytes else code
        if type(code) is not str:  # which might take for ever to print
            raise Refused("a numpy dtype is not described as numpy does")
        if code not in NUMPY_NUMBERS:
            raise NotPlain(f"it holds values of numpy's dtype {code[:20]!r}")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple):
        if type(state) is not tuple or state[1:2] not in BYTE_ORDERS:
            raise Refused("a numpy dtype is not described as numpy does")
        if state[2:] != (None, None, None, -1, -1, 0):
            raise NotPlain("it holds values of a numpy dtype with fields or metadata")
        self.order = state[1] if type(state[1]) is str else state[1].decode("ascii")


def numpy_scalar(dtype: NumpyDtype, data: bytes) -> bool | int | float | complex:
    """Returns a number that numpy pickled as a Python number.

    Raises:
        Refused: its bytes are not those of one number.
    """
    if type(dtype) is not NumpyDtype or type(data) is not bytes or len(data) != int(dtype.code[1:]):
        raise Refused("a numpy scalar is not described as numpy does")
    return np.frombuffer(data, dtype.order + dtype.code).item()


def numpy_readers() -> list[type | tuple[Callable, str]]:
    """Returns the two readers above under numpy's names, for ``torch.serialization.safe_globals``."""
    return [NumpyDtype, (NumpyDtype, "numpy.dtype"), *((numpy_scalar, name) for name in NUMPY_SCALARS)]


def encode(text, encoding):
    """Encodes bytes that pickles before protocol 3 hold as text."""
    if type(text) is not str or encoding != "latin1":
        raise Refused("bytes are not described as pickle does")
    return text.encode(encoding)


CALLS = {"numpy.dtype": NumpyDtype, "_codecs.encode": encode} | dict.fromkeys(NUMPY_SCALARS, numpy_scalar)


class Instructions(dict):
    """The unpickler's methods by instruction; any not in ``names`` are refused."""

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
    """Refuses tuples as keys: their hash recurses in C without bound, and doubles per level of shared
    ones."""
    for key in keys:
        if not isinstance(key, (str, bytes, int, float, type(None))):
            raise NotPlain("a key is neither text nor a number")


class Inspector(pickle._Unpickler):
    """Walks through the pickle in a checkpoint without building anything; a check before ``torch.load``.

    Args:
        file: where the pickle begins.
        storage_bytes: key of a storage -> its size in the file, in bytes, or None. Older versions of torch
            trust the pickle and read beyond the end of the storage.

    Raises:
        Refused: from ``load``; it holds more than tensors and plain values, or states a wrong size.
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
        full_name = f"{module}.{name}"
        if full_name not in PLAIN and full_name not in CALLS and not _is_storage_or_dtype(module, name):
            kind = "tensors of another kind, by " if module == "torch._utils" else ""
            raise NotPlain(f"it holds {kind}{full_name[:200]}")
        return _Named(full_name)

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


def _is_storage_or_dtype(module, name):
    """Tells whether it is a storage class, such as torch.FloatStorage, or a dtype, such as torch.float32."""
    if (module, name) == ("torch.storage", "UntypedStorage"):
        return True
    return module == "torch" and (
        isinstance(getattr(torch, name, None), torch.dtype) or _storage_dtype(name) is not None
    )


def _storage_dtype(name):
    """Returns the dtype of torch's storage class ``name``; None for another name."""
    kind = getattr(torch, name, None) if name.endswith("Storage") else None
    return kind.dtype if isinstance(getattr(kind, "dtype", None), torch.dtype) else None


class _Named:
    """Stands in for a class or a function."""

    def __init__(self, name):
        self.name = name

    def __call__(self, *args):
        if self.name in CALLS:
            return CALLS[self.name](*args)
        # Containers take keys from their arguments.
        if self.name.startswith("collections.") and any(type(a) is not dict for a in args):
            raise NotPlain(f"it calls {self.name} with arguments")
        return _Made()

    def __setstate__(self, state):
        raise Refused(f"it changes {self.name}")

    def item_bytes(self):
        """Returns the bytes of one element of a storage class."""
        if self.name == "torch.storage.UntypedStorage":
            return 1
        dtype = _storage_dtype(self.name.removeprefix("torch."))
        if dtype is None:
            raise Refused(f"it names {self.name} as a storage")
        return dtype.itemsize


class _Made:
    """Stands in for the result of a call."""

    def __setitem__(self, key, value):
        pass

    def __setstate__(self, state):
        pass

    def append(self, value):
        pass

    def extend(self, values):
        pass
