"""Settings for all tests."""

import signal

from hypothesis import settings

# Where the tests run in the background, a shell may have it that interrupts are ignored, and what
# they start would ignore them, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Under nohup the tests outlive their terminal; but what has a handler here, be it one that does
# nothing, is as usual in what they start.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

# Machines are shared, and a property must not fail because something else ran.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
