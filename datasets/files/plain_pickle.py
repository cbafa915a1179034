"""Reads pickles of NumPy arrays and plain values, without running any code from them."""

import io
import pickle
from pathlib import Path

import numpy as np

from datasets.files.checks import require_file
from datasets.files.pickles import KEY_CHECKS, Instructions, NumpyDtype, Refused, encode, numpy_scalar
from utils.errors import InputError

MAX_BYTES = 1 << 30

# All that protocols 2 to 5 use for arrays, containers, numbers and strings. Missing on purpose: instructions
# that build instances of classes, call registered extensions or persistent ids, or fetch external buffers.
_INSTRUCTIONS = """
    PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT
    BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8
    BYTEARRAY8 EMPTY_LIST EMPTY_DICT EMPTY_TUPLE APPEND APPENDS TUPLE TUPLE1 TUPLE2 TUPLE3 BINPUT LONG_BINPUT
    MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD"""


class _Array:
    """Stands in for ``numpy.ndarray``: accepts only a shape, a numeric type and the matching bytes."""

    __slots__ = ("array",)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran_order, raw = state
        self.array = _from_bytes(raw, dtype, shape, "F" if fortran_order else "C")


def _from_bytes(raw: bytes, dtype: NumpyDtype, shape: tuple, order: str) -> np.ndarray:
    if type(dtype) is not NumpyDtype:
        raise Refused("an array is not described as numpy does")
    return np.frombuffer(raw, dtype.order + dtype.code).reshape(shape, order=order)


def _protocol_5_array(raw: bytes, dtype: NumpyDtype, shape: tuple, order: str = "C") -> _Array:
    result = _Array()
    result.array = _from_bytes(raw, dtype, shape, order)
    return result


# What may be called while reading. NumPy 2 renamed numpy.core; files have either name.
_CALLS = {
    ("numpy", "dtype"): NumpyDtype,
    ("_codecs", "encode"): encode,  # how Python 3 writes bytes into a protocol 2 pickle,
    ("__builtin__", "bytes"): lambda: b"",  # and those of no length
    **{(f"numpy.{core}.multiarray", "_reconstruct"): lambda *_: _Array() for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): numpy_scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _protocol_5_array for core in ("core", "_core")},
}


class _PlainUnpickler(pickle._Unpickler):
    dispatch = Instructions(_INSTRUCTIONS, KEY_CHECKS)

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("numpy", "ndarray"):
            return None  # only ever an argument of _reconstruct, which ignores it
        if (module, name) not in _CALLS:
            raise Refused(f"it names {module}.{name}"[:200])
        call = _CALLS[module, name]
        return lambda *args: call(*args)  # a new function each time: BUILD may set attributes on it


def read_plain_dict(path: Path) -> dict:
    """Returns the dictionary pickled in ``path``; strings of Python 2 become bytes, arrays are read-only.

    Raises:
        InputError: the file is missing, larger than ``MAX_BYTES``, damaged, not a dictionary, or holds
            anything but arrays of numbers and plain values. Code in it is never run.
    """
    require_file(path, "the pickle", MAX_BYTES)
    try:
        data = path.read_bytes()
        content = _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
    except Refused as error:
        raise InputError(
            f"{path} holds more than arrays and plain values and is not loaded: {error}"
        ) from error
    except Exception as error:  # a damaged pickle raises whatever the misread instruction does
        raise InputError(
            f"{path} is truncated or damaged: {str(error)[:200] or type(error).__name__}"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no dictionary")
    return {
        key: getattr(value, "array", None) if type(value) is _Array else value
        for key, value in content.items()
    }
