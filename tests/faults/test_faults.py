"""Runs that are killed, stopped, crowded out and starved of disk: nothing is lost, and resuming gives the
unbroken run."""

import errno
import fcntl
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

from utils.errors import InputError
from utils.run.checkpoint import LATEST, load_checkpoint, save_checkpoint
from utils.run.directory import Attempts, RunDirectory
from utils.run.signals import EXIT_STOPPED

KILLS = 12
# A checkpoint after every step, and a tenth of each class's images: five steps per epoch.
TINY = "--ds digits --gpu cpu --rho 0.1 --val_fraction 0.9 -b 8 --ob 8 --num_ood_samples 32 -e 3".split()
EVERY_STEP = ["--checkpoint_every_minutes", "0.00001"]


class Driver:
    """Sends requests to tests/faults/driver.py."""

    def __init__(self):
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [sys.executable, str(Path(__file__).with_name("driver.py"))]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen(command, env=environment, cwd=ROOT, **pipes)

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
    """(run directory, number of audit events) of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("unbroken")
    answer = driver.run(out)
    assert answer["status"] == 0, answer["output"]
    return out, answer["events"]


def assert_same_run(a, b):
    """Weights, class statistics, optimiser state and history, bit for bit."""
    a, b = load_checkpoint(a / LATEST), load_checkpoint(b / LATEST)
    for part in ("model", "criterion"):
        assert a[part].keys() == b[part].keys()
        for key, value in a[part].items():
            assert torch.equal(value, b[part][key]), key
    for one, two in zip(a["optimizer"]["state"].values(), b["optimizer"]["state"].values(), strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)
    without_time = [[{k: v for k, v in r.items() if k != "seconds"} for r in x["history"]] for x in (a, b)]
    assert without_time[0] == without_time[1]


def test_kill_9_at_random_moments(driver, unbroken, tmp_path, record_count):
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
        assert {f.name for f in out.iterdir()} >= {"args.json", "log.jsonl", LATEST}
        assert len((out / "log.jsonl").read_text().splitlines()) == 3
        shutil.rmtree(out)
    assert died_with_checkpoint >= KILLS // 4  # else the moments do not test what they are for
    record_count("runs killed with SIGKILL and resumed", KILLS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_leaves_a_checkpoint(number, driver, unbroken, tmp_path):
    reference, events = unbroken
    answer = driver.run(tmp_path, kill_at=events // 2, signal=number)
    assert answer["status"] == EXIT_STOPPED and "--resume continues" in answer["output"], answer["output"]
    assert driver.run(tmp_path, "--resume")["status"] == 0
    assert_same_run(tmp_path, reference)


def test_a_second_signal_ends_at_once():
    code = "import os, signal\nfrom utils.run.signals import StopRequest\nwith StopRequest() as stop:\n"
    code += (
        "    os.kill(os.getpid(), signal.SIGTERM)\n    assert stop.requested\n    "
        "print('first', flush=True)\n"
    )
    code += "    os.kill(os.getpid(), signal.SIGTERM)\n    print('second', flush=True)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM and done.stdout == "first\n"


def test_two_runs_at_once_and_the_lock_of_a_dead_one(driver, unbroken, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    holder = "import sys, time\nfrom utils.run.directory import RunDirectory\n"
    holder += "kept = RunDirectory(sys.argv[1])\nprint('locked', flush=True)\ntime.sleep(600)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "locked\n"
    refused = driver.run(tmp_path)
    assert refused["status"] == 2 and f"process {process.pid}" in refused["output"]
    assert not (tmp_path / LATEST).exists()
    process.kill()
    process.wait()
    assert driver.run(tmp_path)["status"] == 0
    assert_same_run(tmp_path, unbroken[0])


@pytest.fixture
def tight_disk(tmp_path):
    """A file system of a few hundred kB where the machine lets one be mounted, else None."""
    folder = tmp_path / "tight"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)], capture_output=True
    )
    yield folder if mounted.returncode == 0 else None
    if mounted.returncode == 0:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_does_not_stop_training(driver, tmp_path, tight_disk):
    if tight_disk is None:  # the same error from the same call, by a limit on the size of files
        out, limit = tmp_path / "out", 200_000
    else:
        out, limit = tight_disk, None
    answer = driver.run(out, file_limit=limit)
    assert answer["status"] == 2, answer["output"]  # for there is no trained network
    assert answer["output"].count("the checkpoint not written: ") == 1
    assert "epoch 3/3" in answer["output"] and "older than the run's end" in answer["output"]
    assert not [f.name for f in out.iterdir() if f.suffix == ".tmp"]
    assert not (out / LATEST).exists()


def test_a_log_on_a_full_disk_does_not_stop_training(driver, unbroken, tmp_path):
    answer = driver.run(tmp_path, stdout="/dev/full")
    assert answer["status"] == 0, answer["output"]
    assert_same_run(tmp_path, unbroken[0])


def test_an_evaluation_on_a_terminal_that_is_gone_writes_its_results(unbroken, tmp_path):
    command = [sys.executable, "test.py", "--gpu", "cpu", "--num_ood_samples", "50"]
    command += ["--ckpt_path", str(unbroken[0]), "--srp", str(tmp_path)]
    with open("/dev/full", "w") as gone:
        ended = subprocess.run(command, cwd=ROOT, stdout=gone, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "results.json").exists() and (tmp_path / "detector.pth").exists()


def test_a_lock_holds_on_a_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        first = RunDirectory(tmp_path)
    with pytest.raises(InputError, match="another run"):
        RunDirectory(tmp_path)
    first.close()
    RunDirectory(tmp_path).close()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks_is_warned_about(number, tmp_path, monkeypatch, capsys):
    def no_lock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_lock)
    first = RunDirectory(tmp_path)
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {tmp_path} cannot be locked ({os.strerror(number)})")
    assert warning.count("\n") == 1
    first.close()


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES])
def test_a_lock_that_is_held_is_no_missing_lock(number, tmp_path, monkeypatch):
    def held(*_):
        raise OSError(number, os.strerror(number))

    RunDirectory(tmp_path).close()
    monkeypatch.setattr(fcntl, "flock", held)
    with pytest.raises(InputError, match=f"another run .process {os.getpid()} .* is using {tmp_path}"):
        RunDirectory(tmp_path)


def test_windows_is_refused_with_one_sentence():
    program = "import sys; sys.modules['fcntl'] = None; import train"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 2 and ran.stdout == ""
    assert ran.stderr.startswith("error: Windows is not supported") and ran.stderr.count("\n") == 1


def test_the_same_seed_gives_the_same_run(driver, unbroken, tmp_path):
    assert driver.run(tmp_path)["status"] == 0
    assert_same_run(tmp_path, unbroken[0])


def test_two_processes_evaluate_every_image_as_one_does(unbroken, tmp_path):
    """Batches of 7 give the two processes different numbers of batches."""
    results = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={processes}",
            "test.py",
        ]
        command += [
            "--gpu",
            "cpu",
            "--ckpt_path",
            str(unbroken[0]),
            "--srp",
            str(out),
            "--tb",
            "7",
            "--num_ood_samples",
            "50",
        ]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        results.append(json.loads((out / "results.json").read_text()))
    for one, two in zip(*(r["rows"] for r in results), strict=True):
        assert one.keys() == two.keys()
        for key, value in one.items():  # batches of other sizes round otherwise, and knn has ties
            assert value == (pytest.approx(two[key], rel=1e-3) if type(value) is float else two[key]), key


def test_what_is_there_outlives_a_quota(driver, unbroken, tmp_path):
    assert driver.run(tmp_path, kill_at=unbroken[1] // 2)["status"] == -signal.SIGKILL
    assert driver.run(tmp_path, "--resume")["status"] == 0
    # A finished run that is begun again from its start, by way of an older checkpoint, under a quota.
    state = load_checkpoint(tmp_path / LATEST)
    state["epoch"], state["history"] = 2, state["history"][:2]
    save_checkpoint(state, tmp_path)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir() if f.suffix == ".pth"}
    answer = driver.run(tmp_path, "--resume", file_limit=100_000)
    assert answer["status"] == 2 and "not written: " in answer["output"], answer["output"]
    assert before == {f.name: f.read_bytes() for f in tmp_path.iterdir() if f.suffix == ".pth"}


def test_a_failed_write_is_warned_of_once_and_tried_again(tmp_path, capsys):
    attempt = Attempts()

    def broken(path):
        raise OSError(28, "No space left on device")

    assert not attempt("the log", broken, tmp_path) and not attempt("the log", broken, tmp_path)
    assert capsys.readouterr().err.count("the log not written") == 1
    assert attempt("the log", lambda path: (path / "log").write_text("x"), tmp_path)
    assert not attempt("the log", broken, tmp_path)
    assert capsys.readouterr().err.count("the log not written") == 1
