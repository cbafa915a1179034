"""The way of both test scripts from the command line to the results."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.checkpoint import BEST, open_checkpoint, results_folder
from utils.detector import Detector, find_detector
from utils.distributed import Compute, finish, refuse_torchrun, start
from utils.evaluation_flags import one_calibration
from utils.predictions import predict_files
from utils.results import exclusive


def run_script(
    args: argparse.Namespace,
    identify: Callable[[Any, dict[str, Any]], tuple[dict[str, Any], list[str]]],
    evaluate: Callable[[argparse.Namespace, Compute, Any, dict[str, Any], list[str], Path], None],
) -> None:
    """Evaluates a run, or applies its detector to ``--images``.

    Args:
        identify: (checkpoint, flags) -> what network it is, and notes for readers.
        evaluate: (args, compute, checkpoint, what it is, notes, output folder); writes the results.

    Raises:
        InputError: what the user asked for is impossible.
    """
    if args.images:
        refuse_torchrun("--images")
        device = start(args.gpu).device
        detector = Detector.load(args.ckpt_path, device, one_calibration(args), args.score, args.keep)
        predict_files(args.images, detector, args.srp or find_detector(args.ckpt_path).parent)
    else:
        compute = start(args.gpu)
        checkpoint = open_checkpoint(args.ckpt_path if args.select == "last" else args.ckpt_path / BEST)
        known, notes = identify(checkpoint, vars(args))
        if args.select == "best":
            notes.append(f"the network is that of epoch {checkpoint['epoch']}, the best on held-out images")
        with exclusive(args.srp or results_folder(args.ckpt_path), compute) as out:
            evaluate(args, compute, checkpoint, known, notes, out)
    finish()
