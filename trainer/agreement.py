"""What one rank meets alone, all must meet: the others would wait for it for ever."""

from collections.abc import Callable
from typing import Any

import torch

from flmgrow.errors import FlmgrowError


def together(do: Callable[[], None]) -> None:
    """Run ``do`` on every rank; if it fails on one, all raise the error of the first that failed.

    Other errors than flmgrow's own are left to end their rank, and the launcher to end the rest.
    """
    own: tuple[type[FlmgrowError], str, str] | None = None
    try:
        do()
    except FlmgrowError as error:
        own = type(error), error.message, error.hint
    met: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(met, own)
    if failed := next((each for each in met if each is not None), None):
        kind, message, hint = failed
        raise kind(message, hint)
