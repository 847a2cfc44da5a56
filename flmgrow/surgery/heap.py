"""Buffers that are freed and asked for again, without the system between.

Every block needs buffers of a few MiB. By default the C library gives each back to the system and
asks for it again, page by page and zeroed: as much work as the copying itself. The limits below
keep freed memory in the process, where the next block finds it.

Each thread would keep its own, too, and how much of it lies idle would depend on which thread meets
the largest blocks. Blocks are asked for some thousand times a second at most, so all threads share
one heap.
"""

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""mallopt(3)'s numbers for what is free at the heap's end, and for what is mapped by itself."""

_LARGEST_BUFFER = 32 << 20
"""The most that glibc takes for the second of them."""

_KEPT = 256 << 20


@cache
def keep_freed_memory() -> None:
    """Let this process keep up to 256 MiB that it frees, in one heap; does nothing where the C
    library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_BUFFER)
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_ARENA_MAX, 1)
