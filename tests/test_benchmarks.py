"""The benchmarks measure what they say."""

import json

import pytest
import torch

from benchmarks import correctness
from benchmarks.speed import common, train
from benchmarks.speed.criterion import ours_and_plain
from utils import losses
from utils.errors import InputError


@pytest.mark.parametrize("size", [(16, 5, 64), (8, 30, 128)])
def test_the_plain_criterion_and_ours_agree(size):
    ours, plain = ours_and_plain(*size, torch.device("cpu"))
    (a, grad_a), (b, grad_b) = ours(), plain()
    assert float(a) == pytest.approx(float(b), rel=1e-5)
    torch.testing.assert_close(grad_a, grad_b, rtol=1e-3, atol=1e-6)


def test_the_training_benchmark_measures_every_part(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    train.main(["--md", "ResNet20", "-b", "4", "--ob", "8", "--repeats", "1"])
    record = json.loads((tmp_path / "train-ResNet20-cpu.json").read_text())
    assert record["command"].startswith("python -m benchmarks.speed.train")
    assert {"torch", "device", "commit", "date", "float32_matmul_precision"} <= record["environment"].keys()
    parts = ["bare forward + backward", "data", "whole step"]
    assert list(record["seconds"]) == parts and [row[0] for row in record["table"]["rows"]][:3] == parts


def test_a_device_that_computes_something_else_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    correctness.main(["--device", "cpu"])
    found = json.loads((tmp_path / "correctness-cpu.json").read_text())["found"]
    assert set(found.values()) == {0.0} and found.keys() == correctness.BOUNDS.keys()
    normalise, calls = losses.on_sphere, []

    def wrong_at_first(x):
        calls.append(x)
        return normalise(x) * (0.9 if len(calls) == 1 else 1)

    monkeypatch.setattr(losses, "on_sphere", wrong_at_first)
    with pytest.raises(InputError, match="do not agree in: losses, gradients, class statistics"):
        correctness.main(["--device", "cpu"])
