"""The sums of an epoch."""

import torch

from utils.meter import EpochMeter


def test_the_meter_knows_each_classs_accuracy():
    meter = EpochMeter(3, "cpu")
    logits = torch.eye(3)[torch.tensor([0, 1, 0, 0])]
    meter.add_answers(logits, torch.tensor([0, 0, 0, 1]))
    assert meter.accuracies([3, 2, 1])["per_class"] == [2 / 3, 0.0, None]
