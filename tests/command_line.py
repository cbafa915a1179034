"""Running the scripts in this process, as the command line would, and what their last words must be."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import torch

from utils.errors import exit_cleanly

ROOT = Path(__file__).resolve().parent.parent
DIGITS = "--ds digits --gpu cpu --rho 0.1 -b 128 --ob 32 -e 1".split()
# For checkpoints that do not say what they are.
DIGITS_NETWORK = "--gpu cpu --ds digits --md ResNet20 --rho 0.1".split()


class Code:
    """An object whose pickle makes a folder when it is read."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def load_script(name):
    """The script as a module; `import test` would be the standard library's."""
    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(main, *argv):
    """Runs a script's main as the command line would, and returns its exit status."""
    try:
        exit_cleanly(lambda: main([str(a) for a in argv]))
    except SystemExit as end:
        return end.code
    return 0


def torchrun(script, *argv):
    """Runs a script in two processes."""
    command = [sys.executable, *"-m torch.distributed.run --standalone --nproc_per_node=2".split()]
    command = [str(word) for word in (*command, ROOT / script, *argv)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def assert_one_sentence(capsys, status, *words):
    """Exit status 2, and one line `error: ...` that has the words."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 2, lines
    errors = [line for line in lines if not line.startswith("warning: ")]
    assert len(errors) == 1 and errors[0].startswith("error: "), lines
    for word in words:
        assert str(word) in errors[0]


def assert_same(a, b, where=""):
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where
