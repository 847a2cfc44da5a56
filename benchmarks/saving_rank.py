"""A rank of ``bench_saving.py``: trains a stage, and prints what saving and loading take."""

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from flmgrow.trainer import __main__, loop
from flmgrow.trainer.checkpoint.saving import Saving


def resident(what: str) -> int:
    """Return this process's resident memory in KiB: now (VmRSS), or at its peak (VmHWM)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition(f"{what}:")[2].split()[0])


def watched(doing: str, do: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """Return what ``do`` returns, and print what it took at its peak beside what was held before,
    or is afterwards.
    """
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is that of now
    before = resident("VmRSS")
    result = do(*given, **named)
    held = max(before, resident("VmRSS"))
    more = (resident("VmHWM") - held) / 1024
    found = {"doing": doing, "rank": int(os.environ["RANK"]), "MiB": more}
    sys.stdout.write(json.dumps(found) + "\n")
    return result


if __name__ == "__main__":
    saving, used = Saving.save, vars(loop)
    Saving.save = lambda *given: watched("saving", saving, *given)  # type: ignore[method-assign]
    used["load"] = partial(watched, "loading", used["load"])
    sys.exit(__main__.main())
