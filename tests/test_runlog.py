"""The log of a run."""

import csv
import io

import torch

from utils.run.directory import describe
from utils.run.meter import EpochMeter
from utils.text_files import csv_text


def test_a_history_becomes_flat_csv():
    history = [
        {
            "epoch": 1,
            "loss": 0.1 + 0.2,
            "train_accuracy": {"all": 0.5, "few": None},
            "per_class": [1.0, None],
        },
        {"epoch": 2, "loss": 1e-7, "train_accuracy": {"all": 0.25, "few": 0.75}, "seconds": 3.5},
    ]
    first, second = csv.DictReader(io.StringIO(csv_text(history)))
    names = ["epoch", "loss", "train_accuracy_all", "train_accuracy_few", "per_class_0", "per_class_1"]
    assert list(first) == [*names, "seconds"]
    assert list(first.values()) == ["1", repr(0.1 + 0.2), "0.5", "", "1.0", "", ""]
    assert list(second.values()) == ["2", "1e-07", "0.25", "0.75", "", "", "3.5"]
    assert float(first["loss"]) == history[0]["loss"]  # every digit is kept


def test_the_meter_knows_each_classs_accuracy():
    meter = EpochMeter(3, "cpu")
    logits = torch.eye(3)[torch.tensor([0, 1, 0, 0])]
    meter.add_answers(logits, torch.tensor([0, 0, 0, 1]))
    assert meter.accuracies([3, 2, 1])["per_class"] == [2 / 3, 0.0, None]


def test_an_epoch_without_validation_images_is_described_without_a_number():
    shots = dict.fromkeys(("all", "many", "medium", "few"))
    record = {"epoch": 1, "loss": 1.0, "isac": 0.0, "tla": 1.0, "oe": 0.0, "seconds": 2.0}
    text = describe(record | {"val_accuracy": shots}, 3)
    assert "val accuracy %: unknown, there are no images |" in text and "0.00 " not in text.partition("|")[2]
