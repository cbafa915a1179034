"""Tables of records: which of them share a row, and what a row shows."""

import json
import os
from itertools import chain
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from benchmarks.formats import Table
from benchmarks.notes import cores, describe
from benchmarks.records import (
    ROOT,
    Way,
    by_set,
    evaluated_with,
    load_records,
    metrics,
    read_run,
    require_alike,
    require_scores,
)
from benchmarks.rows import EVALUATED, EVALUATIONS, ROWS, TABLES
from utils.errors import InputError
from utils.metrics import ACCURACY_COLUMNS, OOD_COLUMNS

# A metric -> its column's header.
HEADERS = OOD_COLUMNS | ACCURACY_COLUMNS
HEADERS |= {
    f"{which}_{key}": f"{which} {HEADERS[key]}" for which in ("near", "far") for key in ("auroc", "fpr95")
}
# A column's name in --columns, which is its header without the arrow -> the metric.
METRICS = {header.rpartition(" ")[0]: key for key, header in HEADERS.items()}
COLUMNS = ("calibration", "score", "n", *METRICS, "minutes")
FULL = tuple(name for name in COLUMNS if name != "score" and not name.startswith(("near", "far")))
# Whose scoring method it is, if a table has several for PATT: this project's unless listed.
OWNERS = {"energy": " (the paper's)", "msp": "", "maxlogit": ""}


class Selection(NamedTuple):
    """What a table shows: some of its rows (None: all), ways to use the networks, and columns."""

    rows: list[str] | None = None
    ways: list[Way] | tuple[Way, ...] = (Way("none", "energy"), Way("fc", "energy"))
    columns: list[str] | tuple[str, ...] = FULL

    @property
    def common_score(self) -> str | None:
        """The score of all lines, if no column names it."""
        scores = {way.score for way in self.ways}
        return scores.pop() if len(scores) == 1 and "score" not in self.columns else None


Records = dict[str, list[dict]]  # row -> its records, one per seed
Lines = tuple[list[str], list[list[str]]]  # a table's head and its rows


def build(kind: str, argument: str, selection: Selection, results: Path) -> Table:
    """Builds the table ``kind`` of a protocol, data set or claim."""
    if kind == "published":
        return published_table(argument)
    if kind == "claim":
        return claim_table(argument)
    own = {"scores": scores_lines, "sets": sets_lines, "defaults": choices_lines}
    if kind not in own and kind not in TABLES:
        there = ", ".join(dict.fromkeys([*TABLES, *own, "published"]))
        raise InputError(f"there is no table {kind}; there are {there} and claim")
    folder = results / argument
    rows, dropped = comparable(folder, kind if kind in TABLES else "ablation", selection.rows)
    head, lines = own.get(kind, lines_by_way)(rows, selection)
    files = f"`{folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder}/`"
    score = None if kind == "scores" else selection.common_score
    text = describe(rows, files, score, kind != "defaults", dropped)
    return Table(head, lines, text)


def comparable(folder: Path, table: str, wanted: list[str] | None) -> tuple[Records, set[int]]:
    """Returns the records of a table's rows, and the seeds that were left out.

    Seeds differ more than methods, so a table shows those that all its rows have.
    """
    records = load_records(folder.parent, folder.name)
    missing = [row for row in wanted or () if row not in records]
    if missing:
        raise InputError(f"{folder} has no row {missing[0]}; it has {', '.join(records)}")
    rows = [row for row in wanted or TABLES[table] if row in records]
    further = [f"{row}-{name}" for row in rows for name in EVALUATED.get(table, ())]
    rows += [row for row in further if row in records]
    seeds = [{record["seed"] for record in records[row]} for row in rows]
    common = set.intersection(*seeds) if seeds else set()
    if not common:
        raise InputError(f"the rows {', '.join(rows)} of {folder} have no seed in common")
    shown = {row: [r for r in records[row] if r["seed"] in common] for row in rows}
    require_alike(shown)
    return shown, set.union(*seeds) - common


def spread(values: list[float | None]) -> str:
    """Formats mean ± standard deviation over seeds, in percent, from fractions; "-" if one is missing."""
    if None in values:
        return "-"
    percent = [100 * value for value in values]
    return f"{mean(percent):.2f} ± {stdev(percent):.2f}" if len(percent) > 1 else f"{percent[0]:.2f}"


def lines_by_way(rows: Records, selection: Selection) -> Lines:
    """Returns a line for each row and way, with the columns of ``selection``."""
    require_scores(chain.from_iterable(rows.values()), selection.ways)
    lines = []
    for row, records in rows.items():
        for way in selection.ways:
            if evaluation_of(row) and way.calibration != "fc":
                continue  # further evaluations change FC alone
            found = [metrics(record, way) for record in records]
            cells = {"calibration": way.label, "score": way.score, "n": str(len(records))}
            cells["minutes"] = minutes(records)
            cells |= {name: spread([of.get(key) for of in found]) for name, key in METRICS.items()}
            lines.append([line_label(row, way, selection), *(cells[name] for name in selection.columns)])
    headers = {name: HEADERS[key] for name, key in METRICS.items()} | {"minutes": "training, minutes"}
    return ["", *(headers.get(name, name) for name in selection.columns)], lines


def minutes(records: list[dict]) -> str:
    """Formats the mean training time."""
    seconds = [record["train_seconds"] for record in records]
    return "-" if None in seconds else f"{mean(seconds) / 60:.1f}"


def scores_lines(rows: Records, selection: Selection) -> Lines:
    """Returns the mean AUROC of every score, under the calibrations of ``selection``."""
    first = next(iter(rows.values()))[0]
    names = list(dict.fromkeys(entry["score"] for entry in first["results"]["mean"]))
    lines = []
    for row, records in rows.items():
        for calibration in dict.fromkeys(way.calibration for way in selection.ways):
            ways = [Way(calibration, name) for name in names]
            cells = [spread([metrics(record, way).get("auroc") for record in records]) for way in ways]
            lines.append([ROWS[row].label, ways[0].label, *cells])
    return ["AUROC ↑", "calibration", *names], lines


def sets_lines(rows: Records, selection: Selection) -> Lines:
    """Returns AUROC on each OOD set, with a column for each way."""
    require_scores(chain.from_iterable(rows.values()), selection.ways)
    lines = []
    for row, records in rows.items():
        found = [[by_set(record, way) for record in records] for way in selection.ways]
        for name in dict.fromkeys(line["ood"] for line in records[0]["results"]["rows"]):
            cells = [spread([sets.get(name, {}).get("auroc") for sets in of_way]) for of_way in found]
            lines.append([ROWS[row].label, name, *cells])
    labels = [
        way.score if way.calibration == "none" else f"{way.label} / {way.score}" for way in selection.ways
    ]
    return ["AUROC ↑", "OOD set", *labels], lines


def choices_lines(rows: Records, selection: Selection) -> Lines:
    """Returns what ``--calibration auto`` measured on held-out images.

    It has a line for each calibration of ``selection``, and for each strength of FC.
    """
    calibrations = {way.calibration for way in selection.ways}
    lines = []
    for row in [row for row in rows if row.endswith("-auto")]:
        found = [record["results"]["auto"] for record in rows[row]]
        for trials in zip(*(auto["trials"] for auto in found), strict=True):
            name, strength = trials[0]["calibration"], trials[0]["fc_strength"]
            if name in calibrations:
                both = [[trial[key] for trial in trials] for key in ("auroc", "accuracy")]
                total = [sum(values) for values in zip(*both, strict=True)]
                chosen = sum(auto["chosen"] == trial for auto, trial in zip(found, trials, strict=True))
                label = Way(name, "").label + ("" if strength is None else f" {strength}")
                cells = [spread(values) for values in (*both, total)]
                lines.append(
                    [ROWS[row.removesuffix("-auto")].label, label, *cells, f"{chosen} of {len(found)}"]
                )
    measured = ["AUROC ↑", "mean class accuracy ↑", "sum ↑"]
    return ["on held-out images", "calibration", *measured, "chosen by auto"], lines


def evaluation_of(row: str) -> str | None:
    """Returns the name of a row's further evaluation: fc0.1 of patt-fc0.1; None if it is none."""
    name, _, further = row.partition("-")
    return further if name in ROWS and further in EVALUATIONS else None


def line_label(row: str, way: Way, selection: Selection) -> str:
    """Returns the row's label, with the way if several are shown and no column tells them apart."""
    name, further = row, evaluation_of(row)
    if further:
        name = row.removesuffix(f"-{further}")
    label = ROWS[name].label if name in ROWS else name
    label += f", {EVALUATIONS[further].label}" if further else ""
    parts = [] if way.calibration == "none" or "calibration" in selection.columns else [way.label]
    names_score = "score" not in selection.columns and selection.common_score is None
    parts += [way.score] if names_score else []
    if name == "patt" and names_score:
        parts[-1] += " (ours)" if way.calibration == "probe" else OWNERS.get(way.score, " (ours)")
    return ", ".join([label, " / ".join(parts)]) if parts else label


def runs_table(folders: list[Path], selection: Selection) -> Table:
    """Tabulates any run directories and evaluations; those that differ only in the seed share a row."""
    rows = []
    for record in map(read_run, dict.fromkeys(folders)):
        alike = [row for row in rows if settings_of(row[0]) == settings_of(record)]
        others = [row for row in alike if record["seed"] not in [other["seed"] for other in row]]
        if others:
            others[0].append(record)
        else:
            rows.append([record])
    shown = dict(zip(run_labels(rows), rows, strict=True))
    head, lines = lines_by_way(shown, selection)
    text = describe(shown, "the run directories", selection.common_score)
    return Table(head, lines, text)


def settings_of(record: dict) -> dict:
    """Returns the settings of a training and its evaluation, without those that may differ within a row."""
    trained = {k: v for k, v in record["args"].items() if k not in ("seed", "environment", "num_workers")}
    names = dict.fromkeys(entry["calibration"] for entry in record["results"]["accuracy"])
    calibration = "auto" if "auto" in record["results"] else " ".join(names)
    return trained | evaluated_with(record) | {"calibration": calibration}


def run_labels(rows: list[list[dict]]) -> list[str]:
    """Names rows by their folders; those of the same folders, by what differs."""
    names = [common_name([record["run"] for record in records]) for records in rows]
    labels = []
    for name, records in zip(names, rows, strict=True):
        alike = [settings_of(other[0]) for n, other in zip(names, rows, strict=True) if n == name]
        mine = {k: v for k, v in settings_of(records[0]).items() if k != "class_counts"}
        differ = [f"{k} {v}" for k, v in mine.items() if any(other.get(k) != v for other in alike)]
        labels.append(", ".join([name, *differ]))
    for i, records in enumerate(rows):
        if labels.count(labels[i]) > 1:  # nothing differs
            labels[i] = ", ".join(record["name"] for record in records)
    return labels


def common_name(names: list[str]) -> str:
    """Returns the common beginning of several seeds' folders: p/patt for p/patt/seed0 and p/patt/seed1."""
    if len(names) == 1:
        return names[0]
    return os.path.commonprefix(names).rstrip("0123456789").removesuffix("seed").rstrip("-_/") or names[0]


def published_table(ds: str) -> Table:
    """Tabulates the published averages."""
    data = json.loads((ROOT / "benchmarks" / "published.json").read_text(encoding="utf-8"))
    rows = [[r["method"], *(f"{v:.2f}" for v in r[ds]), r["positive"]] for r in data["rows"] if r[ds]]
    head = ["published", "AUROC ↑", "AUPR ↑", "FPR95 ↓", "ACC ↑", "positive class of AUPR and FPR95"]
    return Table(head, rows, data["note"])


def claim_table(name: str) -> Table:
    """Returns the table stored in a benchmark's results file."""
    file = ROOT / "benchmarks" / "results" / f"{name}.json"
    if not file.exists():
        raise InputError(f"there is no results file {file}")
    record = json.loads(file.read_text(encoding="utf-8"))
    made = record["environment"]
    note = f"`{record['command']}`; {made['device']}, {cores(made)}, torch {made['torch']}; {made['date']};"
    note += f" commit {made['commit']}; file `benchmarks/results/{name}.json`."
    return Table(record["table"]["head"], record["table"]["rows"], note)


def every_number(results: Path) -> list[dict]:
    """Returns a record for each run, calibration, score and OOD set of all the result files, as fractions."""
    every = []
    for group in sorted(folder.name for folder in results.iterdir() if folder.is_dir()):
        for record in chain.from_iterable(load_records(results, group).values()):
            found = record["results"]
            accuracies = {entry["calibration"]: entry for entry in found["accuracy"]}
            for entry in found["rows"]:
                calibration = entry["calibration"]
                strength = found.get("fc_strength") if calibration == "fc" else None
                line = {"protocol": group, "row": record["row"], "seed": record["seed"]}
                line |= {"calibration": calibration, "fc_strength": strength}
                line |= {name: entry[name] for name in ("score", "ood", "n_id", "n_ood", *OOD_COLUMNS)}
                every.append(line | {name: accuracies[calibration].get(name) for name in ACCURACY_COLUMNS})
    return every
