"""What result files say: their numbers, and which of them may be averaged."""

import json
from pathlib import Path
from typing import NamedTuple

from utils.errors import InputError


class Way(NamedTuple):
    """One way to use a network: its calibration, and the score that detects OOD."""

    calibration: str
    score: str

    @classmethod
    def parse(cls, text: str) -> "Way":
        """Parses ``SCORE`` (no calibration) or ``CALIBRATION/SCORE``."""
        calibration, _, score = text.rpartition("/")
        return cls(calibration or "none", score)


def load_records(results: Path, group: str) -> dict[str, list[dict]]:
    """Loads the run files of a protocol: row -> records, by seed."""
    files = sorted((results / group).glob("*-seed*.json"))
    if not files:
        raise InputError(f"there are no result files in {results / group}")
    records = {}
    for file in files:
        record = json.loads(file.read_text())
        records.setdefault(record["row"], []).append(record | {"name": str(file)})
    return records


def evaluation(record: dict, way: Way) -> dict:
    """Returns the metrics of one way, means over the OOD sets, and the accuracies: key -> fraction, or None.

    Raises:
        InputError: the record does not have it.
    """
    accuracies = {calibration_of(a): a for a in record["results"]["accuracy"]}
    means = {Way(calibration_of(m), m["score"]): m for m in record["results"]["mean"]}
    if way not in means:
        there = ", ".join("/".join(other) for other in means)
        raise InputError(f"{record['name']} has no result of {'/'.join(way)}; it has {there}")
    return accuracies[way.calibration] | means[way]


def auroc_on(record: dict, way: Way, ood: str) -> float:
    """The AUROC of one way on one OOD set, a fraction.

    Raises:
        InputError: the record does not have it.
    """
    for line in record["results"]["rows"]:
        if line["ood"] == ood and Way(calibration_of(line), line["score"]) == way:
            return line["auroc"]
    raise InputError(f"{record['name']} has no result of {'/'.join(way)} on {ood}")


def calibration_of(entry: dict) -> str:
    """Returns the calibration's name; older files only say whether it is FC."""
    return entry.get("calibration", "fc" if entry["fc"] else "none")


def require_alike(rows: dict[str, list[dict]]) -> None:
    """Raises InputError if two seeds of a row, which are averaged, were evaluated differently."""
    for row, (first, *others) in rows.items():
        mine = evaluated_with(first)
        for other in others:
            theirs = evaluated_with(other)
            for setting in (s for s in mine if mine[s] != theirs.get(s, mine[s])):
                raise InputError(
                    f"{row}: {first['name']} and {other['name']} were not evaluated alike: {setting}: "
                    f"{mine[setting]} against {theirs[setting]}"
                )
            mine |= theirs


def evaluated_with(record: dict) -> dict:
    """Returns what an evaluation's numbers depend on, other than its run: settings and OOD sets.

    None says that a setting was not used, such as the split for FC where "auto" chose none.
    """
    results = record["results"]
    settings = ["calibration_split", "tnorm", "ood_resize", "num_ood_samples", "num_cal", "precision"]
    settings += [] if "auto" in results else ["fc_strength"]  # auto's is a result
    sets = ", ".join(sorted({line["ood"] for line in results["rows"]}))
    return {name: results[name] for name in settings if results.get(name) is not None} | {"OOD sets": sets}
