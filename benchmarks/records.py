"""What run directories and result files say: one record for each evaluation of a run."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from utils.calibration import CALIBRATIONS
from utils.checkpoint import DATA_FLAGS
from utils.errors import InputError, first_line
from utils.metrics import OOD_METRICS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "runs"  # those that the documents show

# Where things are on this machine; not part of a result.
LOCAL_FLAGS = DATA_FLAGS | {"data_root_path", "srp", "save_root_path", "resume", "gpu", "figures"}
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

    @property
    def label(self) -> str:
        """The calibration's name in a table."""
        return self.calibration.replace("fc", "FC")


def way_of(entry: dict) -> Way:
    """Returns the way of an entry of ``rows`` or ``mean``."""
    return Way(entry["calibration"], entry["score"])


def load_records(results: Path, group: str) -> dict[str, list[dict]]:
    """Loads a protocol's result files: row -> its records, by seed.

    Raises:
        InputError: there are none.
    """
    records = {}
    for file in sorted((results / group).glob("*-seed*.json")):
        record = json.loads(file.read_text(encoding="utf-8")) | {"name": str(file)}
        name_calibrations(record["results"])
        records.setdefault(record["row"], []).append(record)
    if not records:
        raise InputError(f"there are no result files in {results / group}")
    return records


def read_run(folder: Path, run: Path | None = None) -> dict:
    """Reads the record of an evaluated run, or of an evaluation that ``test.py --srp`` put elsewhere.

    Args:
        folder: where results.json is. run: the run directory; by default that of the evaluated checkpoint.

    Returns:
        ``name``, ``run`` (folders), ``seed``, ``date``, ``train_seconds``, ``args`` and ``results``. A
        third-party checkpoint has only the arguments that results.json knows, and no training time.

    Raises:
        InputError: it is not an evaluation.
    """
    file = folder / "results.json"
    if not file.exists():
        raise InputError(
            f"{folder} has no results.json; evaluate the run first: test.py --ckpt_path {folder}"
        )
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        checkpoint = Path(results.pop("checkpoint", folder))
        places = [run] if run else [folder, checkpoint, checkpoint.parent]
        run = next((place for place in places if (place / "args.json").exists()), None)
        if run is None:
            settings, seconds = described(results), None
        else:
            settings = json.loads((run / "args.json").read_text(encoding="utf-8"))
            log = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
            seconds = round(sum(json.loads(line)["seconds"] for line in log), 1)
        name_calibrations(results)
        return {
            "name": str(folder),
            "run": str(run or folder),
            "seed": settings["seed"],
            "date": results["environment"]["date"],
            "train_seconds": seconds,
            "args": {name: value for name, value in settings.items() if name not in LOCAL_FLAGS},
            "results": results,
        }
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} cannot be read as a run directory: {first_line(error)}") from None


def described(results: dict) -> dict:
    """Returns what results.json says about the training of a checkpoint."""
    same = ("seed", "epochs", "rho", "class_counts", "environment")
    known = {name: results[name] for name in same if results.get(name) is not None}
    return {"seed": None, "epochs": None, "ds": results["dataset"], "model": results["network"]} | known


def name_calibrations(results: dict) -> None:
    """Adds the calibrations' names to the entries of older files, which only say whether it is FC."""
    for entry in (*results["rows"], *results["mean"], *results["accuracy"]):
        entry.setdefault("calibration", "fc" if entry["fc"] else "none")


def metrics(record: dict, way: Way) -> dict[str, float | None]:
    """Returns the numbers of one way, fractions; without those that the record does not have.

    They are the accuracies under the calibration, the OOD metrics averaged over all sets, and AUROC and FPR95
    averaged over the near and the far sets: ``near_auroc``, ``far_fpr95``.
    """
    found = {}
    for entry in record["results"]["accuracy"]:
        if entry["calibration"] == way.calibration:
            found |= {name: value for name, value in entry.items() if name != "per_class"}
    for entry in record["results"]["mean"]:
        if way_of(entry) == way:
            found |= {name: entry[name] for name in OOD_METRICS}
    sets = by_set(record, way)
    for name, is_near in (("near", True), ("far", False)):
        for metric in ("auroc", "fpr95"):
            values = [sets[ood][metric] for ood in sets if (ood in NEAR) == is_near]
            if values:
                found[f"{name}_{metric}"] = mean(values)
    return found


def by_set(record: dict, way: Way) -> dict[str, dict]:
    """Returns the numbers of one way on each OOD set: name of the set -> metric -> fraction."""
    return {row["ood"]: row for row in record["results"]["rows"] if way_of(row) == way}


def require_scores(records: Iterable[dict], ways: Iterable[Way]) -> None:
    """Raises InputError for a score that none of the records has, such as a misspelled one."""
    there = dict.fromkeys(entry["score"] for record in records for entry in record["results"]["mean"])
    missing = [way.score for way in ways if way.score not in there]
    if missing:
        raise InputError(f"no result file has --score {missing[0]}; there are {', '.join(there)}")


def evaluated_with(record: dict) -> dict:
    """Returns what an evaluation's numbers depend on, beside its run; without settings that were not used."""
    results = record["results"]
    names = ["calibration_split", "tnorm", "ood_resize", "num_ood_samples", "num_cal", "precision"]
    names += [] if "auto" in results else ["fc_strength"]  # auto's is a result
    sets = ", ".join(sorted({row["ood"] for row in results["rows"]}))
    return {name: results[name] for name in names if results.get(name) is not None} | {"OOD sets": sets}


def require_alike(rows: dict[str, list[dict]]) -> None:
    """Raises InputError if two seeds of a row, which are averaged, were evaluated differently."""
    for row, records in rows.items():
        settings, named_by = {}, {}
        for record in records:
            for name, value in evaluated_with(record).items():
                if settings.setdefault(name, value) != value:
                    raise InputError(
                        f"{row}: {named_by[name]} and {record['name']} were not evaluated alike: {name}: "
                        f"{settings[name]} against {value}"
                    )
                named_by.setdefault(name, record["name"])
