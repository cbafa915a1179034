"""Reproducing a table: its commands, its runs, and the result files it collects."""

import json
import shlex
import subprocess

import pytest
from result_files import show, write_record

import train
import train_imagenet
from benchmarks import reproduce, runs, table
from utils import flags
from utils.errors import InputError

ON_IMAGENET = [
    (name, "--ds", "imagenet") for name in ("ablation", "departures", "lambda", "strength", "defaults")
]


@pytest.mark.parametrize("table_flags", [*((name,) for name in reproduce.TABLES), *ON_IMAGENET])
def test_every_row_of_every_table_is_a_valid_command(table_flags, tmp_path):
    args = reproduce.parse_args([*table_flags, "--seeds", "5", "--srp", str(tmp_path)])
    parse = train_imagenet.parse_args if args.ds == "imagenet" else train.parse_args
    for row in args.rows:
        run = reproduce.Run("group", row, 5, tmp_path / row)
        line = reproduce.commands(run, args, "cpu")[0]
        parsed = parse(line[1:])
        assert (parsed.seed, parsed.srp, parsed.ds) == (5, tmp_path / row, args.ds)


def test_runs_are_done_once_and_collected(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(reproduce.TABLES, "digits", ("ce",))
    flags = [
        "digits",
        "--seeds",
        "0",
        "--epochs",
        "1",
        "--srp",
        str(tmp_path / "runs"),
        "--results",
        str(tmp_path / "results"),
    ]
    reproduce.main(flags)
    files = sorted(f.name for f in (tmp_path / "results" / "digits_default_e1").iterdir())
    assert files == ["ce-seed0.json"]
    record = json.loads((tmp_path / "results" / "digits_default_e1" / "ce-seed0.json").read_text())
    assert record["args"]["isac"] is False and "--isac False" in record["commands"][0]
    assert str(tmp_path) not in json.dumps(record)
    before = [f.stat().st_mtime_ns for f in sorted((tmp_path / "runs").rglob("results.json"))]
    capsys.readouterr()
    reproduce.main(flags)
    said = capsys.readouterr().out
    assert "1 runs, 1 finished" in said
    table.main(shlex.split(said.splitlines()[-1].partition("python -m benchmarks.table")[2]))
    assert "plain cross-entropy" in capsys.readouterr().out
    assert before == [f.stat().st_mtime_ns for f in sorted((tmp_path / "runs").rglob("results.json"))]


def test_the_results_of_an_unfinished_run_are_made_again(tmp_path, monkeypatch):
    """Somebody may look at a run before its end."""
    monkeypatch.setitem(reproduce.TABLES, "digits", ("ce",))
    folder, done = tmp_path / "runs" / "digits_default" / "ce" / "seed0", []

    def run(command, **_):
        done.append(command[1])
        if len(done) == 2:
            (folder / "results.json").write_text('{"epoch": 30, "epochs": 30}')
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(runs.subprocess, "run", run)
    monkeypatch.setattr(reproduce, "collect", lambda run, target: None)
    folder.mkdir(parents=True)
    (folder / "results.json").write_text('{"epoch": 12, "epochs": 30}')
    flags = ["digits", "--seeds", "0", "--srp", str(tmp_path / "runs"), "--results", str(tmp_path / "new")]
    reproduce.main(flags)
    assert done == ["train.py", "test.py"]
    reproduce.main(flags)
    assert len(done) == 2


def test_one_run_that_cannot_be_collected_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(reproduce.TABLES, "digits", ("ce", "oe"))
    monkeypatch.setattr(runs.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0))
    flags = ["digits", "--seeds", "0", "--srp", str(tmp_path / "runs"), "--results", str(tmp_path / "new")]
    (tmp_path / "runs" / "digits_default" / "ce" / "seed0").mkdir(parents=True)
    (tmp_path / "runs" / "digits_default" / "ce" / "seed0" / "results.json").write_text("{")
    with pytest.raises(InputError, match="1 of 2 runs failed; .*ce seed 0: its results could not be coll"):
        reproduce.main(flags)
    assert "oe seed 0: done" in capsys.readouterr().out


def test_flags_that_a_script_refuses_cost_no_training(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "execute", lambda *a: pytest.fail("a run was begun"))
    flags = ["imagenet", "--protocol", "short", "--srp", str(tmp_path)]
    with pytest.raises(InputError, match="test_imagenet.py refuses .*unrecognized arguments: -b 64"):
        reproduce.main([*flags, "--extra", "-b", "64"])
    with pytest.raises(
        InputError, match="train.py refuses .*argument --model/--md: invalid choice: 'ResNet'"
    ):
        reproduce.main(["digits", "--md", "ResNet", "--srp", str(tmp_path)])


def test_a_folder_that_other_commands_filled_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(reproduce.TABLES, "digits", ("ce",))
    monkeypatch.setattr(runs.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 1))
    flags = [
        "digits",
        "--seeds",
        "0",
        "--srp",
        str(tmp_path / "runs"),
        "--results",
        str(tmp_path / "results"),
        "--protocol",
        "p",
    ]
    with pytest.raises(InputError, match="failed with status 1"):
        reproduce.main(flags)
    with pytest.raises(InputError, match="other commands"):
        reproduce.main([*flags, "--extra", "--rho", "0.05"])
    (tmp_path / "runs" / "p" / "ce" / "seed0" / "commands.json").unlink()
    (tmp_path / "runs" / "p" / "ce" / "seed0" / "args.json").write_text("{}")
    with pytest.raises(InputError, match="other commands"):
        reproduce.main(flags)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["digits", "--extra", "--rho", "0.05"], "needs a --protocol"),
        (["calibration-leak", "--ds", "digits"], "too few test images"),
        (["imagenet", "--drp", "DATA"], "not for ImageNet-LT"),
        (["imagenet", "--dout", "svhn"], "not for ImageNet-LT"),
    ],
)
def test_flags_that_would_mix_results_up_are_refused(flags, words):
    with pytest.raises(InputError, match=words):
        reproduce.parse_args(flags)


def test_imagenet_runs_are_collected_without_their_folders(tmp_path, capsys):
    """Settings as train_imagenet.py writes them, results as any run has them."""
    lists = ["--txtt", "/here/train.txt", "--iidp", "/here/images"]
    settings = flags.plain(train_imagenet.parse_args([*lists, "--srp", str(tmp_path)]))
    write_record(tmp_path, "patt", 0, 0.9)
    made = json.loads((tmp_path / "digits_default" / "patt-seed0.json").read_text())
    settings |= {name: made["args"][name] for name in ("environment", "class_counts", "num_outliers")} | {
        "epochs": 100
    }
    run = reproduce.Run("imagenet", "patt", 3, tmp_path / "run")
    run.folder.mkdir()
    (run.folder / "args.json").write_text(json.dumps(settings))
    (run.folder / "log.jsonl").write_text('{"seconds": 60.0}\n{"seconds": 30.0}\n')
    extra = ["--txt_ood_test=/here/a.txt", "--seed", "9", "--txtv", "/here/test.txt", *lists, "--tb", "3"]
    args = reproduce.parse_args(["imagenet", "--protocol", "imagenet", "--extra", *extra])
    commands = reproduce.portable_commands(run, args)
    shown = "--txt_ood_test a.txt --seed 9 --txtv test.txt --txtt train.txt --iidp IIDP --tb 3"
    assert commands[0].endswith(shown) and commands[1].endswith(shown)
    (run.folder / "commands.json").write_text(json.dumps(commands))
    (run.folder / "results.json").write_text(json.dumps(made["results"] | {"checkpoint": "/here/run"}))
    reproduce.collect(run, tmp_path)
    assert "/here" not in (tmp_path / "imagenet" / "patt-seed3.json").read_text()
    head, rows, note = show(capsys, tmp_path, "imagenet", "imagenet")
    assert rows[0][head.index("AUROC ↑")] == "90.00" and rows[0][head.index("training, minutes")] == "1.5"
    assert note.startswith("imagenet, ResNet50, 100 epochs, 12 training images")
    assert "Reduced" not in note and "Stand-in" in note  # ImageNet-LT's list has 115,846 images


def test_strengths_of_fc_are_evaluated_beside_the_first_evaluation(tmp_path, capsys):
    args = reproduce.parse_args(["strength", "--ds", "digits", "--seeds", "0"])
    run = reproduce.Run("digits_default", "patt", 0, tmp_path / "run")
    lines = reproduce.commands(run, args, "cpu")
    assert [line[0] for line in lines] == ["train.py", *["test.py"] * 4]
    assert [line[line.index("--fc_strength") + 1] for line in lines[2:]] == ["0.1", "0.25", "0.5"]
    assert len({line[line.index("--srp") + 1] for line in lines[2:]}) == 3
    for row, auroc in (("patt", 0.9), ("patt-fc0.25", 0.85)):
        write_record(tmp_path, row, 0, auroc)
    head, rows, _ = show(capsys, tmp_path, "strength", "digits_default")
    assert [line[0] for line in rows] == ["PATT", "PATT", "PATT, FC at strength 0.25"]
    assert rows[2][head.index("AUROC ↑")] == "75.00"  # the file's FC entry
