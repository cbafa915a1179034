import argparse
from pathlib import Path

import pytest
from command_line import load_script

from utils import flags
from utils.errors import InputError
from utils.evaluation_flags import one_calibration


def test_a_tilde_is_the_home_directory_also_where_the_shell_leaves_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = argparse.ArgumentParser()
    flags.add_training_flags(parser)
    args = parser.parse_args(["--resume=~/run", "--srp=~/data"])
    assert (args.resume, args.srp) == (str(tmp_path / "run"), tmp_path / "data")
    assert parser.parse_args(["--resume"]).resume == "" and flags.path("a/~b") == Path("a/~b")


@pytest.mark.parametrize(
    "script,given",
    [
        ("test", ["--fc_strength", "0.5"]),
        ("test", ["--tnorm"]),
        ("test", ["--precision", "bf16"]),
        ("test", ["--normalization", "cifar"]),
        ("test", ["--ood_resize", "crop"]),
        ("test_imagenet", ["--normalization", "imagenet"]),
    ],
)
def test_a_detector_does_not_take_other_settings(script, given):
    argv = ["--images", "photo.jpg", "--ckpt_path", "run", "--calibration", "fc"]
    parse_args = load_script(script).parse_args
    assert one_calibration(parse_args(argv)) == "fc"
    with pytest.raises(InputError, match=f"^with --images leave out {given[0]}: "):
        one_calibration(parse_args([*argv, *given]))
