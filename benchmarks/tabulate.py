"""Tables of records: which of them share a row, what a row shows, and how tables are printed."""

import argparse
import json
from collections.abc import Sequence
from itertools import chain, compress, product
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from benchmarks.notes import cores, epoch_of, note
from benchmarks.records import ROOT, Way, evaluated_with, load_records, metrics, read_run, require_alike
from benchmarks.rows import EVALUATED, TABLES, label_of
from utils.errors import InputError
from utils.metrics import ACCURACY_COLUMNS, OOD_COLUMNS
from utils.text_files import markdown_table

# A metric -> its column's header.
HEADERS = OOD_COLUMNS | ACCURACY_COLUMNS
for which in ("near", "far"):
    HEADERS |= {f"{which}_{key}": f"{which} {HEADERS[key]}" for key in ("auroc", "fpr95")}
# A column's name in --columns, which is its header without the arrow -> the metric.
METRICS = {header.rpartition(" ")[0]: key for key, header in HEADERS.items()}
OF_SCORES = tuple(name for name, key in METRICS.items() if key not in ACCURACY_COLUMNS)
COLUMNS = ("n", *METRICS, "minutes")
FULL = tuple(name for name in COLUMNS if not name.startswith(("near", "far")))
SAID_ONCE = ("calibration", "score", "metric", "chosen by auto")  # below a table, if all rows have the same
WAYS = (Way("none", "energy"), Way("fc", "energy"))

Records = dict[str, list[dict]]  # row -> its records, one per seed


class Table(NamedTuple):
    """The cells of a table as text, and the note below it."""

    head: list[str]
    rows: list[list[str]]
    note: str = ""

    @property
    def averaged(self) -> bool:
        """Tells whether a cell is a mean over seeds."""
        return any("±" in cell for cell in chain(*self.rows))

    def text(self, padded: bool = True) -> str:
        """Formats the table and its note as Markdown, for documents without padding."""
        return f"{markdown_table(self.head, self.rows, padded)}\n\n{self.note}\n"


def build(kind: str, argument: str, results: Path, chosen: argparse.Namespace) -> Table:
    """Builds the table ``kind`` of a protocol or claim, with the ``chosen`` rows, score(s) and columns."""
    if kind == "claim":
        return claim_table(argument)
    if kind not in (*TABLES, "scores"):
        names = ", ".join((*TABLES, "scores", "claim"))
        raise InputError(f"there is no table {kind}; there are {names}")
    records, dropped = comparable(results / argument, kind if kind in TABLES else "ablation", chosen.rows)
    if kind == "defaults":
        table = choices_table(records, chosen.score)
    elif kind == "scores":
        table = scores_table(labelled(records), chosen.score, chosen.columns or ("AUROC",))
    else:
        table = table_by_way(labelled(records), chosen.score, chosen.columns or FULL)
    every = list(chain.from_iterable(records.values()))
    return annotated(table, note(every, f"`{argument}`", table.averaged, dropped, kind != "defaults"))


def annotated(table: Table, below: str) -> Table:
    """Adds the note ``below``; what all rows are evaluated with is said there instead of in a column."""
    columns = dict(zip(table.head, zip(*table.rows, strict=True), strict=True))
    same = [name for name in SAID_ONCE if len(set(columns.get(name, ()))) == 1]
    shown = [name not in same for name in table.head]
    head, *rows = (list(compress(cells, shown)) for cells in (table.head, *table.rows))
    said = f"Every row: {', '.join(f'{name} {columns[name][0]}' for name in same)}. " if same else ""
    return Table(head, rows, said + below)


def labelled(records: Records) -> Records:
    """Labels the rows of a table: with their precision, too, if rows differ in it."""
    known = {row: of_row[0]["args"].get("precision", "unknown precision") for row, of_row in records.items()}
    differ = len(set(known.values())) > 1
    return {label_of(row) + f", {known[row]}" * differ: of_row for row, of_row in records.items()}


def comparable(folder: Path, table: str, wanted: Sequence[str] | None) -> tuple[Records, set[int]]:
    """Returns the records of a table's rows, and the seeds that were left out: as seeds differ more than
    methods, a table shows those that all its rows have."""
    records = load_records(folder, wanted or ())
    rows = [row for row in wanted or TABLES[table] if row in records]
    further = [f"{row}-{name}" for row in rows for name in EVALUATED.get(table, ())]
    rows += [row for row in further if row in records]
    seeds = [{record["seed"] for record in records[row]} for row in rows] or [set()]
    common = set.intersection(*seeds)
    if not common:
        raise InputError(f"the rows {', '.join(rows)} of {folder} have no seed in common")
    shown = {row: [r for r in records[row] if r["seed"] in common] for row in rows}
    require_alike(list(chain.from_iterable(shown.values())), ("OOD sets", "ood_resize", "tnorm"))
    for of_row in shown.values():  # whose seeds are averaged
        require_alike(of_row)
    return shown, set.union(*seeds) - common


def spread(values: Sequence[float | None]) -> str:
    """Formats mean ± standard deviation over seeds, in percent, from fractions; "-" if one is missing. A
    spread of seeds is far above a hundredth of a percent: one digit."""
    if None in values:
        return "-"
    percent = [100 * value for value in values]
    return f"{mean(percent):.1f} ± {stdev(percent):.1f}" if len(percent) > 1 else f"{percent[0]:.2f}"


def name_of(calibration: str) -> str:
    return calibration.replace("fc", "FC")


def table_by_way(groups: Records, ways: Sequence[Way], columns: Sequence[str]) -> Table:
    """Has a line for each way and group of records, whose label is in the first of them. Further evaluations
    of a row have one for FC alone, which is all that they change."""
    there = {entry["score"] for record in chain(*groups.values()) for entry in record["results"]["mean"]}
    for way in ways:
        if there and way.score not in there:  # without OOD sets there is accuracy alone
            raise InputError(f"no result has --score {way.score}; there are {', '.join(sorted(there))}")
    lines = []
    for label, records in groups.items():
        further = "-" in records[0].get("row", "")
        shown = [way for way in ways if not further or way.calibration == "fc"]
        for way in shown:
            found = [metrics(record, way) for record in records]
            seconds = [record["train_seconds"] for record in records]
            cells = {"calibration": name_of(way.calibration), "score": way.score, "n": str(len(records))}
            cells["minutes"] = "-" if None in seconds else f"{mean(seconds) / 60:.1f}"
            cells |= {name: spread([of.get(key) for of in found]) for name, key in METRICS.items()}
            first = label if way is shown[0] else ""
            lines.append([first, *(cells[name] for name in ("calibration", "score", *columns))])
    headers = {name: HEADERS[key] for name, key in METRICS.items()} | {"minutes": "training, minutes"}
    return Table(["", "calibration", "score", *(headers.get(name, name) for name in columns)], lines)


def scores_table(groups: Records, ways: Sequence[Way], columns: Sequence[str]) -> Table:
    """Has a line for each row, calibration of ``ways`` and OOD metric, with the numbers of every score."""
    if not set(columns) <= set(OF_SCORES):
        raise InputError(f"the table scores has no columns but {', '.join(OF_SCORES)}")
    first = next(iter(groups.values()))[0]
    names = list(dict.fromkeys(entry["score"] for entry in first["results"]["mean"]))
    kinds = list(product(dict.fromkeys(way.calibration for way in ways), columns))
    lines = []
    for label, records in groups.items():
        for calibration, column in kinds:
            cells = [label if (calibration, column) == kinds[0] else "", name_of(calibration)]
            cells.append(HEADERS[METRICS[column]])
            for name in names:
                found = [metrics(record, Way(calibration, name)) for record in records]
                cells.append(spread([of.get(METRICS[column]) for of in found]))
            lines.append(cells)
    return Table(["", "calibration", "metric", *names], lines)


def choices_table(rows: Records, ways: Sequence[Way]) -> Table:
    """Has what ``--calibration auto`` measured on held-out images with the calibrations of ``ways``."""
    lines = []
    for row in [row for row in rows if row.endswith("-auto")]:
        found = [record["results"]["auto"] for record in rows[row]]
        for trials in zip(*(auto["trials"] for auto in found), strict=True):
            name, strength = trials[0]["calibration"], trials[0]["fc_strength"]
            if name not in {way.calibration for way in ways}:
                continue
            aurocs, accuracies = ([trial[key] for trial in trials] for key in ("auroc", "accuracy"))
            sums = [trial["auroc"] + trial["accuracy"] for trial in trials]
            chosen = sum(auto["chosen"] in trials for auto in found)
            label = label_of(row.removesuffix("_held_out-auto"))
            calibration = name_of(name) + ("" if strength is None else f" {strength}")
            cells = [spread(values) for values in (aurocs, accuracies, sums)]
            lines.append([label, calibration, *cells, f"{chosen} of {len(found)}"])
    measured = ["AUROC ↑", "mean class accuracy ↑", "sum ↑"]
    return Table(["on held-out images", "calibration", *measured, "chosen by auto"], lines)


def runs_table(folders: Sequence[Path], chosen: argparse.Namespace) -> Table:
    """Tabulates any run directories and evaluations; those that differ only in the seed share a row."""
    every = [read_run(folder) for folder in dict.fromkeys(folders)]
    groups = []
    for record in every:
        alike = [group for group in groups if settings_of(group[0]) == settings_of(record)]
        others = [group for group in alike if record["seed"] not in [one["seed"] for one in group]]
        if others:
            others[0].append(record)
        else:
            groups.append([record])
    labelled = {}
    for first, *others in groups:
        twins = [settings_of(group[0]) for group in groups if group[0]["run"] == first["run"]]
        mine = settings_of(first).items()
        differ = [f"{name} {value}" for name, value in mine if any(t.get(name) != value for t in twins)]
        label = ", ".join([first["name"], *differ]) + (f" and {len(others)} more" if others else "")
        labelled[label] = [first, *others]
    table = table_by_way(labelled, chosen.score, chosen.columns or FULL)
    return annotated(table, note(every, "the run directories", table.averaged))


def settings_of(record: dict) -> dict:
    """Returns the settings of a training and its evaluation, without those that may differ within a row."""
    trained = {k: v for k, v in record["args"].items() if k not in ("seed", "environment", "num_workers")}
    names = dict.fromkeys(entry["calibration"] for entry in record["results"]["accuracy"])
    calibration = "auto" if "auto" in record["results"] else " ".join(names)
    early = {} if trained.get("patience") else {"epoch": epoch_of(record)}  # the length of such runs differs
    return trained | evaluated_with(record) | {"calibration": calibration} | early


def claim_table(name: str) -> Table:
    """Returns the table stored in a benchmark's results file."""
    file = f"benchmarks/results/{name}.json"
    record = json.loads((ROOT / file).read_text(encoding="utf-8"))
    made = record["environment"]
    text = f"`{record['command']}`; {made['device']}, {cores(made)}, torch {made['torch']}; {made['date']};"
    text += f" commit {made['commit']}; file `{file}`."
    return Table(record["table"]["head"], record["table"]["rows"], text)


def every_number(results: Path) -> list[dict]:
    """Returns a record for each run and calibration, with its accuracies, and one for each of its scores and
    OOD sets, in percent; but none of the runs that are compared on held-out images, never on test images."""
    every = []
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        for record in chain.from_iterable(load_records(folder).values()):
            if record["row"].removesuffix("-auto") in TABLES["defaults"]:
                continue
            found = record["results"]
            numbers = [(entry, ACCURACY_COLUMNS) for entry in found["accuracy"]]
            numbers += [(entry, ("score", "ood", *OOD_COLUMNS)) for entry in found["rows"]]
            for entry, names in numbers:
                strength = found.get("fc_strength") if entry["calibration"] == "fc" else None
                if "auto" in found and strength in (None, 1.0):
                    continue  # the row's own evaluation has the same
                line = {"protocol": folder.name, "row": record["row"], "seed": record["seed"]}
                line |= {"calibration": entry["calibration"], "fc_strength": strength}
                values = {name: entry.get(name) for name in names}
                every.append(
                    line | {k: round(100 * v, 2) if isinstance(v, float) else v for k, v in values.items()}
                )
    return every
