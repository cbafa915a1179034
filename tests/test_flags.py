import argparse
from pathlib import Path

import pytest
import torch

import train
from benchmarks.rows import ROWS
from datasets.images import IMAGENET_NORMALIZATION, NORMALIZATIONS
from utils import flags
from utils.losses import PATTLoss


def test_a_tilde_is_the_home_directory_also_where_the_shell_leaves_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = argparse.ArgumentParser()
    flags.add_training_flags(parser)
    args = parser.parse_args(["--resume=~/run", "--srp=~/data"])
    assert (args.resume, args.srp) == (str(tmp_path / "run"), tmp_path / "data")
    assert parser.parse_args(["--resume"]).resume == "" and flags.path("a/~b") == Path("a/~b")


@pytest.mark.parametrize("recipe", [["--depart", *train.RELEASED_CHOICES], ["--recipe", "released"], []])
def test_the_methods_flags_reach_criterion_and_loader(recipe, monkeypatch, tmp_path):
    found = {}
    monkeypatch.setattr(train, "train", lambda args, compute, data, *_: found.update(args=args, data=data))
    weights = ["--Lambda1", "0.3", "--Lambda2", "0.7", "--temperature", "0.2", "--tem_scale", "0.5"]
    train.main(["--ds", "digits", "--gpu", "cpu", "--srp", str(tmp_path), *weights, *recipe])
    counts, loader = found["data"].class_counts, found["data"].loader
    settings = {"schedule": "running", "normalize": False} if recipe else {}
    wanted = PATTLoss(
        counts, 6, oe_weight=0.3, tla_weight=0.7, contrast_temperature=0.2, logit_temperature=0.5, **settings
    )
    criterion = train.build_criterion(found["args"], counts, 6)
    criterion.load_state_dict(wanted.state_dict())  # random directions of classes not yet seen
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(8, (20,), generator=g)
    for _ in range(2):
        batch = torch.randn(80, 8, generator=g), torch.rand(80, 6, generator=g), labels
        assert criterion(*batch) == wanted(*batch)
        criterion.start_epoch()
        wanted.start_epoch()
    normalization = IMAGENET_NORMALIZATION if recipe else NORMALIZATIONS["digits"]
    assert (loader.outlier_normalization, loader.normalization) == (normalization, NORMALIZATIONS["digits"])
    assert loader.views.strong.stages[0].padding == (0 if recipe else 2)


def test_the_extended_recipe_is_the_one_chosen_on_held_out_images_and_gives_way_to_typed_flags():
    chosen = train.parse_args(ROWS["head_0.5_1"].flags.split())
    args = train.parse_args(["--recipe", "extended"])
    assert vars(args) == vars(chosen) | {"recipe": "extended"}
    typed = ["--Lambda1", "0.1", "--Lambda2", "0.5", "--head", "False"]
    args = train.parse_args(["--recipe", "extended", *typed])
    assert vars(args) == vars(train.parse_args([])) | {"recipe": "extended"}
