"""One record is all that a data set needs."""

import json

import torch
from command_line import load_script, run

import train
from datasets.augment.stages import ToFloat, View, Views
from datasets.images import ImageSet
from datasets.registry import BENCHMARKS, Benchmark

evaluation = load_script("test")


def stripes(count, labels, seed):
    """Images whose class is the number of their brightest row."""
    images = torch.randint(0, 60, (count, 3, 16, 16), generator=torch.Generator().manual_seed(seed))
    images[torch.arange(count), :, labels] = 255
    return ImageSet(images.to(torch.uint8), labels)


def split(root, training):
    return stripes(60, torch.arange(60) % 3, seed=int(training))


def test_a_data_set_is_trained_and_evaluated_through_its_record_alone(monkeypatch, tmp_path):
    plain = View((ToFloat(),))
    rows = {"far": torch.full((30,), 9), "near": torch.full((20,), 4)}
    made_up = Benchmark(
        num_classes=3,
        ood_sets=("far",),
        training=BENCHMARKS["digits"].training | {"epochs": 1, "batch_size": 8, "ob": 8, "rho": 0.2},
        views=lambda pad_crop: Views(plain, plain, plain),
        load_split=split,
        load_outliers=lambda root, limit: stripes(40, torch.full((40,), 12), seed=5).images,
        load_ood=lambda names, root, resize: {
            name: stripes(len(rows[name]), rows[name], seed=7)._replace(
                labels=torch.full_like(rows[name], -1)
            )
            for name in names
        },
    )
    monkeypatch.setitem(BENCHMARKS, "stripes", made_up)
    assert run(train.main, "--ds", "stripes", "--gpu", "cpu", "--srp", tmp_path) == 0
    args = json.loads((tmp_path / "args.json").read_text())
    assert args["class_counts"] == [20, 8, 4]  # int(20 * 0.2 ** (c / 2))
    assert run(evaluation.main, "--gpu", "cpu", "--ckpt_path", tmp_path, "--dout", "far", "near") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    rows_by_set = {row["ood"]: row for row in results["rows"]}
    assert results["dataset"] == "stripes"
    assert {name: row["n_ood"] for name, row in rows_by_set.items()} == {"far": 30, "near": 20}
    assert rows_by_set["far"]["n_id"] == 60


def test_the_digits_have_a_tail_to_repair():
    digits = BENCHMARKS["digits"]
    counts = torch.bincount(digits.load_long_tailed(None, digits.training["rho"]).labels).tolist()
    assert counts == [int(138 * 0.02 ** (c / 7)) for c in range(8)] and counts[-1] == 2
