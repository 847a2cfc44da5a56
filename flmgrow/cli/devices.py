"""Where a command computes, and in which dtype: the words for both."""

from typing import TYPE_CHECKING, Annotated

import typer

from flmgrow.errors import UsageError

if TYPE_CHECKING:
    import torch

_DTYPES = ("float64", "float32", "bfloat16", "float16")

Device = Annotated[
    str | None,
    typer.Option(
        metavar="cpu|cuda",
        help="Where to compute; on a GPU if there is one.",
        rich_help_panel="Computing",
    ),
]


def torch_device(name: str | None) -> "torch.device":
    """Return the device of this name, a GPU or else the CPU for None. Raises UsageError."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown, or torch was built without it
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name}: {reason}", "cpu works everywhere") from None
    return device


def torch_dtype(name: str) -> "torch.dtype":
    """Return the dtype of this name. Raises UsageError."""
    import torch

    if name not in _DTYPES:
        raise UsageError(f"--dtype {name}: unknown", f"one of {', '.join(_DTYPES)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype
