"""What every test has: one thread; what many share: data and a run."""

import pytest
import torch
from cifar_files import write_data
from command_line import DIGITS, run

import train
from utils import plots

torch.set_num_threads(1)  # the order of sums, and so the last bit, may depend on it


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A digits run of one epoch."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert run(train.main, *DIGITS, "--srp", folder) == 0
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn, in order."""
    made, figure = [], plots.Figure
    monkeypatch.setattr(plots, "Figure", lambda *a, **k: made.append(figure(*a, **k)) or made[-1])
    return made
