"""The exception for everything the user can fix, which the scripts print as one sentence."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable

import torch.distributed as dist

from utils.console import say


class InputError(ValueError):
    """A flag, file or value cannot be used; the message is one sentence that names it."""


def first_line(error: Exception | str) -> str:
    """Returns the first line of another library's message, or the kind of error if it has none."""
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def exit_cleanly(main: Callable[[], None]) -> None:
    """Runs a script's main, without a traceback for errors the user can fix or for Ctrl-C.

    An :class:`InputError` becomes ``error: ...`` on stderr and exit status 2, Ctrl-C one line and status 130.
    Anything else keeps its traceback, with status 1. One of several processes ends at once after an error, so
    that their launcher ends the others too.
    """
    if hasattr(sys.stdout, "reconfigure"):  # not every terminal can show every folder name
        sys.stdout.reconfigure(errors="backslashreplace")
    status = 0
    try:
        main()
    except InputError as error:
        say(f"error: {error}", sys.stderr)
        status = 2
    except KeyboardInterrupt:
        say("\ninterrupted", sys.stderr)
        status = 130
    except SystemExit as end:
        status = end.code
    except Exception:  # the interpreter would wait for the workers of the loader in its traceback
        with contextlib.suppress(OSError, ValueError):
            traceback.print_exc()
        status = 1
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):  # else the interpreter tries again on exit and changes the status
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if status and dist.is_available() and dist.is_initialized():
        os._exit(status)  # exit handlers would wait for the other processes
    if status:
        sys.exit(status)
