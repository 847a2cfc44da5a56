"""Holding back the garbage collector while very many values are made that all stay.

The collector looks at all values there are whenever enough new ones were made. That of a pickle's
values, of the arrays of a checkpoint and of a plan's there are hundreds of thousands, none of them
garbage, so it would go through them again and again.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Hold the collector back, in a block or as the decorator of a function."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
