"""Tables of result files: which records share a row, what a row shows, and the note below."""

import argparse
import json
import os
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from benchmarks.records import Way, auroc_on, calibration_of, evaluation, load_records, require_alike
from benchmarks.rows import EVALUATED, EVALUATIONS, ROWS, TABLES
from benchmarks.runs import ROOT, read_run
from datasets.registry import BENCHMARKS
from utils.errors import InputError
from utils.metrics import ACCURACY_COLUMNS, OOD_COLUMNS

PAPER_EPOCHS = 100
PAPER_RHO = 0.01
PAPER_MODEL = {"cifar10": "ResNet18", "cifar100": "ResNet18", "imagenet": "ResNet50"}
PAPER_OUTLIERS = 300_000
IMAGENET_LT_IMAGES = 115_846

# A column's name in --columns -> the metric.
METRICS = {header.split()[0]: key for key, header in (OOD_COLUMNS | ACCURACY_COLUMNS).items()}
COLUMNS = ("calibration", "score", "n", *METRICS, "minutes")
FULL = ("calibration", "n", *METRICS, "minutes")
# Whose scoring method it is, if a table has several for PATT: this project's unless listed.
OWNERS = {"energy": " (the paper's)", "msp": "", "maxlogit": ""}


class Table(NamedTuple):
    head: list[str]
    rows: list[list[str]]
    note: str


def spread(values: list[float | None]) -> str:
    """Formats mean ± standard deviation over seeds, in percent, from fractions."""
    if any(v is None for v in values):
        return "-"
    values = [100 * v for v in values]
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def cores(environment: dict) -> str:
    """Says how many cores a result was measured on."""
    return f"{environment['cpu_cores']} core{'' if environment['cpu_cores'] == 1 else 's'}"


def place(folder: Path) -> str:
    """Names a folder of result files for a table's note."""
    return f"`{folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder}/`"


def protocol_table(results: Path, table: str, group: str, selection: argparse.Namespace) -> Table:
    """Builds a table of benchmarks/rows.py from one protocol's result files.

    It uses the seeds that all of its rows have, since seeds differ more than methods; the note names the
    rest.
    """
    shown, dropped = comparable(results, group, table, selection)
    return tabulate(shown, selection, dropped, place(results / group))


def scores_table(results: Path, group: str, selection: argparse.Namespace) -> Table:
    """Tabulates the mean AUROC of every score, under the calibrations that ``--score`` names."""
    shown, dropped = comparable(results, group, "ablation", selection)
    calibrations = dict.fromkeys(way.calibration for way in selection.score)
    names = [m["score"] for m in next(iter(shown.values()))[0]["results"]["mean"]]
    names, lines = list(dict.fromkeys(names)), []
    for row, records in shown.items():
        for calibration in calibrations:
            found = [
                [evaluation(record, Way(calibration, name))["auroc"] for record in records] for name in names
            ]
            label = calibration_label(Way(calibration, ""))
            lines.append([ROWS[row].label, label, *map(spread, found)])
    note = notes(shown, selection, dropped, place(results / group), every_score=True)
    return Table(["AUROC ↑", "calibration", *names], lines, note)


def sets_table(results: Path, group: str, selection: argparse.Namespace) -> Table:
    """Tabulates AUROC on each OOD set, with a column for each way of ``--score``."""
    shown, dropped = comparable(results, group, "ablation", selection)
    lines = []
    for row, records in shown.items():
        for name in dict.fromkeys(line["ood"] for line in records[0]["results"]["rows"]):
            cells = []
            for way in selection.score:
                cells.append(spread([auroc_on(record, way, name) for record in records]))
            lines.append([ROWS[row].label, name, *cells])
    note = notes(shown, selection, dropped, place(results / group))
    ways = [
        way.score if way.calibration == "none" else f"{calibration_label(way)} / {way.score}"
        for way in selection.score
    ]
    return Table(["AUROC ↑", "OOD set", *ways], lines, note)


def choices_table(results: Path, group: str, selection: argparse.Namespace) -> Table:
    """Tabulates what ``--calibration auto`` measured on held-out images.

    It has a line for each of ``--score``'s calibrations, and for each strength of FC.
    """
    shown, dropped = comparable(results, group, "defaults", selection)
    shown = {row: records for row, records in shown.items() if row.endswith("-auto")}
    calibrations = {way.calibration for way in selection.score}
    lines = []
    for row, records in shown.items():
        label = ROWS[row.removesuffix("-auto")].label
        for alike in zip(*(record["results"]["auto"]["trials"] for record in records), strict=True):
            name, strength = alike[0]["calibration"], alike[0]["fc_strength"]
            if name in calibrations:
                way = calibration_label(Way(name, "")) + ("" if strength is None else f" {strength}")
                found = [[trial[key] for trial in alike] for key in ("auroc", "accuracy")]
                total = [sum(both) for both in zip(*found, strict=True)]
                chosen = sum(r["results"]["auto"]["chosen"] in alike for r in records)
                lines.append([label, way, *map(spread, (*found, total)), f"{chosen} of {len(records)}"])
    note = notes(shown, selection, dropped, place(results / group), on_test_data=False)
    head = [
        "on held-out images",
        "calibration",
        "AUROC ↑",
        "mean class accuracy ↑",
        "sum ↑",
        "chosen by auto",
    ]
    return Table(head, lines, note)


def comparable(
    results: Path, group: str, table: str, selection: argparse.Namespace
) -> tuple[dict[str, list[dict]], set[int]]:
    """Returns the records of a table's rows with the seeds common to all, and the seeds that are not."""
    records = load_records(results, group)
    rows = [row for row in selection.rows or TABLES[table] if row in records]
    missing = [row for row in selection.rows or () if row not in records]
    if missing:
        raise InputError(f"{results / group} has no row {missing[0]}; it has {', '.join(records)}")
    further = (f"{row}-{name}" for row in rows for name in EVALUATED.get(table, ()))
    rows += [row for row in further if row in records]
    seeds = {row: {r["seed"] for r in records[row]} for row in rows}
    common = set.intersection(*seeds.values()) if seeds else set()
    if not common:
        raise InputError(f"the rows {', '.join(rows)} of {results / group} have no seed in common")
    shown = {row: [r for r in records[row] if r["seed"] in common] for row in rows}
    require_alike(shown)
    return shown, set.union(*seeds.values()) - common


def runs_table(folders: list[Path], selection: argparse.Namespace) -> Table:
    """Tabulates any run directories; those that differ only in the seed share a row."""
    alike = {}
    for folder in folders:
        record = read_run(folder)
        settings = {
            k: v for k, v in record["args"].items() if k not in ("seed", "environment", "num_workers")
        }
        alike.setdefault(json.dumps(settings, sort_keys=True), []).append(record)
    shown = {}
    for records in alike.values():
        names = [r["name"] for r in records]
        seeds = [r["seed"] for r in records]
        if len(set(seeds)) < len(seeds):
            raise InputError(f"{', '.join(names)}: some of these runs are the same, seed included; name one")
        label = common_name(names)
        shown[label if label not in shown else ", ".join(names)] = records
    require_alike(shown)
    return tabulate(shown, selection, set(), "the run directories")


def common_name(names: list[str]) -> str:
    """Returns the common beginning of several seeds' folders: p/patt for p/patt/seed0 and p/patt/seed1."""
    if len(names) == 1:
        return names[0]
    return os.path.commonprefix(names).rstrip("0123456789").removesuffix("seed").rstrip("-_/") or names[0]


def tabulate(
    rows: dict[str, list[dict]], selection: argparse.Namespace, dropped_seeds: set[int], where: str
) -> Table:
    """Builds a line for each row and each way of ``selection``."""
    headers = {name: (OOD_COLUMNS | ACCURACY_COLUMNS)[key] for name, key in METRICS.items()}
    headers["minutes"] = "training, minutes"
    head = ["", *(headers.get(name, name) for name in selection.columns)]
    lines = []
    for row, records in rows.items():
        for way in selection.score:
            name, _, further = row.partition("-")
            if name in ROWS and further in EVALUATIONS and way.calibration != "fc":
                continue
            found = [evaluation(record, way) for record in records]
            cells = {"calibration": calibration_label(way), "score": way.score, "n": str(len(records))}
            cells["minutes"] = f"{mean(r['train_seconds'] for r in records) / 60:.1f}"
            for name in selection.columns:
                if name in METRICS:
                    cells[name] = spread([values.get(METRICS[name]) for values in found])
            lines.append([line_label(row, way, selection), *(cells[name] for name in selection.columns)])
    return Table(head, lines, notes(rows, selection, dropped_seeds, where))


def calibration_label(way: Way) -> str:
    return way.calibration.replace("fc", "FC")


def line_label(row: str, way: Way, selection: argparse.Namespace) -> str:
    """Returns the row's label, with the way if several are shown and no column tells them apart."""
    name, _, further = row.partition("-")
    if name not in ROWS or further and further not in EVALUATIONS:
        name, further = row, ""
    label = ROWS[name].label if name in ROWS else name
    label += f", {EVALUATIONS[further].label}" if further else ""
    several_scores = len({other.score for other in selection.score}) > 1 and "score" not in selection.columns
    parts = (
        [] if way.calibration == "none" or "calibration" in selection.columns else [calibration_label(way)]
    )
    parts += [way.score] if several_scores else []
    if not parts:
        return label
    owner = ""
    if name == "patt" and several_scores:
        owner = " (ours)" if way.calibration == "probe" else OWNERS.get(way.score, " (ours)")
    return f"{label}, {' / '.join(parts)}{owner}"


def notes(
    rows: dict[str, list[dict]],
    selection: argparse.Namespace,
    dropped_seeds: set[int],
    where: str,
    on_test_data: bool = True,
    every_score: bool = False,
) -> str:
    """Describes what readers must know about the rows: protocol, data, seeds, device, commit, files."""
    records = [record for of_row in rows.values() for record in of_row]
    way = selection.score[0]
    protocols, sets, reduced, stand_in = {}, {}, False, False
    for record in records:
        settings, ds = record["args"], record["args"]["ds"]
        images = sum(settings["class_counts"])
        tail = f"rho {settings['rho']}, " if "rho" in settings else ""
        finished, length = record["results"].get("epoch"), settings["epochs"]
        finished = length if finished is None else finished
        epochs = f"{length} epochs" if finished == length else f"epoch {finished} of {length}"
        size = f"{epochs}, {tail}{images:,} training images"
        protocols[f"{ds}, {settings['model']}, {size}"] = None
        own_sets = {
            row["ood"]: None
            for row in record["results"]["rows"]
            if row["score"] == way.score and calibration_of(row) == way.calibration
        }
        sets |= own_sets
        if ds in PAPER_MODEL:
            reduced |= (settings["model"], finished) != (PAPER_MODEL[ds], PAPER_EPOCHS)
            reduced |= settings.get("rho", PAPER_RHO) != PAPER_RHO or settings.get("val_fraction", 0) > 0
            if ds == "imagenet":
                stand_in |= images != IMAGENET_LT_IMAGES
            else:
                stand_in |= settings["num_outliers"] not in (0, PAPER_OUTLIERS)
                stand_in |= set(own_sets) != set(BENCHMARKS[ds].ood_sets)
    data = f"OOD sets: {', '.join(sets)}" if on_test_data else "no test image or OOD set"
    text = [f"{'; '.join(protocols)}; {data}."]
    if reduced:
        text.append("**Reduced protocol: not comparable with published rows.**")
    if stand_in:
        text.append("**Stand-in outliers and OOD sets, not the authors'.**")
    seeds = sorted({r["seed"] for r in records})
    mean_of = "seed" if len(seeds) == 1 else "mean ± standard deviation over seeds"
    text.append(f"Percent, {mean_of} {', '.join(map(str, seeds))}")
    if dropped_seeds:
        text.append(f"(left out, as not every row has them: {', '.join(map(str, sorted(dropped_seeds)))})")
    scores = {way.score for way in selection.score}
    named = len(scores) == 1 and "score" not in selection.columns and not every_score
    text[-1] += f"; score: {scores.pop()}." if named else "."
    trained, evaluated = ([r[part]["environment"] for r in records] for part in ("args", "results"))
    devices = sorted({f"{e['device']} ({cores(e)})" for e in [*trained, *evaluated]})
    commits, later = ({str(e["commit"]) for e in part} for part in (trained, evaluated))
    commit = f"commit {', '.join(sorted(commits))}"
    if later - commits:
        commit += f", evaluated {'in part ' * bool(later & commits)}at {', '.join(sorted(later - commits))}"
    dates = sorted({r["date"] for r in records})
    span = dates[0] + (f" to {dates[-1]}" if len(dates) > 1 else "")
    text.append(f"{', '.join(devices)}; {span}; {commit}; files: {where}.")
    return " ".join(text)


def published_table(ds: str) -> Table:
    """Tabulates the published averages."""
    data = json.loads((ROOT / "benchmarks" / "published.json").read_text())
    rows = [[r["method"], *(f"{v:.2f}" for v in r[ds]), r["positive"]] for r in data["rows"] if r[ds]]
    head = ["published", "AUROC ↑", "AUPR ↑", "FPR95 ↓", "ACC ↑", "positive class of AUPR and FPR95"]
    return Table(head, rows, data["note"])


def claim_table(name: str) -> Table:
    """Returns the table stored in a benchmark's results file."""
    file = ROOT / "benchmarks" / "results" / f"{name}.json"
    if not file.exists():
        raise InputError(f"there is no results file {file}")
    record = json.loads(file.read_text())
    made = record["environment"]
    note = f"`{record['command']}`; {made['device']}, {cores(made)}, torch {made['torch']}; {made['date']};"
    note += f" commit {made['commit']}; file `benchmarks/results/{name}.json`."
    return Table(record["table"]["head"], record["table"]["rows"], note)


def build(kind: str, argument: str, selection: argparse.Namespace, results: Path) -> Table:
    """Builds the table ``kind`` of a protocol, data set or claim."""
    if kind == "published":
        return published_table(argument)
    if kind == "claim":
        return claim_table(argument)
    if kind == "scores":
        return scores_table(results, argument, selection)
    if kind == "sets":
        return sets_table(results, argument, selection)
    if kind == "defaults":
        return choices_table(results, argument, selection)
    if kind in TABLES:
        return protocol_table(results, kind, argument, selection)
    there = ", ".join((*TABLES, "scores", "sets", "published"))
    raise InputError(f"there is no table {kind}; there are {there} and claim")
