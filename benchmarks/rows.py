"""The rows of the results tables: benchmarks.reproduce makes their runs, benchmarks.table shows them."""

from typing import NamedTuple


class Row(NamedTuple):
    """What a row is called, and the flags of its training on top of the data set's defaults."""

    label: str
    flags: str


ROWS = {
    "patt": Row("PATT", ""),
    "ce": Row("plain cross-entropy", "--isac False --tla False --oe False"),
    "oe": Row("cross-entropy + OE", "--isac False --tla False"),
    "la": Row("logit adjustment alone", "--isac False --oe False"),
    "no_isac": Row("PATT without ISAC", "--isac False"),
    "no_tla": Row("PATT without TLA", "--tla False"),
    "no_oe": Row("PATT without OE", "--oe False"),
    "lambda_commands": Row("PATT, Lambda1 0.5, Lambda2 0.1", "--Lambda1 0.5 --Lambda2 0.1"),
    "released": Row("PATT, `--recipe released`", "--recipe released"),
    "released_embeddings": Row("PATT, embeddings not normalised", "--depart embeddings"),
    "released_statistics": Row("PATT, running statistics", "--depart statistics"),
    "released_normalization": Row("PATT, outliers with ImageNet's mean and std", "--depart normalization"),
    "released_crop": Row("PATT, view 1's crop not padded", "--depart crop"),
}
LEAK = "-leak"  # ends the name of a result whose calibration read labelled test images
LEAK_LABEL = "FC calibrated on test labels (leak)"

BENCHMARK_ROWS = ("patt", "lambda_commands", "released", "ce", "oe", "la")
TABLES = {
    "cifar10": BENCHMARK_ROWS,
    "cifar100": BENCHMARK_ROWS,
    "digits": ("patt", "ce", "oe"),
    "imagenet": ("patt", "ce", "oe"),
    "ablation": ("patt", "no_isac", "no_tla", "no_oe", "ce", "oe", "la"),
    "departures": (
        "patt",
        "released",
        *(f"released_{p}" for p in ("embeddings", "statistics", "normalization", "crop")),
    ),
    "lambda": ("patt", "lambda_commands"),
    "calibration-leak": ("patt",),
}
