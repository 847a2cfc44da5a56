"""Where models compute, and in which dtype: what names mean, and names that mean nothing."""

from typing import TYPE_CHECKING

from flmgrow.errors import UsageError
from flmgrow.text import Setting, Text

if TYPE_CHECKING:
    import torch

DTYPES = ("float64", "float32", "bfloat16", "float16")


def device_named(name: str | None, rank: int = 0) -> "torch.device":
    """Return the device of this name; for None a GPU, that of this machine's ``rank``, or else the
    CPU.

    Raises:
        UsageError: For one that is not there.
    """
    import torch

    if name is None:
        return torch.device(f"cuda:{rank}" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown, or torch was built without it
        reason = str(error).splitlines()[0]
        raise UsageError(
            Text(Setting("device"), f" {name}: {reason}"), "cpu works everywhere"
        ) from None
    return device


def dtype_named(name: str | None) -> "torch.dtype | None":
    """Return the dtype of this name, None for None.

    Raises:
        UsageError: For another.
    """
    if name is None:
        return None
    import torch

    check_dtype_name(name)
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def check_dtype_name(name: str | None) -> None:
    """Raise UsageError unless ``name`` is that of a dtype to compute in, or None."""
    if name is not None and name not in DTYPES:
        raise UsageError(Text(Setting("dtype"), f" {name}: unknown"), f"one of {', '.join(DTYPES)}")
