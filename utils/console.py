"""Lines on the terminal."""

import contextlib
import sys
import warnings
from typing import IO


def say(text: str, stream: IO[str] | None = None) -> None:
    """Prints a line, to stdout by default; a full disk, a closed pipe or a missing stream is no error."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=stream or sys.stdout, flush=True)


def on_terminal() -> bool:
    """Tells whether stderr is a terminal; a daemon has none, a notebook's stream may not say."""
    return getattr(sys.stderr, "isatty", bool)()


def show_warnings_plainly() -> None:
    """Shows warnings as one line on stderr, without the source line."""
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
