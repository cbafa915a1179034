import argparse
import importlib
from pathlib import Path

import pytest
from command_line import load_script

from utils import flags

PROGRAMS = ["train", "train_imagenet", "test", "test_imagenet", "datasets.prepare"]
PROGRAMS += [f"benchmarks.{name}" for name in ("figures", "gpu", "reproduce", "table")]


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_path_flag_keeps_a_tilde(program, monkeypatch, capsys):
    types = []
    add_argument = argparse._ActionsContainer.add_argument

    def noting(container, *names, **settings):
        types.append(settings.get("type"))
        return add_argument(container, *names, **settings)

    monkeypatch.setattr(argparse._ActionsContainer, "add_argument", noting)
    module = importlib.import_module(program) if "." in program else load_script(program)
    with pytest.raises(SystemExit):
        module.main(["--help"])
    assert flags.path in types and Path not in types


def test_the_run_to_resume_may_be_in_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = argparse.ArgumentParser()
    flags.add_training_flags(parser)
    assert parser.parse_args(["--resume=~/run"]).resume == str(tmp_path / "run")
    assert parser.parse_args(["--resume"]).resume == ""


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
