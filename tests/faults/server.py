"""Runs flmgrow's real commands, each in a process of its own, in which one system call fails.

To start a command takes longer than to run it on a tiny checkpoint. So this program has imported
everything before, and forks: a line of JSON on its standard input describes commands that run at
once, a line on its standard output what became of them. ``shim.c`` must be preloaded.
"""

import contextlib
import ctypes
import errno
import json
import os
import signal
import sys
import tempfile
import time
from typing import Any

from flmgrow.cli import main
from flmgrow.storage import read_back

KILL = -1
PATIENCE = 3.0
"""Seconds after which a launcher ends all ranks once one has failed."""

Json = dict[str, Any]


def child(request: Json, out: int, err: int, trace: int) -> None:
    """Run a command; never returns."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.environ.update(request["environment"])
    sys.argv = ["flmgrow", *request["arguments"]]
    read_back.WINDOW = request["window"]
    shim = ctypes.CDLL(None)
    how = request.get("what", "KILL")
    number = KILL if how == "KILL" else getattr(errno, how)
    folder = os.fsencode(request["below"])
    shim.faults_arm(folder, request.get("nth", 0), number, request.get("memory", 0), trace)
    code = 70
    try:
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    shim.faults_arm(b"", 0, 0, 0, -1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait_for(pids: list[int]) -> dict[int, int]:
    """Return the exit code of each; of ranks, as launchers do, end all once one has failed."""
    codes: dict[int, int] = {}
    failed = 0.0
    while len(codes) < len(pids):
        for pid in set(pids) - codes.keys():
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
                if codes[pid] and not failed:
                    failed = time.monotonic()
        if failed and time.monotonic() - failed > PATIENCE:
            for pid in set(pids) - codes.keys():
                os.kill(pid, signal.SIGTERM)
            failed = time.monotonic()
        time.sleep(0.005)
    return codes


def serve(requests: list[Json]) -> list[Json]:
    running = []
    for request in requests:
        files = [tempfile.TemporaryFile() for _ in range(3)]  # noqa: SIM115
        if (pid := os.fork()) == 0:
            child(request, *(file.fileno() for file in files))
        running.append((pid, files))
    replies = []
    pids = [pid for pid, _ in running]
    groups = [pids] if requests[0]["environment"] else [[pid] for pid in pids]
    codes = {pid: code for group in groups for pid, code in wait_for(group).items()}
    for pid, files in running:
        code = codes[pid]
        told = []
        for file in files:
            file.seek(0)
            told.append(file.read().decode(errors="replace").splitlines())
            file.close()
        replies.append({"code": code, "out": told[0], "err": told[1], "calls": told[2]})
    return replies


def warm_up(arguments: list[str]) -> None:
    """Import all that a command imports, by running it once."""
    kept = os.dup(1), os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    sys.argv = ["flmgrow", *arguments]
    with contextlib.suppress(SystemExit):
        main()
    sys.stdout.flush()
    for number, descriptor in enumerate(kept, 1):
        os.dup2(descriptor, number)


if __name__ == "__main__":
    for line in sys.stdin:
        told = json.loads(line)
        if isinstance(told, dict):
            warm_up(told["warm_up"])
            print("{}", flush=True)
        else:
            print(json.dumps(serve(told)), flush=True)
