"""Result files with known numbers, and what the command for tables prints of them."""

import json

from benchmarks import table

METRICS = ("auroc", "aupr_out", "aupr_in", "fpr95", "fpr95_id")


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
    settings["seed"] = seed
    record = {
        "group": group,
        "row": row,
        "seed": seed,
        "date": "2026-01-01",
        "train_seconds": 90.0,
        "args": settings,
    }
    record["results"] = {"mean": means, "accuracy": accuracy, "rows": rows}
    record["results"]["environment"] = environment | {"date": "2026-01-01"}
    (results / group).mkdir(parents=True, exist_ok=True)
    (results / group / f"{row}-seed{seed}.json").write_text(json.dumps(record))


def show(capsys, results, *words):
    """What ``--show`` prints: the head's cells, the rows' cells, and the note."""
    table.main(["--show", *words, "--results", str(results), "--format", "markdown"])
    head, _, *rows, _, note = capsys.readouterr().out.splitlines()
    head, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in (head, *rows))
    return head, rows, note


def write_run(folder, seed, auroc, **settings):
    """A run directory as train.py and test.py leave it, as far as tables read it."""
    write_record(folder.parent, "patt", seed, auroc, group="made")
    made = json.loads((folder.parent / "made" / f"patt-seed{seed}.json").read_text())
    folder.mkdir(parents=True)
    (folder / "args.json").write_text(json.dumps(made["args"] | settings | {"srp": str(folder)}))
    (folder / "log.jsonl").write_text('{"seconds": 60.0}\n{"seconds": 30.0}\n')
    (folder / "results.json").write_text(json.dumps(made["results"] | {"checkpoint": str(folder)}))
