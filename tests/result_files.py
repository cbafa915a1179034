"""Result files with known numbers, and what the command for tables prints of them."""

import json

from benchmarks import table

METRICS = ("auroc", "aupr_out", "aupr_in", "fpr95", "fpr95_id")
ENVIRONMENT = {"device": "some CPU", "cpu_cores": 2, "commit": "abc"}


def write_record(results, row, seed, auroc, group="digits_default", args=(), **changed):
    """A result file of the digits, two OOD sets, energy with and without FC; with FC AUROC is 0.1 lower.

    ``args``: other settings of the training. ``changed``: other entries of ``results``.
    """
    found = {"mean": [], "accuracy": [], "rows": [], "epoch": None}
    for fc in (False, True):
        about = {"fc": fc, "calibration": "fc" if fc else "none"}
        numbers = about | {"score": "energy"} | dict.fromkeys(METRICS, 0.5) | {"auroc": auroc - 0.1 * fc}
        found["mean"].append(numbers)
        for ood, offset in (("digits89", -0.05), ("noise", 0.05)):
            line = numbers | {"ood": ood, "n_id": 10, "n_ood": 5, "auroc": numbers["auroc"] + offset}
            found["rows"].append(line)
        shots = {"all": 0.75, "many": 0.9, "medium": 0.7, "few": None, "per_class": [0.9, 0.6]}
        found["accuracy"].append(about | shots)
    found["environment"] = ENVIRONMENT | {"date": "2026-01-01"}
    settings = {"ds": "digits", "model": "ResNet20", "epochs": 30, "rho": 0.1, "num_outliers": 20_000}
    settings |= {"class_counts": [9, 3], "environment": ENVIRONMENT, "seed": seed}
    record = {"group": group, "row": row, "seed": seed, "date": "2026-01-01", "train_seconds": 90.0}
    record |= {"args": settings | dict(args), "results": found | changed}
    (results / group).mkdir(parents=True, exist_ok=True)
    (results / group / f"{row}-seed{seed}.json").write_text(json.dumps(record))
    return record


def write_run(folder, seed, auroc, args=(), **changed):
    """A run directory as train.py and test.py leave it, as far as tables read it."""
    made = write_record(folder.parent, "patt", seed, auroc, "made", args, **changed)
    folder.mkdir(parents=True)
    (folder / "args.json").write_text(json.dumps(made["args"] | {"srp": str(folder)}))
    (folder / "log.jsonl").write_text('{"seconds": 60.0}\n{"seconds": 30.0}\n')
    write_evaluation(folder, folder, seed, auroc, **changed)


def write_evaluation(folder, run, seed, auroc, **changed):
    """results.json as ``test.py --srp`` writes it."""
    made = write_record(folder.parent, "patt", seed, auroc, "made", **changed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(made["results"] | {"checkpoint": str(run)}))


def cells(printed):
    """The head's cells, the rows' cells, and the note of a printed Markdown table."""
    text, note, *_ = printed.strip().split("\n\n")
    head, _, *rows = text.splitlines()
    head, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in (head, *rows))
    return head, rows, note


def show(capsys, results, *words):
    """What ``--show`` prints, as :func:`cells`."""
    table.main(["--show", *words, "--results", str(results)])
    return cells(capsys.readouterr().out)


def show_runs(capsys, *words):
    """What ``--runs`` prints, as :func:`cells`."""
    table.main(["--runs", *map(str, words)])
    return cells(capsys.readouterr().out)
