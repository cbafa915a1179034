"""Figures from result files: their numbers and their places."""

import pytest
from result_files import write_record

from benchmarks import figures
from utils.errors import InputError


def lines_of(ax):
    """Label -> the points of its line."""
    return {bar.get_label(): bar.lines[0].get_xydata().round(4).tolist() for bar in ax.containers}


def test_epoch_curves_show_kept_checkpoints_and_the_last_one(tmp_path, drawn):
    for row, start in (("patt", 0.5), ("ce", 0.4)):
        for seed in (0, 1):
            for epoch, name in ((20, f"{row}-epoch20"), (100, row)):
                auroc = start + epoch / 1000 + 0.02 * seed
                write_record(tmp_path, name, seed, auroc, "e100", {"epochs": 100}, epoch=epoch)
    write_record(tmp_path, "patt-leak", 0, 0.1, "e100", {"epochs": 100}, epoch=40)
    figures.main(["epochs", "e100", "patt", "ce", "--results", str(tmp_path), "--out", f"{tmp_path}/my_"])
    assert (tmp_path / "my_epochs.png").is_file()
    aurocs, accuracies = map(lines_of, drawn[0].axes)
    assert aurocs == {"PATT": [[20, 53], [100, 61]], "plain cross-entropy": [[20, 43], [100, 51]]}
    assert accuracies["PATT"] == [[20, 75], [100, 75]]


def test_rows_are_compared_class_by_class(tmp_path, drawn):
    for row in ("patt", "ce"):
        write_record(tmp_path, row, 0, 0.9, args={"class_counts": [3, 9]})
    where = ["--results", str(tmp_path), "--out", f"{tmp_path}/"]
    figures.main(["classes", "digits_default", "patt", "ce", *where])
    (ax,) = drawn[0].axes
    assert [line.get_label() for line in ax.lines] == ["PATT, with FC", "PATT", "plain cross-entropy"]
    assert [line.get_ydata().round(4).tolist() for line in ax.lines] == [[60, 90]] * 3
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["9", "3"]
    with pytest.raises(InputError, match="no row oe"):
        figures.main(["classes", "digits_default", "oe", *where])
