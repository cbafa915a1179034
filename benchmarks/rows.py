"""The rows of the results tables: benchmarks.reproduce runs them, benchmarks.table shows them."""

from typing import NamedTuple


class Row(NamedTuple):
    """A row's label, and the flags of its training (or evaluation) on top of the defaults."""

    label: str
    flags: str


ROWS = {
    "patt": Row("PATT", ""),
    "head": Row("PATT + head (ours)", "--head"),
    "extended": Row("PATT, `--recipe extended` (ours)", "--recipe extended"),
    "strong": Row("PATT, strong outliers (ours)", "--strong_outliers"),
    "head_strong": Row("PATT + head, strong outliers (ours)", "--head --strong_outliers"),
    "ce": Row("plain cross-entropy", "--isac False --tla False --oe False"),
    "oe": Row("cross-entropy + OE", "--isac False --tla False"),
    "la": Row("logit adjustment alone", "--isac False --oe False"),
    "no_isac": Row("PATT without ISAC", "--isac False"),
    "no_isac_strong": Row("PATT without ISAC, strong outliers (ours)", "--isac False --strong_outliers"),
    "no_tla": Row("PATT without TLA", "--tla False"),
    "no_oe": Row("PATT without OE", "--oe False"),
    "lambda_commands": Row("PATT, Lambda1 0.5, Lambda2 0.1", "--Lambda1 0.5 --Lambda2 0.1"),
    "released": Row("PATT, `--recipe released`", "--recipe released"),
    "released_embeddings": Row("PATT, embeddings not normalised", "--depart embeddings"),
    "released_statistics": Row("PATT, running statistics", "--depart statistics"),
    "released_normalization": Row("PATT, outliers with ImageNet's mean and std", "--depart normalization"),
    "released_crop": Row("PATT, view 1's crop not padded", "--depart crop"),
    "t0.7": Row("PATT, T 0.7", "--tem_scale 0.7"),
    "t1.0": Row("PATT, T 1.0", "--tem_scale 1.0"),
    "head_0.1_1": Row("PATT + head, Lambda1 0.1, Lambda2 1", "--head --Lambda1 0.1 --Lambda2 1"),
    "head_0.5_1": Row("PATT + head, Lambda1 0.5, Lambda2 1", "--head --Lambda1 0.5 --Lambda2 1"),
    "head_0.5_2": Row("PATT + head, Lambda1 0.5, Lambda2 2", "--head --Lambda1 0.5 --Lambda2 2"),
}
DEPARTURES = tuple(row for row in ROWS if row.startswith("released"))
# Settings whose defaults are compared on held-out training images, never on test images.
COMPARED = ("patt", "lambda_commands", "released_embeddings", "released_statistics", "t0.7", "t1.0", "head")
COMPARED += ("strong", *(row for row in ROWS if row.startswith("head_")))
for row in COMPARED:
    label, settings = ROWS[row]
    ROWS[f"{row}_held_out"] = Row(f"{label}, a tenth held out", f"{settings} --val_fraction 0.1")
# Further evaluations of a row's runs, with flags on top of the first one's, named ROW-EVALUATION.
EVALUATIONS = {
    "leak": Row("FC calibrated on test labels (leak)", "--calibration_split test"),
    "auto": Row("the choice on held-out images", "--calibration auto"),
}
EVALUATED = {
    "calibration-leak": ("leak",),
    "defaults": ("auto",),
}

# train_imagenet.py always has a head, has no --strong_outliers, and is as the paper in these points.
NOT_ON_IMAGENET = {row for row in ROWS if {"--head", "--strong_outliers"} & set(ROWS[row].flags.split())}
NOT_ON_IMAGENET |= {"extended", "released_normalization", "released_crop"}

BENCHMARK_ROWS = ("patt", "head", "extended", "lambda_commands", "released", "ce", "oe", "la")
TABLES = {
    "cifar10": BENCHMARK_ROWS,
    "cifar100": BENCHMARK_ROWS,
    "digits": ("patt", "ce", "oe"),
    "imagenet": ("patt", "ce", "oe"),
    "ablation": ("patt", "head", "extended", "strong", "no_isac", "no_isac_strong")
    + ("no_tla", "no_oe", "ce", "oe", "la"),
    "departures": ("patt", *DEPARTURES),
    "calibration-leak": ("patt",),
    "defaults": tuple(f"{row}_held_out" for row in COMPARED),
}


def label_of(row: str) -> str:
    """Returns the label of a result file's row, ROW or ROW-EVALUATION."""
    name, _, evaluation = row.partition("-")
    return ", ".join(row.label for row in (ROWS[name], EVALUATIONS.get(evaluation)) if row)
