"""The command line: options in, one call, report out.

Every failure a user can act on is one ``error:`` line and one ``hint:`` line on stderr, and an exit
code by class: 0 done; 1 verification found a difference; 2 wrong request; 3 bad or unsafe input; 4
the file system failed; 5 the output exists or is taken; 6 the Hub refused or the network failed; 7
training diverged and was stopped; 8 a rank of a run was lost; 129, 130 and 143 interrupted. After
4, 8, 129, 130 and 143 the same command resumes.
"""

import contextlib
import signal
import sys
from types import FrameType


class _Terminated(BaseException):
    """SIGTERM arrived."""


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise _Terminated


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        signal.signal(signal.SIGTERM, _terminate)
        from flmgrow.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = _interrupted(130)
    except _Terminated:
        code = _interrupted(143)
    except BrokenPipeError:
        sys.stderr.close()
        code = 0
    sys.exit(code)


def _interrupted(code: int) -> int:
    with contextlib.suppress(OSError):  # nobody may be there to read it
        print("error: interrupted\nhint: the same command resumes", file=sys.stderr, flush=True)
    return code
