"""Tables: what they are made of, and that documents agree with the result files."""

import json
import subprocess
from statistics import mean, stdev

import pytest

import train
import train_imagenet
from benchmarks import reproduce, table
from utils.errors import InputError

METRICS = ("auroc", "aupr_in", "aupr_out", "fpr95", "fpr95_id")


def write_record(results, row, seed, auroc, group="digits_default"):
    """A result file whose AUROC is known; with FC everything is 0.1 lower."""
    means, accuracy = [], []
    for fc in (False, True):
        means.append(
            {"fc": fc, "score": "energy"} | dict.fromkeys(METRICS, 0.5) | {"auroc": auroc - 0.1 * fc}
        )
        accuracy.append(
            {"fc": fc, "all": 0.75, "many": 0.9, "medium": 0.7, "few": None, "per_class": [0.9, 0.6]}
        )
    environment = {"device": "some CPU", "cpu_cores": 2, "commit": "abc"}
    settings = {
        "ds": "digits",
        "model": "ResNet20",
        "epochs": 30,
        "rho": 0.1,
        "class_counts": [9, 3],
        "environment": environment,
    }
    settings["num_outliers"] = 20_000
    rows = [{"ood": "noise", "fc": False, "score": "energy"}]
    record = {
        "group": group,
        "row": row,
        "seed": seed,
        "date": "2026-01-01",
        "train_seconds": 90.0,
        "args": settings,
    }
    record["results"] = {"mean": means, "accuracy": accuracy, "rows": rows}
    (results / group).mkdir(parents=True, exist_ok=True)
    (results / group / f"{row}-seed{seed}.json").write_text(json.dumps(record))


def test_documents_agree_with_the_result_files():
    table.main(["--check"])


def test_a_table_gives_mean_and_deviation_over_seeds(tmp_path):
    aurocs = [0.91, 0.93, 0.98]
    for seed, auroc in enumerate(aurocs):
        write_record(tmp_path, "patt", seed, auroc)
    head, rows, note = table.runs_table(tmp_path, "digits", "digits_default")
    without, with_fc = rows
    expected = f"{100 * mean(aurocs):.2f} ± {100 * stdev(aurocs):.2f}"
    assert without[head.index("AUROC ↑")] == expected
    assert with_fc[head.index("AUROC ↑")].startswith(f"{100 * (mean(aurocs) - 0.1):.2f}")
    assert without[head.index("n")] == "3" and without[head.index("few ↑")] == "-"
    assert without[head.index("minutes")] == "1.5"
    assert "some CPU (2 cores)" in note and "abc" in note and "2026-01-01" in note


def test_the_rows_of_a_table_have_the_same_seeds(tmp_path):
    for row, seeds in (("patt", (0, 1, 2)), ("ce", (2, 0)), ("oe", (0, 2, 3))):
        for seed in seeds:
            write_record(tmp_path, row, seed, 0.9 if seed in (0, 2) else 0.5)
    head, rows, note = table.runs_table(tmp_path, "digits", "digits_default")
    assert {line[head.index("n")] for line in rows} == {"2"} and "n seeds (0, 2)" in note
    assert {line[head.index("AUROC ↑")] for line in rows if line[1] == "no"} == {"90.00 ± 0.00"}
    write_record(tmp_path, "la", 5, 0.9)
    with pytest.raises(InputError, match="no seed in common"):
        table.runs_table(tmp_path, "cifar10", "digits_default")


def test_a_stale_table_is_found_and_mended(tmp_path, monkeypatch):
    write_record(tmp_path / "runs", "patt", 0, 0.9)
    (tmp_path / "README.md").write_text(
        "before\n<!-- table: digits digits_default -->\nold\n<!-- end -->\nafter\n"
    )
    monkeypatch.setattr(table, "ROOT", tmp_path)
    monkeypatch.setattr(table, "DOCUMENTS", ("README.md",))
    flags = ["--results", str(tmp_path / "runs")]
    with pytest.raises(InputError, match="README.md"):
        table.main(["--check", *flags])
    assert "old" in (tmp_path / "README.md").read_text()
    table.main(flags)
    text = (tmp_path / "README.md").read_text()
    assert "90.00" in text and "old" not in text and text.startswith("before\n") and text.endswith("after\n")
    table.main(["--check", *flags])
    write_record(tmp_path / "runs", "patt", 0, 0.8)
    with pytest.raises(InputError):
        table.main(["--check", *flags])


def test_reduced_and_stand_in_rows_are_labelled(tmp_path):
    write_record(tmp_path, "patt", 0, 0.9, group="cifar10_ResNet20_e4")
    file = tmp_path / "cifar10_ResNet20_e4" / "patt-seed0.json"
    record = json.loads(file.read_text())
    record["args"] |= {"ds": "cifar10", "model": "ResNet20", "epochs": 4}
    file.write_text(json.dumps(record))
    note = table.runs_table(tmp_path, "ablation", "cifar10_ResNet20_e4")[2]
    assert "Reduced protocol" in note and "Stand-in" in note


def test_latex_escapes_and_keeps_the_numbers():
    text = table.latex(["row", "FC", "AUROC ↑"], [["a_b & c", "yes", "90.00 ± 1.00"]], "note")
    assert r"a\_b \& c & yes & 90.00 $\pm$ 1.00 \\" in text and r"AUROC $\uparrow$" in text


def test_an_unknown_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="no table"):
        table.build("nothing here", tmp_path)
    with pytest.raises(InputError, match="no result files"):
        table.build("digits nowhere", tmp_path)


@pytest.mark.parametrize("name", reproduce.TABLES)
def test_every_row_of_every_table_is_a_valid_command(name, tmp_path):
    args = reproduce.parse_args([name, "--seeds", "5", "--srp", str(tmp_path)])
    parse = train_imagenet.parse_args if args.ds == "imagenet" else train.parse_args
    for row in reproduce.TABLES[name]:
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
    assert "1 runs, 1 finished" in capsys.readouterr().out
    assert before == [f.stat().st_mtime_ns for f in sorted((tmp_path / "runs").rglob("results.json"))]


def test_a_folder_that_other_commands_filled_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(reproduce.TABLES, "digits", ("ce",))
    monkeypatch.setattr(reproduce.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 1))
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
        (["imagenet", "--drp", "DATA"], "not for ImageNet-LT"),
        (["imagenet", "--dout", "svhn"], "not for ImageNet-LT"),
    ],
)
def test_flags_that_would_mix_results_up_are_refused(flags, words):
    with pytest.raises(InputError, match=words):
        reproduce.parse_args(flags)


def test_imagenet_runs_are_collected_without_their_folders(tmp_path):
    """Settings as train_imagenet.py writes them, results as any run has them."""
    lists = ["--txtt", "/here/train.txt", "--iidp", "/here/images"]
    settings = {
        k: str(v) for k, v in vars(train_imagenet.parse_args([*lists, "--srp", str(tmp_path)])).items()
    }
    write_record(tmp_path, "patt", 0, 0.9)
    made = json.loads((tmp_path / "digits_default" / "patt-seed0.json").read_text())
    settings |= {name: made["args"][name] for name in ("environment", "class_counts", "num_outliers")} | {
        "epochs": 100
    }
    run = reproduce.Run("imagenet", "patt", 3, tmp_path / "run")
    run.folder.mkdir()
    (run.folder / "args.json").write_text(json.dumps(settings))
    (run.folder / "log.jsonl").write_text('{"seconds": 60.0}\n{"seconds": 30.0}\n')
    (run.folder / "commands.json").write_text('["python train_imagenet.py"]')
    (run.folder / "results.json").write_text(json.dumps(made["results"] | {"checkpoint": "/here/run"}))
    reproduce.collect(run, tmp_path)
    assert "/here" not in (tmp_path / "imagenet" / "patt-seed3.json").read_text()
    head, rows, note = table.runs_table(tmp_path, "imagenet", "imagenet")
    assert rows[0][head.index("AUROC ↑")] == "90.00" and rows[0][head.index("minutes")] == "1.5"
    assert note.startswith("imagenet, ResNet50, 100 epochs, 12 training images")
    assert "Reduced" not in note and "Stand-in" in note  # ImageNet-LT's list has 115,846 images
