"""Pico checkpoints with a distributed optimizer, made by code of its own.

:func:`distribute` turns a checkpoint of the factory into one with a distributed optimizer. It fills
buckets with tensors and joins them, and computes no offset: flat buffers name no parameter, and so
the place of each is checked against what was put there.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from damage import rank_files
from torch import Tensor

from flmgrow.model.states import State

FLAT = "distrib_optim.pt"
STATES = {State.MASTER: "param", State.EXP_AVG: "exp_avg", State.EXP_AVG_SQ: "exp_avg_sq"}
MADE: Mapping[str, Callable[[Tensor], Tensor]] = {
    # Float32 weights are their own masters; shorter ones are what their masters are rounded to.
    "param": lambda w: w.float() * (1 if w.dtype == torch.float32 else 1 + 2**-13),
    "exp_avg": lambda w: w.float() * 0.125,
    "exp_avg_sq": lambda w: w.float() ** 2,
}
Content = dict[Any, Any]


def joined(parameters: list[Tensor], alone: list[bool], size: int | None) -> Tensor:
    """Fill buckets with tensors, and zeros up to the next multiple of 64 before each."""
    buckets: list[Tensor] = []
    bucket = torch.zeros(0)
    for parameter, own in zip(parameters, alone, strict=True):
        bucket = torch.cat((bucket, torch.zeros(-len(bucket) % 64)))
        if own:
            buckets.append(bucket)
            bucket = torch.zeros(0)
        bucket = torch.cat((bucket, parameter.flatten()))
        if own or (size is not None and len(bucket) >= size):
            buckets.append(bucket)
            bucket = torch.zeros(0)
    return torch.cat((*buckets, bucket))


def buffers_of(state: Content, split: bool, size: int | None) -> Content:
    """The buffers of a model chunk."""
    named = [(key, w) for key, w in state.items() if isinstance(w, Tensor)][::-1]
    tied = ("embedding.word_embeddings.weight", "output_layer.weight")
    alone = [split and key in tied for key, _ in named]
    buffers = {
        name: joined([make(w) for _, w in named], alone, size) for name, make in MADE.items()
    }
    return {**buffers, "numel_unpadded": len(buffers["param"])}


def distribute(root: Path, size: int | None = None) -> Path:
    """Give a checkpoint of the factory, made with an optimizer, a distributed one instead."""
    for file in rank_files(root):
        content = torch.load(file, weights_only=False)
        args = content["args"]
        pipeline = args.pipeline_model_parallel_size
        split = pipeline > 1 and not args.untie_embeddings_and_output_weights
        first = pipeline == 1 or file.parent.name.endswith("_000")
        chunks = [content[key] for key in sorted(content) if key.startswith("model")]
        chunks = [chunk for chunk in chunks if any(isinstance(w, Tensor) for w in chunk.values())]
        buffers: Content = {"buckets_coalesced": True}
        for number, chunk in enumerate(chunks):
            closing = size if first and number == 0 else None
            buffers[number] = {
                (args.params_dtype, torch.float32): buffers_of(chunk, split, closing)
            }
        torch.save(buffers, file.with_name(FLAT))
        groups = [{"lr": 3e-4, "wd_mult": mult, "step": 30} for mult in (1.0, 0.0)]
        content["optimizer"] = {"optimizer": {"param_groups": groups}}
        torch.save(content, file)
    return root
