"""Settings for all tests."""

import signal

from hypothesis import settings

# Where the tests run in the background, a shell may have it that interrupts are ignored, and what
# they start would ignore them, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Machines are shared, and a property must not fail because something else ran.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
