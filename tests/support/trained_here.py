"""Training on one rank in the tests' own process: nothing has to be loaded anew for each stage."""

import io
import os
import warnings
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from commands import flmgrow
from stage_runs import stage_data, write_stage

from flmgrow.trainer.__main__ import ALONE
from flmgrow.trainer.stage.file import read_stage

with warnings.catch_warnings(action="ignore"):  # megatron-core's, of what a CPU lacks
    from flmgrow.growing.in_place import GrowthInPlace
    from flmgrow.trainer.training import train

MODEL = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4}


def small(corpora: Path, /, **changes: Any) -> dict[str, Any]:
    """Return the content of a small stage file without a teacher; it may be merged into."""
    content = stage_data(corpora, model=MODEL)
    del content["data"]["teacher"], content["learning_rate"]["decay_tokens"]
    content["data"]["validation_share"] = 0
    for name, value in changes.items():
        merged = isinstance(value, dict) and name != "model"
        content[name] = {**content.get(name, {}), **value} if merged else value
    return content


def trained(stage: Path, expect: int = 0) -> str:
    """Train a stage, insist on its exit code, and return what it told."""
    threads, told = torch.get_num_threads(), io.StringIO()
    torch.set_num_threads(1)
    with redirect_stderr(told):
        code = _train(stage)
    torch.set_num_threads(threads)
    assert code == expect, told.getvalue()
    return told.getvalue()


def trained_in(folder: Path, content: dict[str, Any], expect: int = 0) -> str:
    """Write a stage file into a folder, and train it."""
    return trained(write_stage(folder, content), expect)


def carried_out(words: tuple[str, ...]) -> int:
    """Carry out a step of a run in this process, and return its exit code."""
    if words[0] != "train":
        return flmgrow(*words).code
    return _train(Path(words[1]))


def _train(stage: Path) -> int:
    with mock.patch.dict(os.environ, ALONE), warnings.catch_warnings(action="ignore"):
        return train(read_stage(stage), stage, GrowthInPlace())
