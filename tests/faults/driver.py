"""Runs train.py's main many times, each in a forked child that can be killed: importing torch once instead of
every time.

Reads one JSON object a line from standard input, {argv, kill_after: seconds or null, signal: number,
file_limit: bytes or null, stdout: path or null}, and answers with {status, seconds, output} on standard
output; status is negative for a child that died of a signal.
"""

import json
import os
import resource
import signal
import sys
import tempfile
import time

import torch

import train
from utils.errors import exit_cleanly


def child(request, output):
    os.dup2(os.open(request["stdout"], os.O_WRONLY) if request.get("stdout") else output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    if request.get("file_limit"):
        signal.signal(
            signal.SIGXFSZ, signal.SIG_IGN
        )  # so that writing beyond it is an error like that of a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"],) * 2)
    try:
        exit_cleanly(lambda: train.main(request["argv"]))
        status = 0
    except SystemExit as end:
        status = end.code
    except BaseException as error:
        print(f"Traceback: {error!r}")
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main():
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile("w+") as output:
            begun = time.monotonic()
            pid = os.fork()
            if pid == 0:
                child(request, output)
            if request.get("kill_after") is not None:
                time.sleep(request["kill_after"])
                try:
                    os.kill(pid, request["signal"])
                except ProcessLookupError:
                    pass
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            output.seek(0)
            answer = {"status": status, "seconds": time.monotonic() - begun, "output": output.read()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
