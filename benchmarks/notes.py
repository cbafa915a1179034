"""The note below a table: what readers must know of its protocol, data, seeds, device, commit and files."""

from collections.abc import Iterable

from datasets.images import kept_outliers
from datasets.registry import BENCHMARKS

PAPER_MODEL = {"cifar10": "ResNet18", "cifar100": "ResNet18", "imagenet": "ResNet50"}
PAPER_EPOCHS, PAPER_RHO = 100, 0.01
PAPER_SIZE = 224  # of ImageNet's images
PAPER_OUTLIERS = 300_000
IMAGENET_LT_IMAGES = 115_846


def note(
    records: list[dict],
    files: str,
    averaged: bool,
    dropped_seeds: Iterable[int] = (),
    on_test_data: bool = True,
) -> str:
    sets = dict.fromkeys(row["ood"] for record in records for row in record["results"]["rows"])
    data = f"OOD sets: {', '.join(sets)}" if on_test_data else "no test image or OOD set"
    text = [f"{'; '.join(dict.fromkeys(map(protocol, records)))}; {data}."]
    unlike = ["reduced protocol"] if any(map(is_reduced, records)) else []
    unlike += ["stand-in data"] if any(map(has_stand_ins, records)) else []
    if unlike:
        text.append(f"**Not comparable with published rows: {', '.join(unlike)}.**")
    seeds = unique(record["seed"] for record in records)
    over = "mean ± standard deviation over " if averaged else ""
    percent = f"Percent, {over}seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"
    if dropped_seeds:
        percent += f" ({', '.join(unique(dropped_seeds))} not in every row)"
    return " ".join([*text, f"{percent}. {origin(records)}; files: {files}."])


def protocol(record: dict) -> str:
    settings, length, finished = record["args"], record["args"]["epochs"], epoch_of(record)
    spent = f"epoch {finished} of {length or 'an unknown number'}"
    if finished == length:
        spent = f"{length or 'an unknown number of'} epochs"
    tail = f"rho {settings['rho']}, " if "rho" in settings else ""
    images = sum(settings["class_counts"])
    return f"{settings['ds']}, {settings['model']}, {spent}, {tail}{images:,} training images"


def epoch_of(record: dict) -> int | None:
    """Returns the epoch after which a run was evaluated, None if the checkpoint does not say."""
    finished = record["results"].get("epoch")
    return record["args"]["epochs"] if finished is None else finished


def is_reduced(record: dict) -> bool:
    """Tells whether a run is known to be smaller than the paper's, which has none on the digits."""
    settings = record["args"]
    paper = (PAPER_MODEL.get(settings["ds"]), PAPER_EPOCHS, PAPER_RHO, PAPER_SIZE)
    epochs = epoch_of(record) if settings["epochs"] else PAPER_EPOCHS
    mine = (settings["model"], epochs, settings.get("rho", PAPER_RHO), settings.get("image_size", PAPER_SIZE))
    return settings["ds"] in PAPER_MODEL and (mine != paper or settings.get("val_fraction", 0) > 0)


def has_stand_ins(record: dict) -> bool:
    """Tells whether training images, outliers or OOD sets are not the paper's."""
    settings = record["args"]
    if settings["ds"] == "imagenet":
        return sum(settings["class_counts"]) != IMAGENET_LT_IMAGES
    if settings["ds"] not in PAPER_MODEL:
        return False
    used = {settings.get("num_outliers", 0), record["results"].get("num_ood_samples", 0)}
    papers = {0, kept_outliers(PAPER_OUTLIERS, settings.get("val_fraction", 0))}
    ood_sets = {row["ood"] for row in record["results"]["rows"]}
    return not used <= papers or ood_sets != set(BENCHMARKS[settings["ds"]].ood_sets)


def origin(records: list[dict]) -> str:
    trained, evaluated = ([record[part]["environment"] for record in records] for part in ("args", "results"))
    devices = unique(f"{made['device']} ({cores(made)})" for made in trained + evaluated)
    commits, later = (unique(made["commit"] for made in part) for part in (trained, evaluated))
    commit = f"commit {', '.join(commits)}"
    commit += f", evaluated at {', '.join(later)}" if later != commits else ""
    dates = unique(record["date"] for record in records)
    return f"{', '.join(devices)}; {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}; {commit}"


def cores(environment: dict) -> str:
    return f"{environment['cpu_cores']} core{'' if environment['cpu_cores'] == 1 else 's'}"


def unique(values: Iterable) -> list[str]:
    return [str(value) for value in sorted(set(values), key=lambda value: (value is None, value))]
