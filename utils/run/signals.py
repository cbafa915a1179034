"""Ends a run cleanly when asked to."""

import signal

EXIT_STOPPED = 75  # "try again later" (EX_TEMPFAIL): the run wrote a checkpoint and waits for --resume


class StopRequest:
    """Notes the first SIGTERM or SIGINT in ``requested``; a second one ends the process at once."""

    def __init__(self):
        self.requested = False
        self._previous = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}

    def _note(self, number, frame):
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.requested = True

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
