"""The log of a run."""

from utils.run.directory import describe


def test_an_epoch_without_validation_images_is_described_without_a_number():
    shots = dict.fromkeys(("all", "many", "medium", "few"))
    record = {"epoch": 1, "loss": 1.0, "isac": 0.0, "tla": 1.0, "oe": 0.0, "seconds": 2.0}
    text = describe(record | {"val_accuracy": shots}, 3)
    assert "val accuracy %: unknown, there are no images |" in text and "0.00 " not in text.partition("|")[2]
