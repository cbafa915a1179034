"""The demo: what it runs, what it shows, and that it does nothing that it was not asked for."""

import json
import subprocess

import pytest
from command_line import load_script

import train
from benchmarks import demo, runs
from utils.checkpoint import save_checkpoint
from utils.errors import InputError

AUROCS = {
    ("none", "energy"): 0.9,
    ("fc", "energy"): 0.8,
    ("none", "combined"): 0.95,
    ("fc", "combined"): 0.85,
}


def results(few):
    """Of one method, with every other value known."""
    shots = {"all": 0.5, "many": 1.0, "medium": 0.75, "few": few, "per_class": [1.0, 0.75, few]}
    accuracy = [{"calibration": "none", "fc": False} | shots, {"calibration": "fc", "fc": True} | shots]
    accuracy[1] |= {"all": 0.25, "few": 0.125}
    mean = [{"calibration": c, "fc": c == "fc", "score": s, "auroc": a} for (c, s), a in AUROCS.items()]
    about = {"class_counts": [9, 5, 2], "epoch": 30, "epochs": 30}
    return about | {"accuracy": accuracy, "mean": mean, "rows": []}


def write_runs(folder):
    for method, few in (("ce", 0.25), ("patt", None)):
        (folder / method).mkdir(parents=True)
        (folder / method / "results.json").write_text(json.dumps(results(few)))


@pytest.fixture
def nothing_runs(monkeypatch):
    monkeypatch.setattr(runs.subprocess, "run", lambda *a, **k: pytest.fail("a command was run"))


def test_the_methods_stand_beside_each_other(nothing_runs, tmp_path, capsys):
    """Runs that are there are not repeated."""
    write_runs(tmp_path)
    demo.main(["--srp", str(tmp_path)])
    head, *lines = capsys.readouterr().out.strip().splitlines()
    assert "AUROC ↑, energy  AUROC ↑, combined" in head
    assert lines[0].split() == "plain cross-entropy 50.00 100.00 75.00 25.00 90.00 95.00".split()
    assert lines[1].split() == "PATT 50.00 100.00 75.00 - 90.00 95.00".split()
    assert lines[2].split() == "plain cross-entropy, FC 25.00 100.00 75.00 12.50 80.00 85.00".split()
    assert lines[3].split() == "PATT, FC 25.00 100.00 75.00 12.50 80.00 85.00".split()
    text = "\n".join(lines)
    assert (
        "9 to 2 training images" in text and "from 25.00 to 12.50" in text and "from 50.00 to 25.00" in text
    )
    assert str(tmp_path / "classes.png") in text and (tmp_path / "classes.png").is_file()
    assert len(lines) < 24  # one screen


@pytest.mark.parametrize("method", demo.METHODS)
def test_its_commands_are_valid(method, tmp_path):
    training, evaluation = demo.commands(method, tmp_path / method)
    args = train.parse_args(training[1:])
    assert (args.ds, args.srp, args.isac, args.resume) == ("digits", tmp_path / method, method == "patt", "")
    (tmp_path / method).mkdir()
    save_checkpoint({"args": {}}, tmp_path / method)  # test.py looks in it for the data
    assert load_script("test").parse_args(evaluation[1:]).ckpt_path == tmp_path / method


def test_a_command_that_fails_is_named_with_its_output(tmp_path, monkeypatch):
    monkeypatch.setattr(runs.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 2))
    with pytest.raises(InputError, match="status 2 from python train.py.*log.txt"):
        demo.main(["--srp", str(tmp_path / "runs")])
