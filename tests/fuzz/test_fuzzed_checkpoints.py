"""Checkpoints of damaged bytes and of any content: each is read or refused with a sentence."""

import io

import numpy as np
import pytest
import torch
from command_line import load_script
from fuzzing import damaged, fuzz, plain_values, read_or_refuse
from hypothesis import given
from hypothesis import strategies as st

from datasets.registry import BENCHMARKS
from models import FAMILIES, build_model
from utils.checkpoint import load_checkpoint
from utils.weights import load_weights, network_weights

evaluation = load_script("test")


@pytest.fixture(scope="module")
def checkpoint_bytes():
    model = build_model("ResNet20", 2)
    buffer = io.BytesIO()
    torch.save(
        {
            "model": {"linear.weight": model.linear.weight.detach()},
            "args": {"ds": "digits"},
            "epoch": 1,
            "accs": [np.float64(0.5), np.float32(0.25), np.int64(3), np.bool_(True)],
        },
        buffer,
    )
    return buffer.getvalue()


@fuzz(800)
@given(draw_from=st.data())
def test_checkpoint_files(draw_from, checkpoint_bytes, tmp_path, record_count):
    record_count("fuzzed inputs")
    (tmp_path / "x.pth").write_bytes(damaged(checkpoint_bytes, draw_from))
    state = read_or_refuse(load_checkpoint, tmp_path / "x.pth")
    if isinstance(state, dict):
        read_or_refuse(network_weights, state)


@fuzz(400)
@given(value=plain_values, inner=plain_values)
def test_checkpoints_of_any_content(value, inner, tmp_path, record_count):
    record_count("fuzzed inputs")
    for state in (value, {"model": inner, "args": value}, {"state_dict": {"conv1.weight": inner}}):
        torch.save(state, tmp_path / "x.pth")
        loaded = read_or_refuse(load_checkpoint, tmp_path / "x.pth")
        weights = read_or_refuse(network_weights, loaded)
        assert weights is None or read_or_refuse(load_weights, build_model_once(), weights) is None
        known = read_or_refuse(evaluation.identify, loaded, {"ds": "cifar10"})
        assert known is None or known[0]["ds"] == "cifar10"


TRAINED_WITH = ("ds", "model", "rho", "val_fraction", "depart", "normalization", "seed", "epochs")


@fuzz(500)
@given(name=st.sampled_from(TRAINED_WITH), value=plain_values, epoch=plain_values)
def test_arguments_in_checkpoints(name, value, epoch, record_count):
    record_count("fuzzed inputs")
    checkpoint = {"model": SMALL_WEIGHTS, "args": {"epochs": 3, "seed": 1} | {name: value}, "epoch": epoch}
    identified = read_or_refuse(evaluation.identify, checkpoint, {})
    if identified is not None:
        known, notes = identified
        assert known["ds"] in BENCHMARKS and known["model"] in FAMILIES["cifar"]
        assert isinstance(known["depart"], list)
        assert 0 < known["rho"] <= 1 and 0 <= known["val_fraction"] <= 0.9
        assert all(isinstance(note, str) and "\n" not in note and len(note) < 500 for note in notes)


MODELS = {}
SMALL_WEIGHTS = {"linear.weight": torch.zeros(8, 64)}


def build_model_once():
    return MODELS.setdefault("small", build_model("ResNet20", 2))
