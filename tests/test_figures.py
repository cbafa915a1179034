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


@pytest.mark.parametrize("kind", ["classes", "aurocs"])
def test_rows_are_compared(kind, tmp_path, drawn):
    for row in ("patt", "ce"):
        write_record(tmp_path, row, 0, 0.9)
    figures.main([kind, "digits_default", "patt", "ce", "--results", str(tmp_path), "--out", f"{tmp_path}/"])
    names = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert (tmp_path / f"{kind}.png").is_file() and {"PATT", "plain cross-entropy"} <= set(names)
    with pytest.raises(InputError, match="no row oe"):
        figures.main([kind, "digits_default", "oe", "--results", str(tmp_path)])
