"""Runs that are killed, stopped, crowded out and starved of disk: nothing is lost, and resuming gives the
unbroken run."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import ROOT

from utils.checkpoint import LATEST, load_checkpoint
from utils.run import EXIT_STOPPED

KILLS = 4
# A checkpoint after every step, and a tenth of each class's images: five steps per epoch.
TINY = "--ds digits --gpu cpu --rho 0.1 --val_fraction 0.9 -b 8 --ob 8 --num_ood_samples 32 -e 3".split()
EVERY_STEP = ["--checkpoint_every_minutes", "0.00001"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


class Driver:
    """Sends requests to tests/faults/driver.py."""

    def __init__(self):
        command = [sys.executable, str(Path(__file__).with_name("driver.py"))]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, **pipes)

    def run(self, out, *flags, **request):
        request |= {"argv": [*TINY, *EVERY_STEP, "--srp", str(out), *flags]}
        self.process.stdin.write(json.dumps({"signal": signal.SIGKILL} | request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def driver():
    driver = Driver()
    yield driver
    driver.process.stdin.close()
    driver.process.wait()


@pytest.fixture(scope="module")
def unbroken(driver, tmp_path_factory):
    """(run directory, number of audit events up to the last checkpoint) of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("unbroken")
    answer = driver.run(out)
    assert answer["status"] == 0, answer["output"]
    return out, answer["events"]


def assert_same_run(a, b):
    """Weights, class statistics, optimiser state and history, bit for bit; the log is whole."""
    for folder in (a, b):
        assert len((folder / "log.jsonl").read_text().splitlines()) == 3
        assert len((folder / "log.csv").read_text().splitlines()) == 4
    a, b = load_checkpoint(a / LATEST), load_checkpoint(b / LATEST)
    for part in ("model", "criterion"):
        assert a[part].keys() == b[part].keys()
        for key, value in a[part].items():
            assert torch.equal(value, b[part][key]), key
    for one, two in zip(a["optimizer"]["state"].values(), b["optimizer"]["state"].values(), strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)
    without_time = [[{k: v for k, v in r.items() if k != "seconds"} for r in x["history"]] for x in (a, b)]
    assert without_time[0] == without_time[1]


def test_kill_9_at_random_moments(driver, unbroken, tmp_path):
    reference, events = unbroken
    moments = random.Random(0)
    died_with_checkpoint = 0
    for i in range(KILLS):
        out = tmp_path / str(i)
        killed = driver.run(out, kill_at=moments.randrange(events * 9 // 10))
        assert killed["status"] == -signal.SIGKILL
        died_with_checkpoint += (out / LATEST).exists()
        finished = driver.run(out, "--resume")
        assert finished["status"] == 0, finished["output"]
        assert_same_run(out, reference)
        assert (out / "args.json").exists() and not list(out.glob("*.tmp"))
        shutil.rmtree(out)
    assert died_with_checkpoint >= KILLS // 4  # else the moments do not test what they are for


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_leaves_a_checkpoint(number, driver, unbroken, tmp_path):
    reference, events = unbroken
    answer = driver.run(tmp_path, kill_at=events // 2, signal=number)
    assert answer["status"] == EXIT_STOPPED and "--resume" in answer["output"], answer["output"]
    assert driver.run(tmp_path, "--resume")["status"] == 0
    assert_same_run(tmp_path, reference)


def test_a_second_signal_ends_at_once():
    code = "import os, signal\nfrom utils.run import stop_request\nwith stop_request() as stop:\n"
    code += (
        "    os.kill(os.getpid(), signal.SIGTERM)\n    assert stop.is_set()\n    print('first', flush=True)\n"
    )
    code += "    os.kill(os.getpid(), signal.SIGTERM)\n    print('second', flush=True)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM and done.stdout == "first\n"


def test_a_second_run_is_refused_and_the_lock_of_a_dead_one_is_not(driver, unbroken, tmp_path):
    """A child forked by the first, as a reading worker is, does not keep the lock either."""
    holder = "import os, sys, time\nfrom pathlib import Path\nfrom utils.run import taken_folder\n"
    holder += "with taken_folder(Path(sys.argv[1]), None):\n    child = os.fork()\n"
    holder += "    print(child, flush=True) if child else None\n    time.sleep(600)\n"
    command = [sys.executable, "-c", holder, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    try:
        refused = driver.run(tmp_path)
        assert refused["status"] == 2 and "another run" in refused["output"]
        assert not (tmp_path / LATEST).exists()
        process.kill()
        process.wait()
        assert driver.run(tmp_path)["status"] == 0
    finally:
        os.kill(child, signal.SIGKILL)
    assert_same_run(tmp_path, unbroken[0])


def test_a_full_disk_is_warned_about_once_and_damages_nothing(driver, unbroken, tmp_path):
    """The limit on the size of files gives the same error from the same call."""
    empty = driver.run(tmp_path / "new", file_limit=200_000)
    assert empty["status"] == 2, empty["output"]  # for there is no trained network
    assert empty["output"].count("latest.pth not written: ") == 1 and "epoch 3/3" in empty["output"]
    assert not [f.name for f in (tmp_path / "new").iterdir() if f.suffix in (".tmp", ".pth")]

    out = tmp_path / "begun"
    assert driver.run(out, kill_at=unbroken[1] // 2)["status"] == -signal.SIGKILL
    before = {f.name: f.read_bytes() for f in out.glob("*.pth")}
    answer = driver.run(out, "--resume", file_limit=100_000)
    assert answer["status"] == 2 and answer["output"].count("latest.pth not written: ") == 1
    assert before == {f.name: f.read_bytes() for f in out.glob("*.pth")}
    assert driver.run(out, "--resume")["status"] == 0
    assert_same_run(out, unbroken[0])
