"""What the command lines refuse."""

import os
import subprocess
import sys

import pytest
import torch
from command_line import DIGITS, DIGITS_NETWORK, ROOT, assert_one_sentence, load_script, run

import train
from models import build_model

evaluation = load_script("test")


def test_a_script_in_a_process_of_its_own_ends_with_one_line_and_status_2(tmp_path):
    command = [sys.executable, "train.py", "--gpu", "0", "--ds", "cifar10", "--drp", tmp_path]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        [*command, "--srp", tmp_path / "out"], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    out, err = ended.stdout, ended.stderr
    assert ended.returncode == 2
    assert err.count("\n") == 1 and err.startswith("error: ") and "cifar-10-batches-py" in err
    assert "no CUDA device" in out and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "argv,words",
    [
        (["--rho", "0"], ["rho", "0"]),
        (["--isac", "maybe"], ["maybe"]),
        (["--lr", "-1"], ["--lr"]),
    ],
)
def test_impossible_flags_are_refused_before_anything_is_read(argv, words, capsys):
    assert run(train.main, *argv) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert all(word in last for word in words)


def test_an_output_folder_that_cannot_be_written(digits_run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    assert_one_sentence(capsys, run(train.main, *DIGITS, "--srp", out), out)
    status = run(evaluation.main, "--gpu", "cpu", "--ckpt_path", digits_run, "--srp", out)
    assert_one_sentence(capsys, status, out)


def test_a_checkpoint_knows_what_it_is(digits_run, data, capsys):
    common = ["--gpu", "cpu", "--ckpt_path", digits_run, "--drp", data]
    for flag, value, name in (
        ("--ds", "cifar10", "--ds"),
        ("--md", "ResNet18", "--model"),
        ("--rho", "0.5", "--rho"),
    ):
        status = run(evaluation.main, *common, flag, value)
        assert_one_sentence(capsys, status, name, value, "contradicts the checkpoint")
    assert (
        run(evaluation.main, *common, "--ds", "digits", "--md", "ResNet20", "--rho", "0.1", "--FC", "False")
        == 0
    )


@pytest.mark.parametrize(
    "content,words",
    [
        (b"", ["bad.pth"]),
        (b"not a checkpoint", ["bad.pth"]),
        ({"epoch": 3}, ["no network weights"]),
        ({"model": {"conv1.weight": torch.ones(3)}}, ["has no 'bn1.weight'"]),
        (build_model("ResNet32", 8).state_dict(), ["--model ResNet32"]),
        (build_model("ResNet18", 8, "imagenet").state_dict(), ["train_imagenet.py (--model ResNet18)"]),
        (build_model("ResNet20", 10).state_dict(), ["linear.weight", "(10, 64)", "(8, 64)"]),
        (
            {"model": {k: v * float("nan") for k, v in build_model("ResNet20", 8).state_dict().items()}},
            ["not finite"],
        ),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(content, words, tmp_path, capsys):
    path = tmp_path / "bad.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    status = run(evaluation.main, *DIGITS_NETWORK, "--ckpt_path", path)
    assert_one_sentence(capsys, status, *words)
    assert not list(tmp_path.rglob("results.json"))


def test_ood_sets_that_are_not_there_are_named_with_those_that_are(digits_run, tmp_path, capsys):
    argv = ["--gpu", "cpu", "--ckpt_path", digits_run, "--srp", tmp_path]
    status = run(evaluation.main, *argv, "--dout", "noise", "letters")
    assert_one_sentence(capsys, status, "letters", "digits89", "photo")
