"""Training on several ranks that begin as copies of a process which has imported all they need."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from stage_runs import environment

from flmgrow.stages.warm import WarmProcess
from flmgrow.trainer.stage.chain import module_of
from flmgrow.trainer.stage.file import read_stage

PATIENCE = timedelta(seconds=120)

distributed: Any = torch.distributed  # its types leave stores out


def train_warm(stage: Path, expect: int = 0, module: str | None = None) -> str:
    """Train a stage, insist on the exit code of its ranks, and return what the first one told.

    ``module`` is what runs a rank, if it is not the stage's own.
    """
    content = read_stage(stage)
    world = content.layout.world
    # The ranks meet at this process, as under torchrun: nobody else can take a port it listens at.
    store = distributed.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=PATIENCE
    )
    common = {
        **environment(),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
    }
    logs = [stage.parent / f"rank{rank}.log" for rank in range(world)]
    words = [module or module_of(content), str(stage)]
    ranks = [
        WarmProcess(words, log, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, [])
        for rank, log in enumerate(logs)
    ]
    codes = [rank.wait() for rank in ranks]
    told = [log.read_text() for log in logs]
    assert codes == [expect] * world, "\n".join(told)
    return told[0]
