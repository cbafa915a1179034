"""Stopping, resuming, and whose folder it is, from the command line."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from command_line import DIGITS, ROOT, assert_one_sentence, assert_same, run, torchrun

import train
import train_imagenet
from datasets.images import NORMALIZATIONS, hold_out
from datasets.loader import evaluation_batches
from datasets.registry import BENCHMARKS
from models import build_model
from utils import run as run_module
from utils.checkpoint import LATEST, open_checkpoint, save_checkpoint
from utils.distributed import autocast, resumed_in


def test_two_processes_validate_and_resume(tmp_path):
    """Resumed after its first epoch, the run ends as it did; all held-out images count."""
    flags = "--ds digits --gpu cpu --rho 0.1 --val_fraction 0.5 -b 64 --ob 32 -e 2".split()
    done = torchrun("train.py", *flags, "--srp", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "run" / "previous.pth", tmp_path / "again" / "latest.pth")
    done = torchrun("train.py", "--resume", "--srp", tmp_path / "again")
    assert done.returncode == 0 and "epoch 2/2" in done.stdout, done.stderr
    whole, again = (open_checkpoint(tmp_path / name) for name in ("run", "again"))
    for part in ("model", "criterion", "optimizer"):
        assert_same(whole[part], again[part])
    held_out = hold_out(BENCHMARKS["digits"].load_long_tailed(None, 0.1), 0.5)[1]
    model = build_model("ResNet20", 8)
    model.load_state_dict(again["model"])
    cpu, normalization = torch.device("cpu"), NORMALIZATIONS["digits"]
    batches = evaluation_batches(*held_out, batch_size=100, normalization=normalization, device=cpu)
    expected = train.accuracy(model, batches, whole["class_counts"], cpu, autocast(cpu, "fp32"))
    for state in (whole, again):
        assert state["history"][1]["val_accuracy"] == expected and state["environment"]["processes"] == 2


def test_the_end_of_an_epoch_is_saved_before_its_validation(tmp_path, monkeypatch):
    flags = [*DIGITS, "--val_fraction", "0.5", "--srp"]
    assert run(train.main, *flags, tmp_path / "whole") == 0
    with monkeypatch.context() as patched:
        patched.setattr(train, "accuracy", lambda *_: 1 / 0)
        assert run(train.main, *flags, tmp_path / "ended") == 1
    monkeypatch.setattr(train.StepGuard, "step", lambda *_: 1 / 0)  # nothing is left to train
    assert run(train.main, "--gpu", "cpu", "--resume", "--srp", tmp_path / "ended") == 0
    whole, ended = (open_checkpoint(tmp_path / name) for name in ("whole", "ended"))
    for part in ("model", "criterion", "optimizer"):
        assert_same(whole[part], ended[part])
    assert whole["history"][0]["val_accuracy"] == ended["history"][0]["val_accuracy"]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_run_that_ended_before_its_first_checkpoint_begins_again_with_its_own_flags(
    tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patched:
        patched.setattr(train, "train_one_epoch", lambda *_: 1 / 0)
        assert run(train.main, *DIGITS, "--isac", "False", "--seed", "6", "--srp", tmp_path) == 1
    assert not (tmp_path / "latest.pth").exists()
    capsys.readouterr()
    assert run(train.main, "--srp", tmp_path, "--resume") == 0
    assert f"with the flags in {tmp_path / 'args.json'}" in capsys.readouterr().out
    args = open_checkpoint(tmp_path)["args"]
    assert (args["ds"], args["isac"], args["seed"], args["epochs"]) == ("digits", False, 6, 1)


def test_a_run_is_resumed_by_its_own_script(digits_run, capsys):
    assert_one_sentence(capsys, run(train_imagenet.main, "--srp", digits_run, "--resume"), digits_run)


def test_resume_without_a_folder_finds_the_run_in_its_default_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(train.main, *DIGITS, "--seed", "7") == 0
    assert run(train.main, "--ds", "digits", "--gpu", "cpu", "--seed", "7", "--resume") == 0
    assert "already finished: 1 of 1 epochs" in capsys.readouterr().out
    assert [folder.name for folder in (tmp_path / "runs").iterdir()] == ["digits_ResNet20_7"]


def test_a_run_that_another_commit_goes_on_with_names_both(digits_run, tmp_path, monkeypatch):
    state = open_checkpoint(digits_run)
    (tmp_path / "run").mkdir()
    save_checkpoint(state | {"epoch": 0, "history": []}, tmp_path / "run" / LATEST)
    before = state["environment"]
    now = before | {"commit": "another", "date": "2030-01-01"}
    monkeypatch.setattr(run_module, "environment", lambda device: now)
    assert run(train.main, "--gpu", "cpu", "--resume", "--srp", tmp_path / "run") == 0
    both = before | {"commit": f"{before['commit']}, then another", "date": "2030-01-01"}
    assert json.loads((tmp_path / "run" / "args.json").read_text())["environment"] == both
    assert resumed_in(both, now) == both


@pytest.mark.parametrize("own", [True, False])
def test_the_commit_is_that_of_the_projects_own_repository(own, tmp_path):
    """Unpacked within another repository, the project has no commit."""
    project = tmp_path if own else tmp_path / "unpacked"
    shutil.copytree(ROOT / "utils", project / "utils", ignore=shutil.ignore_patterns("__pycache__"))
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    program = "import torch, utils.distributed as e; print(e.environment(torch.device('cpu'))['commit'])"
    command = [sys.executable, "-c", program]
    printed = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True).stdout.strip()
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout[:12]
    assert printed == (head if own else "None")


def test_the_precision_is_that_of_the_run_not_of_the_machine_that_resumes_it(digits_run, tmp_path, capsys):
    assert json.loads((digits_run / "args.json").read_text())["precision"] == "fp32"  # auto, on a CPU
    shutil.copytree(digits_run, tmp_path / "run")
    state = open_checkpoint(tmp_path / "run")
    save_checkpoint(state | {"args": state["args"] | {"precision": "bf16"}}, tmp_path / "run" / LATEST)
    flags = ["--gpu", "cpu", "--resume", "--srp", tmp_path / "run"]
    assert run(train.main, *flags, "--precision", "auto") == 2
    assert "--precision is fp32, but the run to resume has 'bf16'" in capsys.readouterr().err
    assert run(train.main, *flags) == 0
    older = {k: v for k, v in state["args"].items() if k != "strong_outliers"}
    save_checkpoint(state | {"args": older}, tmp_path / "run" / LATEST)  # from before there was this flag
    assert run(train.main, *flags) == 0
    assert run(train.main, *flags, "--strong_outliers") == 2


def test_a_run_is_not_written_over_without_resume(digits_run, capsys):
    before = contents(digits_run)
    assert_one_sentence(capsys, run(train.main, *DIGITS, "--srp", digits_run), digits_run, "--resume")
    assert contents(digits_run) == before


def test_no_later_epochs_are_lost_to_an_earlier_checkpoint(digits_run, tmp_path, capsys):
    """Of the same folder, or of one whose last checkpoint somebody deleted."""
    (tmp_path / "run").mkdir()
    for name in ("latest.pth", "best.pth"):
        shutil.copy(digits_run / "latest.pth", tmp_path / "run" / name)
    before = contents(tmp_path / "run")
    status = run(
        train.main, "--gpu", "cpu", "--resume", tmp_path / "run" / "best.pth", "--srp", tmp_path / "run"
    )
    assert_one_sentence(capsys, status, tmp_path / "run", "--srp")
    assert before.items() <= contents(tmp_path / "run").items()
    (tmp_path / "run" / "latest.pth").unlink()
    for resume in ([], ["--resume"]):
        status = run(train.main, *DIGITS, *resume, "--srp", tmp_path / "run")
        assert_one_sentence(capsys, status, "best.pth", "--srp")


@pytest.mark.parametrize("flag,value", [("--epochs", 5), ("--md", "ResNet32"), ("--isac", "no")])
def test_resume_refuses_other_arguments(flag, value, digits_run, capsys):
    before = contents(digits_run)
    status = run(train.main, *DIGITS, flag, value, "--resume", "--srp", digits_run)
    assert_one_sentence(capsys, status, {"--md": "model"}.get(flag, flag), "the run to resume has")
    assert contents(digits_run) == before


def test_resume_from_what_is_no_training_checkpoint(tmp_path, capsys):
    torch.save(build_model("ResNet20", 8).state_dict(), tmp_path / "weights.pth")
    status = run(train.main, *DIGITS, "--resume", tmp_path / "weights.pth", "--srp", tmp_path / "out")
    assert_one_sentence(capsys, status, "weights.pth")
    status = run(train.main, *DIGITS, "--resume", tmp_path / "nothing", "--srp", tmp_path / "out")
    assert_one_sentence(capsys, status, "nothing")
