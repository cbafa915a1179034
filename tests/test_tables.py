"""Tables: what they are made of, and that documents agree with the result files."""

import json
from statistics import mean, stdev

import pytest
from result_files import show, write_record, write_run

from benchmarks import table
from utils.errors import InputError
from utils.metrics import OOD_COLUMNS, OOD_METRICS

NARROW = ["AUROC", "FPR95", "ACC", "many", "medium", "few"]


def test_documents_agree_with_the_result_files():
    table.main(["--check"])


def test_a_table_gives_mean_and_deviation_over_seeds(tmp_path, capsys):
    aurocs = [0.91, 0.93, 0.98]
    for seed, auroc in enumerate(aurocs):
        write_record(tmp_path, "patt", seed, auroc)
    head, rows, note = show(capsys, tmp_path, "digits", "digits_default")
    without, with_fc = rows
    evaluation = [OOD_COLUMNS[metric] for metric in OOD_METRICS]  # the columns of results.md, in its order
    assert [cell for cell in head if cell in evaluation] == evaluation
    assert [line[head.index("calibration")] for line in rows] == ["none", "FC"]
    expected = f"{100 * mean(aurocs):.2f} ± {100 * stdev(aurocs):.2f}"
    assert without[head.index("AUROC ↑")] == expected
    assert with_fc[head.index("AUROC ↑")].startswith(f"{100 * (mean(aurocs) - 0.1):.2f}")
    assert without[head.index("n")] == "3" and without[head.index("few ↑")] == "-"
    assert without[head.index("training, minutes")] == "1.5"
    assert "some CPU (2 cores)" in note and "abc" in note and "2026-01-01" in note


def test_the_rows_of_a_table_have_the_same_seeds_and_others_are_named(tmp_path, capsys):
    for row, seeds in (("patt", (0, 1, 2)), ("ce", (2, 0)), ("oe", (0, 2, 3))):
        for seed in seeds:
            write_record(tmp_path, row, seed, 0.9 if seed in (0, 2) else 0.5)
    head, rows, note = show(capsys, tmp_path, "digits", "digits_default")
    assert {line[head.index("n")] for line in rows} == {"2"}
    assert "seeds 0, 2 (left out, as not every row has them: 1, 3)" in note
    assert {line[head.index("AUROC ↑")] for line in rows if line[1] == "none"} == {"90.00 ± 0.00"}
    write_record(tmp_path, "la", 5, 0.9)
    with pytest.raises(InputError, match="no seed in common"):
        show(capsys, tmp_path, "cifar10", "digits_default")


def test_a_narrow_table_names_the_ways_in_its_rows(tmp_path, capsys):
    """Old files know only fc; new ones name the calibration, and have more scores."""
    write_record(tmp_path, "patt", 0, 0.9)
    write_record(tmp_path, "ce", 0, 0.8)
    for row in ("patt", "ce"):
        file = tmp_path / "digits_default" / f"{row}-seed0.json"
        record = json.loads(file.read_text())
        results = record["results"]
        for name, calibration in (("mean", "probe"), ("accuracy", "probe"), ("mean", "none")):
            new = results[name][0] | {"fc": False, "calibration": calibration, "score": "combined"}
            results[name].append(new | ({"auroc": 0.99} if name == "mean" else {"few": 0.6}))
        file.write_text(json.dumps(record))
    both = ["--score", "energy", "probe/combined", "--columns", *NARROW]
    head, rows, note = show(capsys, tmp_path, "digits", "digits_default", *both)
    assert head == ["", "AUROC ↑", "FPR95 ↓", "ACC ↑", "many ↑", "medium ↑", "few ↑"]
    assert rows[0] == ["PATT, energy (the paper's)", "90.00", "50.00", "75.00", "90.00", "70.00", "-"]
    assert rows[1] == ["PATT, probe / combined (ours)", "99.00", "50.00", "75.00", "90.00", "70.00", "60.00"]
    assert [row[0] for row in rows[2:]] == [
        "plain cross-entropy, energy",
        "plain cross-entropy, probe / combined",
    ]
    with pytest.raises(InputError, match="patt-seed0.json has no result of probe/msp; it has none/energy"):
        show(capsys, tmp_path, "digits", "digits_default", "--score", "probe/msp")
    few = ["--rows", "ce", "--score", "energy", "fc/energy", "--columns", "few"]
    assert [row[0] for row in show(capsys, tmp_path, "digits", "digits_default", *few)[1]] == [
        "plain cross-entropy",
        "plain cross-entropy, FC",
    ]
    with pytest.raises(InputError, match="no row oe"):
        show(capsys, tmp_path, "digits", "digits_default", "--rows", "oe")


def test_any_run_directories_can_be_tabulated(tmp_path, capsys):
    """Those that differ in the seed alone share a row."""
    write_run(tmp_path / "a" / "seed0", 0, 0.9)
    write_run(tmp_path / "a" / "seed1", 1, 0.8)
    write_run(tmp_path / "b" / "other_3", 3, 0.7, lr=0.1)
    folders = [str(tmp_path / name) for name in ("a/seed0", "b/other_3", "a/seed1")]
    chosen = ["--score", "energy", "--columns", "n", "AUROC", "minutes"]
    table.main(["--runs", *folders, *chosen])
    head, first, second, *rest = capsys.readouterr().out.splitlines()
    assert head.split() == ["n", "AUROC", "↑", "training,", "minutes"]
    assert first.split() == [str(tmp_path / "a"), "2", "85.00", "±", "7.07", "1.5"]
    assert second.split() == [str(tmp_path / "b" / "other_3"), "1", "70.00", "1.5"]
    assert "seeds 0, 1, 3" in rest[-1]
    for kind, sign in (("markdown", "85.00 ± 7.07 |"), ("latex", r"85.00 $\pm$ 7.07 &")):
        table.main(["--runs", *folders, *chosen, "--format", kind])
        assert sign in capsys.readouterr().out
    (tmp_path / "a" / "seed0" / "results.json").unlink()
    with pytest.raises(InputError, match="no results.json; evaluate the run first"):
        table.main(["--runs", *folders])
    (tmp_path / "b" / "other_3" / "args.json").write_text("{")
    with pytest.raises(InputError, match="other_3 cannot be read as a run directory"):
        table.main(["--runs", *folders[1:]])


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


def test_a_marker_chooses_rows_and_columns(tmp_path):
    for row in ("patt", "ce", "oe"):
        write_record(tmp_path, row, 0, 0.9)
    marker = "<!-- table: digits digits_default --rows ce --score fc/energy --columns AUROC few -->\n"
    made = table.regenerate(f"{marker}old\n<!-- end -->\n", tmp_path)
    assert "|  | AUROC ↑ | few ↑ |\n|---|---|---|\n| plain cross-entropy, FC | 80.00 | - |\n\n" in made
    assert made.startswith(marker) and made.endswith("<!-- end -->\n")
    with pytest.raises(InputError, match="a table's marker.*AUROX"):
        table.regenerate(marker.replace("AUROC", "AUROX") + "<!-- end -->\n", tmp_path)


@pytest.mark.parametrize(
    ("changed", "reduced"),
    [
        ({}, False),
        ({"model": "ResNet20"}, True),
        ({"epochs": 4}, True),
        ({"rho": 0.1}, True),
        ({"val_fraction": 0.1}, True),
    ],
)
def test_reduced_and_stand_in_rows_are_labelled(changed, reduced, tmp_path, capsys):
    write_record(tmp_path, "patt", 0, 0.9, group="cifar10_of_some_kind")
    file = tmp_path / "cifar10_of_some_kind" / "patt-seed0.json"
    record = json.loads(file.read_text())
    paper = {"ds": "cifar10", "model": "ResNet18", "epochs": 100, "rho": 0.01}
    record["args"] |= paper | changed
    record["results"]["epoch"] = record["args"]["epochs"]
    file.write_text(json.dumps(record))
    note = show(capsys, tmp_path, "ablation", "cifar10_of_some_kind")[2]
    assert ("Reduced protocol" in note) == reduced and "Stand-in" in note


def test_latex_escapes_and_keeps_the_numbers():
    made = table.Table(["row", "FC", "AUROC ↑"], [["a_b & c", "yes", "90.00 ± 1.00"]], "note")
    text = table.latex(made)
    assert r"a\_b \& c & yes & 90.00 $\pm$ 1.00 \\" in text and r"AUROC $\uparrow$" in text


def test_an_unknown_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="no table"):
        table.main(["--show", "nothing", "here"])
    with pytest.raises(InputError, match="no result files"):
        table.main(["--show", "digits", "nowhere", "--results", str(tmp_path)])


@pytest.mark.parametrize(
    "setting, values, words",
    [
        ("ood_resize", ("squash", "crop"), "ood_resize: squash against crop"),
        ("fc_strength", (1.0, 0.5), "fc_strength: 1.0 against 0.5"),
        ("rows", ([{"ood": "far"}], [{"ood": "far"}, {"ood": "near"}]), "OOD sets: far against far, near"),
    ],
)
def test_seeds_that_were_evaluated_differently_have_no_mean(setting, values, words, tmp_path):
    for seed, value in enumerate(values):
        write_record(tmp_path, "patt", seed, 0.9)
        file = tmp_path / "digits_default" / f"patt-seed{seed}.json"
        record = json.loads(file.read_text())
        record["results"][setting] = value
        file.write_text(json.dumps(record))
        write_run(tmp_path / str(seed), seed, 0.9)
        results = json.loads((tmp_path / str(seed) / "results.json").read_text())
        (tmp_path / str(seed) / "results.json").write_text(json.dumps(results | {setting: value}))
    with pytest.raises(InputError, match=f"patt-seed0.*patt-seed1.* not evaluated alike: {words}"):
        table.main(["--show", "digits", "digits_default", "--results", str(tmp_path)])
    with pytest.raises(InputError, match=f"not evaluated alike: {words}"):
        table.main(["--runs", str(tmp_path / "0"), str(tmp_path / "1")])


def test_seeds_of_which_one_did_not_use_a_setting_have_a_mean(tmp_path, capsys):
    """``auto`` chose FC, and used a split for it, with some seeds only."""
    for seed, split in enumerate((None, "train", "test")):
        if split == "test":
            _, rows, _ = show(capsys, tmp_path, "digits", "digits_default")
            assert any("90.00 ± 0.00" in cells for cells in rows)
        write_record(tmp_path, "patt", seed, 0.9)
        file = tmp_path / "digits_default" / f"patt-seed{seed}.json"
        record = json.loads(file.read_text())
        record["results"]["calibration_split"] = split
        file.write_text(json.dumps(record))
    with pytest.raises(InputError, match="calibration_split: train against test"):
        table.main(["--show", "digits", "digits_default", "--results", str(tmp_path)])


def test_the_note_says_that_a_run_was_unfinished_and_where_its_files_are(tmp_path, capsys):
    write_record(tmp_path, "patt", 0, 0.9)
    file = tmp_path / "digits_default" / "patt-seed0.json"
    record = json.loads(file.read_text())
    record["results"] |= {"epoch": 12, "epochs": 30}
    file.write_text(json.dumps(record))
    _, _, note = show(capsys, tmp_path, "digits", "digits_default")
    assert "digits, ResNet20, epoch 12 of 30, rho 0.1" in note
    assert f"files: `{tmp_path / 'digits_default'}/`" in note


def test_scores_and_sets_are_tables_of_their_own(tmp_path, capsys):
    for row, auroc in (("patt", 0.9), ("ce", 0.8)):
        write_record(tmp_path, row, 0, auroc)
        file = tmp_path / "digits_default" / f"{row}-seed0.json"
        record = json.loads(file.read_text())
        results = record["results"]
        results["mean"] += [m | {"score": "knn", "auroc": m["auroc"] - 0.3} for m in results["mean"]]
        line = {"fc": False, "score": "energy"}
        results["rows"] = [line | {"ood": "far", "auroc": auroc}, line | {"ood": "near", "auroc": auroc / 2}]
        file.write_text(json.dumps(record))
    head, rows, note = show(capsys, tmp_path, "scores", "digits_default", "--score", "energy", "fc/energy")
    assert head == ["AUROC ↑", "calibration", "energy", "knn"] and "score:" not in note
    assert rows[0] == ["PATT", "none", "90.00", "60.00"] and rows[1] == ["PATT", "FC", "80.00", "50.00"]
    assert rows[2] == ["plain cross-entropy", "none", "80.00", "50.00"]
    head, rows, _ = show(capsys, tmp_path, "sets", "digits_default", "--rows", "ce", "--score", "energy")
    assert head == ["AUROC ↑", "OOD set", "energy"]
    assert rows == [["plain cross-entropy", "far", "80.00"], ["plain cross-entropy", "near", "40.00"]]


def test_a_way_that_no_set_was_evaluated_with_is_refused(tmp_path):
    write_record(tmp_path, "patt", 0, 0.9)
    words = ["--show", "sets", "digits_default", "--results", str(tmp_path), "--score", "fc/energy"]
    with pytest.raises(InputError, match="patt-seed0.json has no result of fc/energy on noise"):
        table.main(words)


def test_runs_whose_folders_begin_alike_keep_their_rows(tmp_path, capsys):
    for seed, rate in enumerate((0.1, 0.1, 0.2, 0.2)):
        write_run(tmp_path / str(seed), seed, rate, lr=rate)
    runs = [str(tmp_path / str(seed)) for seed in range(4)]
    table.main(["--runs", *runs, "--score", "energy", "--columns", "AUROC", "--format", "markdown"])
    rows = capsys.readouterr().out.splitlines()[2:4]
    assert [row.split("|")[2].split()[0] for row in rows] == ["10.00", "20.00"]
    with pytest.raises(InputError, match="seed included"):  # three runs, but two seeds
        table.main(["--runs", runs[0], runs[1], runs[0]])


def test_a_note_speaks_of_every_protocol_in_the_table(tmp_path, capsys):
    """One run of the paper's length does not make the others so."""
    for seed, model, epochs in ((0, "ResNet18", 100), (1, "ResNet20", 4)):
        write_record(tmp_path, "patt", seed, 0.9, "mixed")
        file = tmp_path / "mixed" / f"patt-seed{seed}.json"
        record = json.loads(file.read_text())
        record["args"] |= {"ds": "cifar10", "model": model, "epochs": epochs}
        file.write_text(json.dumps(record))
    _, _, note = show(capsys, tmp_path, "cifar10", "mixed")
    assert "ResNet18, 100 epochs" in note and "ResNet20, 4 epochs" in note and "Reduced protocol" in note


def test_the_choice_on_held_out_images_is_tabulated_without_test_data(tmp_path, capsys):
    """AUROC 0.6 and 0.8 with accuracy 0.5: 70.00 ± 14.14, 50.00 ± 0.00 and their sum."""
    for seed, auroc in ((0, 0.6), (1, 0.8)):
        write_record(tmp_path, "patt_held_out", seed, 0.9)
        write_record(tmp_path, "patt_held_out-auto", seed, 0.9)
        file = tmp_path / "digits_default" / f"patt_held_out-auto-seed{seed}.json"
        record = json.loads(file.read_text())
        trials = [
            {"calibration": "none", "fc_strength": None, "auroc": auroc, "accuracy": 0.5},
            {"calibration": "fc", "fc_strength": 0.1, "auroc": 0.7, "accuracy": 0.5},
            {"calibration": "fc", "fc_strength": 1.0, "auroc": 0.5, "accuracy": 0.5},
        ]
        best = max(trials, key=lambda trial: trial["auroc"])
        record["results"]["auto"] = {"chosen": best, "trials": trials, "score": "energy"}
        file.write_text(json.dumps(record))
    head, rows, note = show(capsys, tmp_path, "defaults", "digits_default")
    assert head[2:5] == ["AUROC ↑", "mean class accuracy ↑", "sum ↑"]
    assert rows == [
        ["PATT, a tenth held out", "none", "70.00 ± 14.14", "50.00 ± 0.00", "120.00 ± 14.14", "1 of 2"],
        ["PATT, a tenth held out", "FC 0.1", "70.00 ± 0.00", "50.00 ± 0.00", "120.00 ± 0.00", "1 of 2"],
        ["PATT, a tenth held out", "FC 1.0", "50.00 ± 0.00", "50.00 ± 0.00", "100.00 ± 0.00", "0 of 2"],
    ]
    assert "no test image or OOD set" in note and "OOD sets:" not in note
    narrow = show(capsys, tmp_path, "defaults", "digits_default", "--score", "energy")
    assert [row[1] for row in narrow[1]] == ["none"]


def test_a_note_names_the_commit_of_an_evaluation_that_is_not_the_trainings(tmp_path, capsys):
    for seed, commit in ((0, "abc"), (1, "def")):
        write_record(tmp_path, "patt", seed, 0.9)
        file = tmp_path / "digits_default" / f"patt-seed{seed}.json"
        record = json.loads(file.read_text())
        record["results"]["environment"]["commit"] = commit
        file.write_text(json.dumps(record))
    *_, note = show(capsys, tmp_path, "ablation", "digits_default", "--rows", "patt")
    assert "commit abc, evaluated in part at def; files" in note
    (tmp_path / "digits_default" / "patt-seed0.json").unlink()
    *_, note = show(capsys, tmp_path, "ablation", "digits_default", "--rows", "patt")
    assert "commit abc, evaluated at def; files" in note
