"""Training with a stand-in for Transformer Engine, on a CPU that is taken for a GPU of 8 bits.

Run as a program (``python engine_rank.py STAGE ...``) it is a rank of those stages, one after
another; what each tells is left beside its file.
"""

import os
import sys
import warnings
from contextlib import redirect_stderr
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from stage_runs import environment

CARD = SimpleNamespace(is_available=lambda: True, get_device_capability=lambda: (9, 0))
"""What switches see of torch.cuda."""


def told_file(stage: Path) -> Path:
    """Return the file of what the first rank tells."""
    return stage.with_name("told.txt")


def engine_environment(*folders: str) -> dict[str, str]:
    """Return that of a process which finds the stand-in, and looks into ``folders`` first, too."""
    paths = (str(Path(__file__).with_name("engine")), *filter(None, folders))
    return {**environment(), "PYTHONPATH": os.pathsep.join(paths)}


def _train(stage: Path) -> None:
    from flmgrow.growing.in_place import GrowthInPlace
    from flmgrow.trainer.__main__ import ALONE
    from flmgrow.trainer.stage.file import read_stage
    from flmgrow.trainer.training import train

    path = told_file(stage) if os.environ.get("RANK", "0") == "0" else Path(os.devnull)
    alone = mock.patch.dict(os.environ, {**ALONE, **os.environ})
    with (
        path.open("w") as told,
        redirect_stderr(told),
        warnings.catch_warnings(action="ignore"),
        alone,
    ):
        code = train(read_stage(stage), stage, GrowthInPlace())
    assert code == 0, path.read_text()


def main(stages: list[Path]) -> None:
    """Train stages."""
    from flmgrow.trainer.megatron import switches

    torch.set_num_threads(1)
    here: Any = switches
    with mock.patch.object(here, "torch", SimpleNamespace(cuda=CARD)):
        for stage in stages:
            _train(stage)


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
