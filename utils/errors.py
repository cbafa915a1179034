"""One kind of exception for everything that is the user's to mend, so that the scripts can print it as a sentence."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """A flag, file or value that cannot be used; its message is one sentence that names it."""


def exit_cleanly(main: Callable[[], None]) -> None:
    """Runs a script's main; an :class:`InputError` becomes ``error: ...`` on stderr and exit status 2, without a traceback."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
