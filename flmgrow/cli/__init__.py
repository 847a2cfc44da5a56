"""The command line: options in, one call, report out.

Every failure a user can act on is one ``error:`` line and one ``hint:`` line on stderr, and an exit
code by class: 0 done; 1 verification found a difference; 2 wrong request; 3 bad or unsafe input; 4
the file system failed; 5 the output exists or is taken; 6 the Hub refused or the network failed; 7
training diverged and was stopped; 8 a rank of a run was lost; 129, 130 and 143 interrupted. After
4, 8, 129, 130 and 143 the same command resumes.
"""

import sys

from flmgrow.cli.interruption import answer_signals, finish, interrupted, tell


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        answer_signals()
        code = finish(_run())
    except BaseException:
        # Not of an Interrupted alone: a library may make another exception of it, and raise that.
        code = interrupted()
        if not code:
            raise
        tell()
    sys.exit(code)


def _run() -> int:
    from flmgrow.cli.app import run

    try:
        return run(sys.argv[1:])
    except KeyboardInterrupt:  # a child's, or a prompt's
        tell()
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
