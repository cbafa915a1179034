"""What every test has: one thread, and a place to note how much was tried, which is printed at the end."""

from collections import Counter

import pytest
import torch

COUNTS = Counter()


@pytest.fixture(autouse=True)
def one_thread():
    """The order of sums, and so the last bit, may depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def record_count():
    """``record_count(what, number)`` adds to the counts that the summary prints."""

    def record(what, number=1):
        COUNTS[what] += number

    return record


def pytest_terminal_summary(terminalreporter):
    for what, number in COUNTS.items():
        terminalreporter.write_line(f"{number:,} {what}")
