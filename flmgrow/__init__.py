"""flmgrow grows and reshards Megatron checkpoints, and proves that the function did not change.

What is public is :mod:`flmgrow.api`, reached as ``flmgrow.open`` and so on. It is imported when it
is first used: ``import flmgrow`` alone imports neither torch nor numpy, and nothing that would take
time before the command line answers signals.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flmgrow.api import (
        Plan,
        Written,
        bake,
        expand,
        export,
        import_,
        inspect,
        integrity,
        open,
        plan,
        reshard,
        verify,
    )
    from flmgrow.errors import (
        BadCheckpointError,
        FlmgrowError,
        OutputExistsError,
        StorageError,
        UsageError,
    )
    from flmgrow.foresight import cost, predict, propose, search, study
    from flmgrow.models import generate, load_model
    from flmgrow.opened import LogicalArray, Source
    from flmgrow.scores import evaluate

__version__ = "0.1.0"

__all__ = [
    "BadCheckpointError", "FlmgrowError", "LogicalArray", "OutputExistsError", "Plan", "Source",
    "StorageError", "UsageError", "Written", "__version__", "bake", "cost", "evaluate", "expand",
    "export", "generate", "import_", "inspect", "integrity", "load_model", "open", "plan",
    "predict", "propose", "reshard", "search", "study",
    "verify",
]  # fmt: skip

_HOMES = {
    "cost": "flmgrow.foresight",
    "evaluate": "flmgrow.scores",
    "generate": "flmgrow.models",
    "load_model": "flmgrow.models",
    "predict": "flmgrow.foresight",
    "propose": "flmgrow.foresight",
    "search": "flmgrow.foresight",
    "study": "flmgrow.foresight",
    "LogicalArray": "flmgrow.opened",
    "Source": "flmgrow.opened",
    "BadCheckpointError": "flmgrow.errors",
    "FlmgrowError": "flmgrow.errors",
    "OutputExistsError": "flmgrow.errors",
    "StorageError": "flmgrow.errors",
    "UsageError": "flmgrow.errors",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'flmgrow' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "flmgrow.api")), name)


def __dir__() -> list[str]:
    return __all__
