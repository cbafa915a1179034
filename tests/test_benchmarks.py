"""The benchmarks measure what they say."""

import json

import pytest

from benchmarks import correctness, speed
from utils.errors import InputError
from utils.losses import PATTLoss


def test_the_training_benchmark_measures_every_part(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "RESULTS", tmp_path)
    speed.main("--repeats 1 --md ResNet20 -b 4 --ob 8 --isac False".split())
    (file,) = tmp_path.iterdir()
    record = json.loads(file.read_text())
    assert record["table"]["head"][0] == "ResNet20, 4 x 1 + 8 images"
    assert record["command"].startswith("python -m benchmarks.speed")
    assert {"torch", "device", "commit", "date", "float32_matmul_precision"} <= record["environment"].keys()
    parts = ["bare forward + backward", "data", "whole step"]
    assert list(record["seconds"]) == parts and [row[0] for row in record["table"]["rows"]][:3] == parts


def test_a_device_that_computes_something_else_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "RESULTS", tmp_path)
    correctness.main(["--device", "cpu"])
    found = json.loads((tmp_path / "correctness-cpu.json").read_text())["found"]
    assert set(found.values()) == {0.0} and found.keys() == correctness.BOUNDS.keys()
    contrast, calls = PATTLoss.contrast, []

    def wrong_at_first(self, embeddings, labels):
        calls.append(labels)
        return contrast(self, embeddings, labels.roll(1) if len(calls) == 1 else labels)

    monkeypatch.setattr(PATTLoss, "contrast", wrong_at_first)
    with pytest.raises(InputError, match="do not agree in: losses, gradients, class statistics"):
        correctness.main(["--device", "cpu"])
