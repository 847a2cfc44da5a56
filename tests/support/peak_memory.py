"""How much memory a command takes at its peak."""

import subprocess
import sys

PROGRAM = """
import sys
from pathlib import Path
from flmgrow.cli.app import run
code = run(sys.argv[1:])
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
sys.exit(code)
"""
# getrusage would count what the process that started it had in memory at that moment.


def peak(code: int, *arguments: object) -> int:
    """The peak of a command's resident memory, in MiB; it must end with ``code``."""
    words = [str(argument) for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return int(done.stdout.splitlines()[-1]) >> 10
