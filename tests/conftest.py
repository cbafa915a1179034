"""What every test has."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """The order of sums, and so the last bit, may depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
