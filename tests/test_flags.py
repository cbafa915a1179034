import argparse
from pathlib import Path

from utils import flags


def test_a_tilde_is_the_home_directory_also_where_the_shell_leaves_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = argparse.ArgumentParser()
    flags.add_training_flags(parser)
    args = parser.parse_args(["--resume=~/run", "--srp=~/data"])
    assert (args.resume, args.srp) == (str(tmp_path / "run"), tmp_path / "data")
    assert parser.parse_args(["--resume"]).resume == "" and flags.path("a/~b") == Path("a/~b")
