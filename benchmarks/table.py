"""Turns result files into the tables of README.md and docs/, between markers, and into LaTeX.

    python -m benchmarks.table                 rewrites the tables of the documents
    python -m benchmarks.table --check         fails where a document and the result files differ
    python -m benchmarks.table --latex ablation digits_default

A marker is a line ``<!-- table: NAME ARGUMENTS -->`` and ends at ``<!-- end -->``. NAME is a table of
benchmarks.reproduce with the protocol (a folder of benchmarks/results/runs), ``published`` with a data set,
or ``claim`` with a file of benchmarks/results.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from statistics import mean, stdev

from benchmarks.reproduce import RESULTS, ROOT, TABLES
from datasets.registry import DEFAULT_OOD_SETS
from utils.errors import InputError, exit_cleanly
from utils.report import HEADERS
from utils.run.runlog import write_text

DOCUMENTS = ("README.md", "docs/results.md", "docs/departures.md")
MARKER = re.compile(r"(<!-- table: (?P<name>[^\n]*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
PAPER_EPOCHS, PAPER_MODEL, PAPER_OUTLIERS = (
    100,
    {"cifar10": "ResNet18", "cifar100": "ResNet18", "imagenet": "ResNet50"},
    300_000,
)
IMAGENET_LT_IMAGES = 115_846
NAMES = {
    "patt": "PATT",
    "patt-leak": "PATT, FC calibrated on test labels (leak)",
    "ce": "plain cross-entropy",
    "oe": "cross-entropy + OE",
    "la": "logit adjustment alone",
    "no_isac": "PATT without ISAC",
    "no_tla": "PATT without TLA",
    "no_oe": "PATT without OE",
    "lambda_commands": "PATT, Lambda1 0.5, Lambda2 0.1",
    "released": "PATT, `--recipe released`",
    "released_embeddings": "PATT, embeddings not normalised",
    "released_statistics": "PATT, running statistics",
    "released_normalization": "PATT, outliers with ImageNet's mean and std",
    "released_crop": "PATT, view 1's crop not padded",
}
METRICS = ("auroc", "aupr_out", "aupr_in", "fpr95", "fpr95_id")
SHOTS = {"ACC ↑": "all", "many ↑": "many", "medium ↑": "medium", "few ↑": "few"}


def load_records(results, group):
    """The run files of a protocol: dict of row to a list of records, by seed."""
    files = sorted((results / group).glob("*-seed*.json"))
    if not files:
        raise InputError(f"there are no result files in {results / group}")
    records = {}
    for file in files:
        record = json.loads(file.read_text())
        records.setdefault(record["row"], []).append(record)
    return records


def spread(values):
    """Mean ± standard deviation over the seeds, of fractions, in percent."""
    if any(v is None for v in values):
        return "-"
    values = [100 * v for v in values]
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def cores(environment):
    """How many cores a result was made on, as text."""
    return f"{environment['cpu_cores']} core{'' if environment['cpu_cores'] == 1 else 's'}"


def runs_table(results, table, group, score="energy"):
    """(head, rows, notes) of one table of benchmarks.reproduce over one protocol's result files.

    A table takes the seeds that all of its rows have: seeds differ by more than methods do.
    """
    records = load_records(results, group)
    rows = [row for row in TABLES[table] if row in records]
    rows += ["patt-leak"] if table == "calibration-leak" and "patt-leak" in records else []
    seeds = set.intersection(*({r["seed"] for r in records[row]} for row in rows))
    if not seeds:
        raise InputError(f"the rows {', '.join(rows)} of {results / group} have no seed in common")
    records = {row: [r for r in records[row] if r["seed"] in seeds] for row in rows}
    head, lines = ["", "FC", "n", *(HEADERS[m] for m in METRICS), *SHOTS, "minutes"], []
    for row in rows:
        for fc in (False, True):
            if row.endswith("-leak") and not fc:
                continue
            means = [
                next(m for m in r["results"]["mean"] if m["fc"] == fc and m["score"] == score)
                for r in records[row]
            ]
            shots = [next(a for a in r["results"]["accuracy"] if a["fc"] == fc) for r in records[row]]
            line = [NAMES[row], "yes" if fc else "no", str(len(means))]
            line += [spread([m[key] for m in means]) for key in METRICS]
            line += [spread([a[key] for a in shots]) for key in SHOTS.values()]
            minutes = [r["train_seconds"] / 60 for r in records[row]]
            lines.append([*line, f"{mean(minutes):.1f}"])
    shown = [r for row in rows for r in records[row]]
    return head, lines, notes(shown, group, score)


def notes(records, group, score):
    """What a reader has to know about the rows: protocol, data, device, commit, where the files are."""
    settings = records[0]["args"]
    ds, model = settings["ds"], settings["model"]
    images = sum(settings["class_counts"])
    tail = f"rho {settings['rho']}, " if "rho" in settings else ""
    text = [
        f"{ds}, {model}, {settings['epochs']} epochs, {tail}{images:,} training images; score: "
        f"{score}; mean over "
    ]
    sets = [row["ood"] for row in records[0]["results"]["rows"] if row["score"] == score and not row["fc"]]
    text[0] += f"{len(sets)} OOD sets ({', '.join(sets)})."
    if ds in PAPER_MODEL:
        if (model, settings["epochs"]) != (PAPER_MODEL[ds], PAPER_EPOCHS):
            text.append("**Reduced protocol: not comparable with published rows.**")
        outliers = {r["args"]["num_outliers"] for r in records} - {0}
        if ds == "imagenet":
            authors = images == IMAGENET_LT_IMAGES
        else:
            authors = outliers == {PAPER_OUTLIERS} and set(sets) == set(DEFAULT_OOD_SETS[ds])
        if not authors:
            text.append("**Stand-in outliers and OOD sets, not the authors'.**")
    seeds = ", ".join(map(str, sorted({r["seed"] for r in records})))
    text.append(f"Percent, mean ± standard deviation over n seeds ({seeds}); OOD is the positive class;")
    text.append("minutes: training, wall time.")
    devices = sorted(
        {f"{r['args']['environment']['device']} ({cores(r['args']['environment'])})" for r in records}
    )
    commits = sorted({str(r["args"]["environment"]["commit"]) for r in records})
    dates = sorted({r["date"] for r in records})
    text.append(
        f"{', '.join(devices)}; {dates[0]}{' to ' + dates[-1] if len(dates) > 1 else ''}; commit "
        f"{', '.join(commits)};"
    )
    text.append(f"files and commands: `benchmarks/results/runs/{group}/`.")
    return " ".join(text)


def published_table(ds):
    """(head, rows, notes) of the published averages."""
    data = json.loads((ROOT / "benchmarks" / "published.json").read_text())
    rows = [
        [r["method"], *(f"{v:.2f}" for v in r[ds]), "ID?" if r["id_positive"] else "OOD"]
        for r in data["rows"]
        if r[ds]
    ]
    head = ["published", "AUROC ↑", "AUPR ↑", "FPR95 ↓", "ACC ↑", "positive class of AUPR and FPR95"]
    return head, rows, data["note"]


def claim_table(name):
    """(head, rows, notes) of a benchmark's results file, which holds its own ``table`` beside the numbers."""
    file = ROOT / "benchmarks" / "results" / f"{name}.json"
    if not file.exists():
        raise InputError(f"there is no results file {file}")
    record = json.loads(file.read_text())
    made = record["environment"]
    note = f"`{record['command']}`; {made['device']}, {cores(made)}, torch {made['torch']}; {made['date']};"
    note += f" commit {made['commit']}; file `benchmarks/results/{name}.json`."
    return record["table"]["head"], record["table"]["rows"], note


def build(name, results):
    """The (head, rows, notes) that a marker's text asks for."""
    kind, *arguments = name.split()
    if kind == "published" and len(arguments) == 1:
        return published_table(*arguments)
    if kind == "claim" and len(arguments) == 1:
        return claim_table(*arguments)
    if kind in TABLES and len(arguments) == 1:
        return runs_table(results, kind, *arguments)
    raise InputError(f"there is no table {name!r}")


def markdown(head, rows, note):
    lines = [
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
        *(f"| {' | '.join(map(str, row))} |" for row in rows),
    ]
    return "\n".join(lines) + f"\n\n{note}\n"


def latex(head, rows, note):
    def clean(cell):
        cell = (
            str(cell)
            .replace("↑", r"$\uparrow$")
            .replace("↓", r"$\downarrow$")
            .replace("±", r"$\pm$")
            .replace("`", "")
        )
        return re.sub(r"([%&#_])", r"\\\1", cell)

    body = "\n".join(" & ".join(map(clean, row)) + r" \\" for row in rows)
    columns = "l" * 2 + "r" * (len(head) - 2)
    return "\n".join(
        [
            f"% {note}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(map(clean, head)) + r" \\",
            r"\midrule",
            body,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def regenerate(text, results=RESULTS):
    """A document with every table between markers made anew."""
    return MARKER.sub(lambda m: m.group(1) + markdown(*build(m.group("name"), results)) + m.group(4), text)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail where documents and files differ"
    )
    parser.add_argument(
        "--latex", nargs="+", metavar="WORD", help="print one table, named as in a marker, as LaTeX"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    if args.latex:
        print(latex(*build(" ".join(args.latex), args.results)))
        return
    stale = []
    for name in DOCUMENTS:
        file = ROOT / name
        text = file.read_text(encoding="utf-8")
        new = regenerate(text, args.results)
        if new != text and args.check:
            stale.append(name)
        elif new != text:
            write_text(file, new)
            print(f"rewrote {name}")
    if stale:
        raise InputError(f"{', '.join(stale)} and the result files differ; run python -m benchmarks.table")
    print(f"{len(DOCUMENTS)} documents agree with the result files", file=sys.stderr)


if __name__ == "__main__":
    exit_cleanly(main)
