"""Pico checkpoints with a distributed optimizer, whose buckets are filled by code of its own.

:func:`distribute` turns a checkpoint of the factory into one with a distributed optimizer: it joins
the buckets of ``pico_buckets.py``, which were filled with tensors, no offset computed.
"""

from pathlib import Path
from typing import Any

import torch
from damage import rank_files
from pico_buckets import rank_buckets

from flmgrow.model.states import State

FLAT = "distrib_optim.pt"
STATES = {State.MASTER: "param", State.EXP_AVG: "exp_avg", State.EXP_AVG_SQ: "exp_avg_sq"}
Content = dict[Any, Any]


def distribute(root: Path, size: int | None = None) -> Path:
    """Give a checkpoint of the factory, made with an optimizer, a distributed one instead."""
    for file in rank_files(root):
        content = torch.load(file, weights_only=False)
        buffers: Content = {"buckets_coalesced": True}
        for number, chunk in enumerate(rank_buckets(file, size)):
            flat: Content = {name: torch.cat(buckets) for name, buckets in chunk.items()}
            flat["numel_unpadded"] = len(flat["param"])
            buffers[number] = {(content["args"].params_dtype, torch.float32): flat}
        torch.save(buffers, file.with_name(FLAT))
        groups = [{"lr": 3e-4, "wd_mult": mult, "step": 30} for mult in (1.0, 0.0)]
        content["optimizer"] = {"optimizer": {"param_groups": groups}}
        torch.save(content, file)
    return root
