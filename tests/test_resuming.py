"""Which run is resumed, and what its checkpoint may say about the command line."""

import argparse
from pathlib import Path

import pytest
import torch
from utils.run.run import resumes_in_place
from utils.run.stored import with_flags_of_run

from utils import flags
from utils.errors import InputError


def parse(checkpoint, **stored):
    torch.save({"args": stored}, checkpoint)
    parser = argparse.ArgumentParser()
    parser.add_argument("--srp", type=flags.path)
    parser.add_argument("--resume")
    parser.add_argument("--drp", type=flags.path)
    parser.add_argument("--depart", nargs="+")
    flags.add_boolean(parser, "--isac", default=True)
    return parser.parse_args(with_flags_of_run(parser, ["--resume", str(checkpoint)], lambda args: args.srp))


def test_a_value_of_the_run_that_begins_with_a_dash_is_a_value(tmp_path):
    args = parse(tmp_path / "c.pth", drp="-data", isac=False, depart=["crop", "embeddings"])
    assert (args.drp, args.isac, args.depart) == (Path("-data"), False, ["crop", "embeddings"])


@pytest.mark.parametrize(
    "stored", [{"isac": "--srp=evil"}, {"depart": ["crop", "--srp", "evil"]}, {"help": True}]
)
def test_a_checkpoint_sets_no_flag_through_the_value_of_another(stored, tmp_path):
    try:
        assert parse(tmp_path / "c.pth", **stored).srp is None
    except InputError as error:
        assert "which no run has" in str(error)
    except SystemExit as end:
        assert end.code == 2


def test_a_run_in_a_folder_below_is_another_run(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "latest.pth").touch()
    assert not resumes_in_place(tmp_path, str(tmp_path / "below"))
    assert resumes_in_place(tmp_path, str(tmp_path)) and resumes_in_place(tmp_path, "")
    assert resumes_in_place(tmp_path, str(tmp_path / "latest.pth"))
