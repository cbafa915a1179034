"""What the scripts say on the terminal, and the exception for everything the user can fix."""

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import IO

import torch.distributed as dist


class InputError(ValueError):
    """A flag, file or value cannot be used; the message is one sentence that names it."""


def first_line(error: Exception | str) -> str:
    """Returns the first line of another library's message, or the kind of error if it has none."""
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def say(text: str, stream: IO[str] | None = None) -> None:
    """Prints a line, to stdout by default; a full disk or a closed pipe does not end a run. What the stream
    cannot encode, such as a file's name that is not UTF-8, is escaped."""
    stream = stream or sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    with contextlib.suppress(OSError, ValueError):
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def exit_cleanly(main: Callable[[], None]) -> None:
    """Runs a script's main; an :class:`InputError` becomes ``error: ...`` on stderr and exit status 2, Ctrl-C
    one line and status 130, anything else a traceback and status 1."""
    status = 0
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"  # without the source line
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
        traceback.print_exc()
        status = 1
    if status and dist.is_available() and dist.is_initialized():
        sys.stdout.flush()
        os._exit(status)  # exit handlers would wait for the others, which the launcher ends only then
    if status:
        sys.exit(status)
