"""Runs train.py's main many times, each in a forked child: importing torch once instead of every time.

Reads one JSON object per line from standard input, {argv, kill_at: number or null, signal: number,
file_limit: bytes or null}, and answers with {status, events, output} on standard output; status is negative
for a child that died of a signal. A child sends itself the signal at its ``kill_at``-th audit event (files
opened and renamed, objects pickled, modules imported ...): a moment of the run, not of the clock, so a busy
machine changes nothing. ``events`` is how many there were up to the last checkpoint of a child that ended by
itself.
"""

import json
import os
import resource
import signal
import sys
import tempfile

import torch

import train
from utils.checkpoint import LATEST
from utils.errors import exit_cleanly


def child(request, output):
    events = trained = 0

    def count(event, arguments):
        nonlocal events, trained
        events += 1
        if event == "os.rename" and str(arguments[1]).endswith(LATEST):
            trained = events
        if events == request.get("kill_at"):
            os.kill(os.getpid(), request["signal"])

    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    if request.get("file_limit"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing beyond it is then an error, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"],) * 2)
    sys.addaudithook(count)
    try:
        exit_cleanly(lambda: train.main(request["argv"]))
        status = 0
    except SystemExit as end:
        status = end.code
    except BaseException as error:
        print(f"Traceback: {error!r}")
        status = 1
    request["kill_at"] = None
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.write(output.fileno(), f"\n{trained}".encode())
    os._exit(status)


def main():
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile("w+") as output:
            pid = os.fork()
            if pid == 0:
                child(request, output)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            output.seek(0)
            answer = {"status": status, "output": output.read()}
            if status >= 0:
                answer["output"], _, events = answer["output"].rpartition("\n")
                answer["events"] = int(events)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
