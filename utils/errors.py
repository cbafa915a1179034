"""The exception for everything the user can fix, which the scripts print as one sentence."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable


class InputError(ValueError):
    """A flag, file or value cannot be used; the message is one sentence that names it."""


def first_line(error: Exception) -> str:
    """Returns the first line of another library's message, or the kind of error if it has none."""
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def exit_cleanly(main: Callable[[], None]) -> None:
    """Runs a script's main, without a traceback for errors the user can fix or for Ctrl-C.

    An :class:`InputError` becomes ``error: ...`` on stderr and exit status 2, Ctrl-C one line and status 130.
    Anything else keeps its traceback, with status 1.
    """
    sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal can show every folder name
    try:
        main()
    except InputError as error:
        with contextlib.suppress(OSError):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except Exception:  # the interpreter would wait for the workers of the loader in its traceback
        with contextlib.suppress(OSError):
            traceback.print_exc()
        sys.exit(1)
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # else the interpreter retries on exit and changes the status
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
