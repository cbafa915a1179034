"""Text files."""

import csv
import io

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
