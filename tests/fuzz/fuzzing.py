"""How inputs are made and damaged, and what may become of one: what the fuzz tests share."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from utils.errors import InputError


def fuzz(examples):
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[
            HealthCheck.function_scoped_fixture,
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
        ],
    )


def read_or_refuse(function, *args):
    """The result, or None for an input that is refused with one sentence."""
    try:
        return function(*args)
    except InputError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 2000
        return None


plain_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=8)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)


def damaged(data, draw_from):
    """Bytes with some flipped, cut or inserted."""
    data = bytearray(data)
    for _ in range(draw_from.draw(st.integers(0, 4))):
        if not data:
            break
        position = draw_from.draw(st.integers(0, len(data) - 1))
        kind = draw_from.draw(st.sampled_from(["flip", "cut", "insert"]))
        if kind == "flip":
            data[position] ^= 1 << draw_from.draw(st.integers(0, 7))
        elif kind == "cut":
            del data[position:]
        else:
            data[position:position] = draw_from.draw(st.binary(max_size=4))
    return bytes(data)
