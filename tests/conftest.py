"""What every test has: one thread, a place to note how much was tried; what many share: data and a run."""

from collections import Counter

import pytest
import torch
from cifar_files import write_data
from command_line import DIGITS, run

import train


@pytest.fixture(autouse=True)
def one_thread():
    """The order of sums, and so the last bit, may depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def record_count(request):
    """``record_count(what, number)`` adds to the counts that the summary prints."""
    counts = Counter()

    def record(what, number=1):
        counts[what] += number

    yield record
    request.node.user_properties += counts.items()  # travels with the report if tests run in processes


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A digits run of one epoch."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert run(train.main, *DIGITS, "--srp", folder) == 0
    return folder


def pytest_terminal_summary(terminalreporter):
    counts = Counter()
    for report in sum(terminalreporter.stats.values(), []):
        if getattr(report, "when", None) == "teardown":
            counts.update(dict(report.user_properties))
    for what, number in counts.items():
        terminalreporter.write_line(f"{number:,} {what}")
