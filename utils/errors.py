"""One kind of exception for everything that is the user's to mend, so that the scripts can print it as a
sentence."""

import contextlib
import os
import sys
from collections.abc import Callable


class InputError(ValueError):
    """A flag, file or value that cannot be used; its message is one sentence that names it."""


def first_line(error: Exception) -> str:
    """The first line of what another library says, or the kind of error where it says nothing."""
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def exit_cleanly(main: Callable[[], None]) -> None:
    """Runs a script's main without a traceback for what is the user's to mend or to stop.

    An :class:`InputError` becomes ``error: ...`` on stderr and exit status 2, Ctrl-C one line and status 130.
    """
    sys.stdout.reconfigure(errors="backslashreplace")  # a folder's name need not be text in every terminal
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
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # else the interpreter tries again at its end, and changes the exit status
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
