import argparse
from pathlib import Path

import pytest

from utils import flags


def test_a_tilde_is_the_home_directory_also_where_the_shell_leaves_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = argparse.ArgumentParser()
    parser.add_argument("--drp", type=flags.path)
    assert parser.parse_args(["--drp=~/data"]).drp == tmp_path / "data"
    assert parser.parse_args(["--drp", "a/~b"]).drp == Path("a/~b")


def test_the_home_of_a_user_who_does_not_exist(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--drp", type=flags.path)
    with pytest.raises(SystemExit):
        parser.parse_args(["--drp", "~no-such-user/data"])
    assert "'~no-such-user/data' names no user's home directory" in capsys.readouterr().err
