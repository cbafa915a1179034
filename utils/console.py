"""Lines on the terminal."""

import contextlib
import sys
import warnings


def say(text, stream=None):
    """Prints a line, to stdout by default; a full disk or a closed pipe does not stop the run."""
    with contextlib.suppress(OSError):
        print(text, file=stream or sys.stdout, flush=True)


def show_warnings_plainly():
    """Shows warnings as one line on stderr, without the source line."""
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
