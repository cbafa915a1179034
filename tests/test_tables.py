"""Tables: what they are made of, and that documents agree with the result files."""

import csv
import json
from statistics import mean, stdev

import pytest
from result_files import show, show_runs, write_evaluation, write_record, write_run

from benchmarks import table
from benchmarks.notes import has_stand_ins
from datasets.registry import BENCHMARKS
from utils.errors import InputError
from utils.metrics import OOD_COLUMNS

ONE = ("--score", "energy", "--columns", "AUROC")


def test_documents_and_all_csv_agree_with_the_result_files():
    table.main(["--check"])


def test_a_table_gives_mean_and_deviation_over_seeds(tmp_path, capsys):
    aurocs = [0.91, 0.93, 0.98]
    for seed, auroc in enumerate(aurocs):
        write_record(tmp_path, "patt", seed, auroc)
    head, (without, with_fc), note = show(capsys, tmp_path, "digits", "digits_default")
    assert [cell for cell in head if cell in OOD_COLUMNS.values()] == list(OOD_COLUMNS.values())
    assert [line[head.index("calibration")] for line in (without, with_fc)] == ["none", "FC"]
    assert without[head.index("AUROC ↑")] == f"{100 * mean(aurocs):.1f} ± {100 * stdev(aurocs):.1f}"
    assert with_fc[head.index("AUROC ↑")].startswith(f"{100 * (mean(aurocs) - 0.1):.1f}")
    assert without[head.index("n")] == "3" and without[head.index("few ↑")] == "-"
    assert without[head.index("training, minutes")] == "1.5"
    for words in ("some CPU (2 cores)", "abc", "2026-01-01", "files: `digits_default`"):
        assert words in note


def test_the_rows_of_a_table_have_the_same_seeds_and_others_are_named(tmp_path, capsys):
    for row, seeds in (("patt", (0, 1, 2)), ("ce", (2, 0)), ("oe", (0, 2, 3))):
        for seed in seeds:
            write_record(tmp_path, row, seed, 0.9 if seed in (0, 2) else 0.5)
    head, rows, note = show(capsys, tmp_path, "digits", "digits_default", *ONE)
    assert [row[1] for row in rows] == ["90.0 ± 0.0"] * 3
    assert "seeds 0, 2 (1, 3 not in every row)" in note
    write_record(tmp_path, "la", 5, 0.9)
    with pytest.raises(InputError, match="no seed in common"):
        show(capsys, tmp_path, "cifar10", "digits_default")


def test_what_is_not_there_is_named(tmp_path, capsys):
    write_record(tmp_path, "patt", 0, 0.9)
    for line in ("digits digits_default --score enrgy", "digits digits_default --rows oe", "digits nowhere"):
        with pytest.raises(InputError, match=line.split()[-1]):
            show(capsys, tmp_path, *line.split())


def test_runs_that_differ_in_the_seed_alone_share_a_row(tmp_path, capsys):
    for name, seed, auroc, rate in (("0", 0, 0.9, 0.1), ("1", 1, 0.8, 0.1), ("2", 3, 0.7, 0.2)):
        write_run(tmp_path / name, seed, auroc, {"lr": rate})
    folders = [tmp_path / name for name in ("0", "2", "1", "0")]
    head, (first, second), note = show_runs(capsys, *folders, *ONE, "n", "minutes")
    assert head == ["", "AUROC ↑", "n", "training, minutes"]
    assert first[0].startswith(str(tmp_path / "0")) and second[0] == str(tmp_path / "2")
    assert first[1:] == ["85.0 ± 7.1", "2", "1.5"] and second[1:] == ["70.00", "1", "1.5"]
    assert "seeds 0, 1, 3" in note and note.startswith("Every row: calibration none, score energy. ")


def test_evaluations_of_one_run_that_differ_have_rows_of_their_own(tmp_path, capsys):
    """In calibrations, settings, nothing but the folder, or in their origin; labels say what differs."""
    run = tmp_path / "run"
    write_run(run, 0, 0.9, calibration_split="train")
    accuracy = json.loads((run / "results.json").read_text())["accuracy"]
    write_evaluation(tmp_path / "alone", run, 1, 0.9, accuracy=accuracy[:1])
    write_evaluation(tmp_path / "auto", run, 1, 0.8, auto={})
    write_evaluation(tmp_path / "crop", run, 1, 0.7, calibration_split="train", ood_resize="crop")
    write_evaluation(tmp_path / "again", run, 0, 0.9, calibration_split="train")
    write_evaluation(tmp_path / "early", run, 0, 0.5, calibration_split="train", epoch=7)
    about = {"dataset": "digits", "network": "ResNet20", "class_counts": [9, 3]}
    write_evaluation(tmp_path / "third-party", tmp_path / "theirs.pth", 0, 0.6, **about)
    folders = [run, *(tmp_path / name for name in ("alone", "auto", "crop", "again", "early", "third-party"))]
    _, rows, note = show_runs(capsys, *folders, *ONE, "minutes")
    assert [row[0].removeprefix(str(tmp_path)) for row in rows] == [
        "/run, calibration_split train, calibration none fc, epoch 30",
        "/alone, calibration none, epoch 30",
        "/auto, calibration auto, epoch 30",
        "/crop, calibration_split train, ood_resize crop, calibration none fc, epoch 30",
        "/again, calibration_split train, calibration none fc, epoch 30",
        "/early, calibration_split train, calibration none fc, epoch 7",
        "/third-party",
    ]
    assert "an unknown number of epochs" in note
    assert [row[-2:] for row in rows[2:4]] == [["80.00", "1.5"], ["70.00", "1.5"]]
    assert rows[6][-2:] == ["60.00", "-"]
    with pytest.raises(InputError, match=str(tmp_path)):
        table.main(["--runs", str(tmp_path)])


def test_near_and_far_sets_are_averaged_apart(tmp_path, capsys):
    write_record(tmp_path, "patt", 0, 0.9)
    far = [{"ood": "noise", "calibration": "none", "fc": False, "score": "energy", "auroc": 0.7}]
    far = [far[0] | {"fpr95": 0.2}, far[0] | {"ood": "photo", "auroc": 0.8, "fpr95": 0.4}]
    write_record(tmp_path, "ce", 0, 0.8, rows=far)
    words = ["--score", "energy", "--columns", "near AUROC", "far AUROC", "far FPR95"]
    for row, numbers in (("patt", ["85.00", "95.00", "50.00"]), ("ce", ["-", "75.00", "30.00"])):
        head, rows, _ = show(capsys, tmp_path, "digits", "digits_default", *words, "--rows", row)
        assert head[1:] == ["near AUROC ↑", "far AUROC ↑", "far FPR95 ↓"] and rows[0][1:] == numbers
    with pytest.raises(InputError, match="different OOD sets"):
        show(capsys, tmp_path, "digits", "digits_default", *words)
    head, rows, _ = show(capsys, tmp_path, "scores", "digits_default", *words[:-1], "--rows", "patt")
    assert head == ["", "metric", "energy"]
    assert rows == [["PATT", "near AUROC ↑", "85.00"], ["", "far AUROC ↑", "95.00"]]
    with pytest.raises(InputError, match="no columns but AUROC"):
        show(capsys, tmp_path, "scores", "digits_default", "--rows", "patt", "--columns", "ACC")


def test_a_run_evaluated_without_ood_images_shows_its_accuracy(tmp_path, capsys):
    write_run(tmp_path / "run", 0, 0.9, rows=[], mean=[])
    _, rows, note = show_runs(capsys, tmp_path / "run", "--columns", "AUROC", "ACC")
    assert [row[1:] for row in rows] == [["none", "-", "75.00"], ["FC", "-", "75.00"]]
    assert note.startswith("Every row: score energy. ") and "seed 0." in note


def test_stale_files_are_found_and_mended(tmp_path, monkeypatch):
    write_record(tmp_path / "runs", "patt", 0, 0.9)
    text = "before\n<!-- table: digits digits_default -->\nold\n<!-- end -->\nafter\n"
    readme = tmp_path / "README.md"
    readme.write_text(text)
    monkeypatch.setattr(table, "ROOT", tmp_path)
    flags = ["--results", str(tmp_path / "runs")]
    with pytest.raises(InputError, match="README.md.*all.csv"):
        table.main(["--check", *flags])
    assert readme.read_text() == text
    table.main(flags)
    text = readme.read_text()
    assert "90.00" in text and "old" not in text and text.startswith("before\n") and text.endswith("after\n")
    table.main(["--check", *flags])
    with open(tmp_path / "all.csv") as file:
        lines = list(csv.DictReader(file))
    assert [(line["calibration"], line["ood"], line["auroc"]) for line in lines] == [
        ("none", "", ""),
        ("fc", "", ""),
        ("none", "digits89", "85.0"),
        ("none", "noise", "95.0"),
        ("fc", "digits89", "75.0"),
        ("fc", "noise", "85.0"),
    ]
    about = [lines[0][name] for name in ("protocol", "row", "seed", "all")]
    assert about == ["digits_default", "patt", "0", "75.0"]


def test_reduced_and_stand_in_rows_are_labelled(tmp_path, capsys):
    paper = {"ds": "cifar10", "model": "ResNet18", "epochs": 100, "rho": 0.01}
    write_record(tmp_path, "patt", 0, 0.9, args=paper)
    for changed in ({}, {"model": "ResNet20"}, {"epochs": 4}, {"rho": 0.1}, {"val_fraction": 0.1}):
        write_record(tmp_path, "patt", 1, 0.9, args=paper | changed)
        note = show(capsys, tmp_path, "ablation", "digits_default")[2]
        assert ("reduced protocol" in note) == bool(changed) and "stand-in" in note
        assert "ResNet18, 100 epochs" in note  # of every protocol
    theirs = {"model": "ResNet18", "epochs": None, "num_outliers": 300_000}  # a checkpoint that does not say
    write_record(tmp_path / "2", "patt", 0, 0.9, args=paper | theirs)
    assert "reduced protocol" not in show(capsys, tmp_path / "2", "ablation", "digits_default")[2]


@pytest.mark.parametrize(
    "used,share,stand_ins", [(300_000, 0, False), (270_000, 0.1, False), (270_000, 0, True)]
)
def test_the_papers_outliers_are_no_stand_ins_if_a_tenth_is_held_out(used, share, stand_ins):
    settings = {"ds": "cifar10", "num_outliers": used, "val_fraction": share}
    rows = [{"ood": name} for name in BENCHMARKS["cifar10"].ood_sets]
    assert has_stand_ins({"args": settings, "results": {"num_ood_samples": used, "rows": rows}}) is stand_ins


def test_seeds_that_were_evaluated_differently_have_no_mean(tmp_path, capsys):
    """None: the setting was not used, as ``auto`` does not always choose FC."""
    for seed, split in enumerate((None, "train", "test")):
        write_record(tmp_path, "patt", seed, 0.9, calibration_split=split)
        if split != "test":
            assert show(capsys, tmp_path, "digits", "digits_default", *ONE)[1][0][1].startswith("90.0")
    with pytest.raises(InputError, match="calibration_split"):
        show(capsys, tmp_path, "digits", "digits_default")


def test_the_choice_on_held_out_images_is_tabulated_without_test_data(tmp_path, capsys):
    """AUROC 0.6 and 0.8 with accuracy 0.5: 70 ± 14.1, 50 ± 0 and their sum."""
    for seed, auroc in ((0, 0.6), (1, 0.8)):
        trials = [
            {"calibration": "none", "fc_strength": None, "auroc": auroc, "accuracy": 0.5},
            {"calibration": "fc", "fc_strength": 0.1, "auroc": 0.5, "accuracy": 0.5},
        ]
        auto = {"chosen": max(trials, key=lambda trial: trial["auroc"]), "trials": trials}
        write_record(tmp_path, "patt_held_out", seed, 0.9)
        write_record(tmp_path, "patt_held_out-auto", seed, 0.9, auto=auto)
    head, rows, note = show(capsys, tmp_path, "defaults", "digits_default")
    assert head[2:5] == ["AUROC ↑", "mean class accuracy ↑", "sum ↑"]
    assert rows == [
        ["PATT", "none", "70.0 ± 14.1", "50.0 ± 0.0", "120.0 ± 14.1", "2 of 2"],
        ["PATT", "FC 0.1", "50.0 ± 0.0", "50.0 ± 0.0", "100.0 ± 0.0", "0 of 2"],
    ]
    assert "no test image or OOD set" in note and "OOD sets:" not in note
