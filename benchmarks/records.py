"""Reads results: a record for each evaluation of a run.

A record has ``name`` (its file or folder), ``run`` (the run directory; not in files), ``seed``, ``date``,
``train_seconds``, ``args`` (the settings of the training) and ``results`` (as in results.json).
"""

import argparse
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from utils.calibration import CALIBRATIONS
from utils.checkpoint import DATA_FLAGS
from utils.errors import InputError
from utils.metrics import OOD_METRICS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "runs"  # those that the documents show
UNRECORDED_FLAGS = DATA_FLAGS | {"srp", "resume", "gpu", "figures"}  # no part of a result
# OOD sets that resemble the training images; all others are far.
NEAR = ("cifar10", "cifar100", "tin", "digits89")


class Way(NamedTuple):
    """One way to use a network: its calibration, and the score that detects OOD."""

    calibration: str
    score: str

    @classmethod
    def parse(cls, text: str) -> "Way":
        """Parses ``SCORE`` (no calibration) or ``CALIBRATION/SCORE``."""
        calibration, _, score = text.rpartition("/")
        if calibration not in ("", *CALIBRATIONS):
            raise argparse.ArgumentTypeError(f"{calibration!r} is not one of {', '.join(CALIBRATIONS)}")
        return cls(calibration or "none", score)


def way_of(entry: dict) -> Way:
    return Way(entry["calibration"], entry["score"])


def load_records(folder: Path, required: Iterable[str] = ()) -> dict[str, list[dict]]:
    """Loads a protocol's result files: row -> its records, by seed. Raises InputError if there are none, or
    none of a ``required`` row."""
    records = {}
    for file in sorted(folder.glob("*-seed*.json")):
        record = json.loads(file.read_text(encoding="utf-8")) | {"name": str(file)}
        records.setdefault(record["row"], []).append(record)
    if not records:
        raise InputError(f"there are no result files in {folder}")
    for row in required:
        if row not in records:
            raise InputError(f"{folder} has no row {row}; it has {', '.join(records)}")
    return records


def read_run(folder: Path, run: Path | None = None) -> dict:
    """Reads the record of an evaluated run, or of an evaluation that ``test.py --srp`` put elsewhere.

    ``run`` is the run directory, by default that of the evaluated checkpoint. A third-party checkpoint has
    none: its settings are those that results.json knows. Raises InputError if there is no results.json.
    """
    if not (folder / "results.json").exists():
        raise InputError(f"{folder} has no results.json; run test.py --ckpt_path {folder} first")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    checkpoint = Path(results.pop("checkpoint", folder))
    places = [run] if run else [folder, checkpoint, checkpoint.parent]
    run = next((place for place in places if (place / "args.json").exists()), None)
    if run:
        settings = json.loads((run / "args.json").read_text(encoding="utf-8"))
        log = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
        log = log[: results.get("epoch")]  # up to the evaluated checkpoint
        seconds = round(sum(json.loads(line)["seconds"] for line in log), 1)
    else:
        settings = {"ds": results["dataset"], "model": results["network"], "seed": None, "epochs": None}
        settings["checkpoint"] = str(checkpoint)  # the method is unknown
        names = ("seed", "epochs", "rho", "class_counts", "environment")
        settings |= {name: results[name] for name in names if results.get(name) is not None}
        seconds = None
    return {
        "name": str(folder),
        "run": str(run or folder),
        "seed": settings["seed"],
        "date": results["environment"]["date"],
        "train_seconds": seconds,
        "args": {name: value for name, value in settings.items() if name not in UNRECORDED_FLAGS},
        "results": results,
    }


def metrics(record: dict, way: Way) -> dict:
    """Returns those numbers of one way that the record has, fractions: accuracies, means of the OOD metrics
    over all sets, and of AUROC and FPR95 over the near and the far ones (``near_auroc``, ``far_fpr95``)."""
    found, results = {}, record["results"]
    for entry in results["accuracy"]:
        if entry["calibration"] == way.calibration:
            found |= entry
    for entry in results["mean"]:
        if way_of(entry) == way:
            found |= {name: entry[name] for name in OOD_METRICS}
    for name, is_near in (("near", True), ("far", False)):
        sets = [row for row in results["rows"] if way_of(row) == way and (row["ood"] in NEAR) == is_near]
        for metric in ("auroc", "fpr95") if sets else ():
            found[f"{name}_{metric}"] = mean(row[metric] for row in sets)
    return found


def evaluated_with(record: dict) -> dict:
    """Returns what an evaluation's numbers depend on, beside its run; without settings that were not used."""
    results = record["results"]
    names = ["calibration_split", "tnorm", "ood_resize", "num_ood_samples", "num_cal", "precision"]
    names += [] if "auto" in results else ["fc_strength"]  # auto's is a result
    sets = ", ".join(sorted({row["ood"] for row in results["rows"]}))
    used = {name: results[name] for name in names if results.get(name) is not None}
    return used | {"OOD sets": sets, "select": results.get("flags", {}).get("select", "last")}


def require_alike(records: list[dict], names: Iterable[str] | None = None) -> None:
    """Raises InputError if two records were evaluated differently, in what ``names`` says, or at all."""
    for one, other in itertools.combinations(records, 2):
        others = evaluated_with(other)
        for name, value in evaluated_with(one).items():
            if (names is None or name in names) and others.get(name, value) != value:
                raise InputError(f"{one['name']} and {other['name']} were evaluated with different {name}")
