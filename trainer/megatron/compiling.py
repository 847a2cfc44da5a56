"""Compiling an elementwise function into one kernel, where there is a compiler.

Without one, each of its operations is a kernel, and a pass over memory, of its own.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from flmgrow.trainer.megatron.core import jit_fuser

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Let a function become one kernel where there is a compiler for the device.

    megatron-core does so with its own elementwise functions. On a CPU it stays as it is.
    """
    fused: Function = jit_fuser(function)
    return fused
