"""Pictures: what is in them."""

import numpy as np
import pytest
from matplotlib.cbook import is_math_text
from matplotlib.text import Text

from utils import plots

SHOTS = {"all": 0.5, "many": 0.75, "medium": 0.5, "few": None}


def record(epoch, **terms):
    return {"epoch": epoch, "train_accuracy": SHOTS} | dict.fromkeys(plots.TERMS, 0.0) | terms


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_terms_that_are_off_are_left_out_and_epochs_are_whole(drawn, tmp_path):
    plots.plot_history([record(1, loss=2.0, tla=2.0), record(2, loss=1.0)], tmp_path / "history.png")
    losses, accuracies = drawn[0].axes
    assert labels(losses) == ["loss", "tla"] and labels(accuracies) == ["all", "many", "medium", "few"]
    assert losses.lines[0].get_ydata().tolist() == [2, 1]
    assert all(float(tick).is_integer() for tick in losses.get_xticks())


def test_the_roc_names_sets_and_aurocs_on_equal_axes(drawn, tmp_path):
    perfect = (np.array([0.0, 1.0]), np.array([2.0, 3.0]))
    mixed = (np.array([0.0, 1.0]), np.array([0.5, 2.0]))
    curves = {"without FC": {"svhn": perfect, "lsun": mixed}}
    plots.plot_roc(curves, tmp_path / "roc.png", "digits, ResNet20, epoch 30")
    (ax,) = drawn[0].axes
    assert labels(ax) == ["svhn, AUROC 100.00 %", "lsun, AUROC 75.00 %", "chance"]
    assert ax.get_title() == "without FC, mean AUROC 87.50 %" and ax.get_aspect() == 1
    assert [text.get_text() for text in drawn[0].texts] == ["digits, ResNet20, epoch 30"]
    chance = ax.lines[-1]
    assert list(chance.get_xdata()) == list(chance.get_ydata()) == [0, 1]


def test_the_histogram_has_the_threshold_that_catches_95_percent(drawn, tmp_path):
    id_scores, ood_scores = np.arange(-100, 100.0), np.arange(0, 1000.0)
    plots.plot_score_histograms({"FC": {"x": (id_scores, ood_scores)}}, tmp_path / "scores.png", "title")
    (ax,) = drawn[0].axes
    (line,) = ax.lines
    assert np.mean(ood_scores >= line.get_xdata()[0]) == pytest.approx(0.95)
    assert line.get_label() == "95 % of OOD, 25.0 % of ID\nare to the right"  # 50 of 200 are at 50 or above
    assert ax.get_title() == "FC"


@pytest.mark.parametrize("name", ["_y", "$a$b_c$", "猫"])
def test_names_are_text(name, drawn, tmp_path, recwarn):
    curves = {name: {name: (np.arange(3.0), np.arange(4.0)), "other": (np.arange(3.0), np.arange(4.0))}}
    plots.plot_roc(curves, tmp_path / "roc.png", name)
    plots.plot_score_histograms(curves, tmp_path / "scores.png", name)
    for figure in drawn:
        assert not any(is_math_text(text.get_text()) for text in figure.findobj(Text))
    shown = [text.replace(r"\$", "$").strip() for text in labels(drawn[0].axes[0])]
    assert shown == [f"{name}, AUROC 62.50 %", "other, AUROC 62.50 %", "chance"]
    assert not recwarn.list
