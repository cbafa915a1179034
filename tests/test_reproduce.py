"""Reproducing a table: its commands, its runs, and the result files it collects."""

import json
import shlex
import subprocess
from types import SimpleNamespace

import pytest
import torch
from result_files import show, write_evaluation, write_run

import train
import train_imagenet
from benchmarks import reproduce, table
from utils import flags
from utils.errors import InputError
from utils.run import EXIT_STOPPED

ON_IMAGENET = [[name, "--ds", "imagenet"] for name in ("ablation", "departures", "defaults")]


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """The flags of a table of one row and seed, in folders of its own."""
    monkeypatch.setitem(reproduce.TABLES, "digits", ("ce",))
    where = ["--srp", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    return ["digits", "--seeds", "0", *where]


@pytest.mark.parametrize("words", [*([name] for name in reproduce.TABLES), *ON_IMAGENET])
def test_every_row_of_every_table_is_a_valid_command(words, tmp_path):
    args = reproduce.parse_args([*words, "--seeds", "5", "--protocol", "p", "--extra", "--tb", "3"])
    parse = train_imagenet.parse_args if args.ds == "imagenet" else train.parse_args
    for row in args.rows:
        folder = tmp_path / row
        line = reproduce.commands(reproduce.Run("group", row, 5, folder), args, "cpu")[folder][0]
        parsed = parse(line[1:])
        assert (parsed.seed, parsed.srp, parsed.ds, parsed.tb) == (5, folder, args.ds, 3)


def test_runs_are_done_once_and_collected(digits, tmp_path, capsys, monkeypatch):
    digits += ["--epochs", "1"]
    reproduce.main(digits)
    (file,) = (tmp_path / "results" / "digits_default_e1").iterdir()
    record = json.loads(file.read_text())
    assert file.name == "ce-seed0.json"
    assert record["args"]["isac"] is False and "--isac False" in record["commands"][0]
    assert str(tmp_path) not in json.dumps(record)
    monkeypatch.setattr(reproduce.subprocess, "run", lambda *a, **k: pytest.fail("a command was run"))
    capsys.readouterr()
    reproduce.main(digits)
    said = capsys.readouterr().out
    assert "1 runs, 1 finished" in said
    table.main(shlex.split(said.splitlines()[-1].partition("python -m benchmarks.table")[2]))
    assert "plain cross-entropy" in capsys.readouterr().out


@pytest.mark.parametrize("epoch, finished", [(12, False), (20, True), (12, True)])
def test_the_results_of_an_unfinished_run_do_not_count(epoch, finished, tmp_path):
    """Somebody may look at a run before its end, which --patience may bring early."""
    torch.save({"epoch": epoch, "args": {"epochs": 30}, "finished": finished}, tmp_path / "latest.pth")
    results = {"epoch": 12, "epochs": 30, "checkpoint": str(tmp_path), "flags": {"dout": ["noise"]}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    line = ["test.py", "--ckpt_path", "OUT", "--gpu", "cpu"]
    assert reproduce.is_evaluated(tmp_path, [*line, "--dout", "noise"]) == (finished and epoch == 12)
    assert not reproduce.is_evaluated(tmp_path, line)  # somebody evaluated it in another way


def test_a_stopped_run_stops_all(digits, monkeypatch):
    """Ctrl-C reaches the run, too, which then ends with this status."""
    stopped = SimpleNamespace(returncode=EXIT_STOPPED)
    monkeypatch.setattr(reproduce.subprocess, "run", lambda *a, **k: stopped)
    with pytest.raises(KeyboardInterrupt):
        reproduce.main(digits)


def test_one_run_that_fails_does_not_stop_the_others(digits, monkeypatch, capsys):
    def execute(run, args, device):
        if run.row == "ce":
            raise InputError("broken")

    monkeypatch.setitem(reproduce.TABLES, "digits", ("ce", "oe"))
    monkeypatch.setattr(reproduce, "execute", execute)
    with pytest.raises(InputError, match="1 of 2 runs failed; .*ce/seed0: broken"):
        reproduce.main(digits)
    assert "oe/seed0: done" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, named",
    [
        (["imagenet", "--protocol", "short", "--extra", "-b", "64"], "-b 64"),
        (["digits", "--md", "ResNet"], "--model/--md"),
        (["calibration-leak", "--ds", "imagenet"], "--calibration_split"),
        (["digits", "--extra", "--rho", "0.05"], "--protocol"),
        (["digits", "--ds", "cifar10"], "--ds cifar10"),
        (["digits", "--rows", "no_oe"], "no row no_oe"),
        (["imagenet", "--drp", "DATA"], "--drp"),
    ],
)
def test_flags_that_are_refused_cost_no_training(words, named, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "execute", lambda *a: pytest.fail("a run was begun"))
    with pytest.raises(SystemExit):
        reproduce.main(words)
    assert named in capsys.readouterr().err


def test_a_folder_that_other_commands_filled_is_refused(digits, monkeypatch):
    monkeypatch.setattr(reproduce.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 1))
    digits += ["--protocol", "p"]
    with pytest.raises(InputError, match="status 1"):
        reproduce.main(digits)
    with pytest.raises(InputError, match="other commands"):
        reproduce.main([*digits, "--extra", "--rho", "0.05"])


def test_imagenet_runs_are_collected_without_their_folders(tmp_path, capsys):
    lists = ["--txtt", "/here/train.txt", "--iidp", "/here/images"]
    settings = flags.plain(train_imagenet.parse_args([*lists, "--srp", str(tmp_path)]))
    run = reproduce.Run("imagenet", "patt", 3, tmp_path / "run")
    write_run(run.folder, 3, 0.9)
    known = json.loads((run.folder / "args.json").read_text())
    settings |= {name: known[name] for name in ("environment", "class_counts", "num_outliers")}
    (run.folder / "args.json").write_text(json.dumps(settings | {"epochs": 100}))
    extra = ["--txt_ood_test=/here/a.txt", "--txtv", "/here/test.txt", *lists, "--tb", "3"]
    args = reproduce.parse_args(["imagenet", "--protocol", "imagenet", "--extra", *extra])
    commands = reproduce.portable_commands(run, args)
    shown = "--txt_ood_test=a.txt --txtv test.txt --txtt train.txt --iidp images --tb 3"
    assert commands[0].endswith(shown) and commands[1].endswith(shown)
    (run.folder / "commands.json").write_text(json.dumps(commands))
    reproduce.collect(run, tmp_path)
    text = (tmp_path / "imagenet" / "patt-seed3.json").read_text()
    assert "/here" not in text and str(tmp_path) not in text
    _, _, note = show(capsys, tmp_path, "imagenet", "imagenet")
    assert "imagenet, ResNet50, 100 epochs, 12 training images" in note
    assert "reduced" not in note and "stand-in" in note  # ImageNet-LT's list has 115,846 images


def test_every_evaluation_in_a_run_directory_is_collected(tmp_path):
    """Of the table's further ones, and of checkpoints that were kept."""
    args = reproduce.parse_args(["calibration-leak", "--ds", "digits", "--seeds", "0"])
    run = reproduce.Run("digits_default", "patt", 0, tmp_path / "run")
    _, (leak, (line,)) = reproduce.commands(run, args, "cpu").items()
    assert leak == run.folder / "leak" and line[line.index("--calibration_split") + 1] == "test"
    write_run(run.folder, 0, 0.9)
    (run.folder / "commands.json").write_text("[]")
    write_evaluation(run.folder / "epoch20", run.folder / "epoch20.pth", 0, 0.7, epoch=20)
    reproduce.collect(run, tmp_path / "new")
    record = json.loads((tmp_path / "new" / "digits_default" / "patt-epoch20-seed0.json").read_text())
    assert (record["row"], record["results"]["epoch"], record["train_seconds"]) == ("patt-epoch20", 20, 90.0)
