"""Buckets as megatron-core's distributed optimizer fills them, by code that computes no offset.

Buckets are filled with tensors, and what is to be filled up with zeros. A legacy checkpoint holds
them joined (``pico_distributed.py``), a distributed one each on its own:
:func:`make_bucket_checkpoint`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from damage import rank_files
from dcp_folders import Box
from pico import CONFIGS, make_checkpoint, padded_vocab
from pico_dist import Boxes, dist_state, save_dist
from torch import Tensor

from flmgrow.formats.layout.placements import Layout

Content = dict[str, Any]
Cuts = Callable[[int], list[Box]]

MADE: Mapping[str, Callable[[Tensor], Tensor]] = {
    # Float32 weights are their own masters; shorter ones are what their masters are rounded to.
    "param": lambda w: w.float() * (1 if w.dtype == torch.float32 else 1 + 2**-13),
    "exp_avg": lambda w: w.float() * 0.125,
    "exp_avg_sq": lambda w: w.float() ** 2,
}
LAYOUTS = {
    "one rank": Layout(1, 1, 1, (4,)),
    "tensor": Layout(2, 1, 1, (4,)),
    "uneven": Layout(2, 2, 1, (1, 3)),
    "virtual": Layout(1, 2, 2, (1, 1, 2, 0)),
    "a rank without layers": Layout(1, 4, 1, (2, 0, 1, 1)),
}
BUCKETS: Content = {"overlap_grad_reduce": True, "ddp_bucket_size": 300, "data_parallel_size": 2}
ROWS = 52
"""Rows of every stored table, on one, two or four tensor ranks."""


def fill(parameters: list[Tensor], alone: list[bool], size: int | None) -> list[Tensor]:
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
    return [bucket for bucket in (*buckets, bucket) if len(bucket)]


def module_order(state: Content) -> list[str]:
    """The keys of a state dict; norms of Transformer Engine's linear layers before their weights,
    as parameters are in these layers.
    """
    order: list[str] = []
    for key in state:
        module, _, name = key.rpartition(".")
        if name == "weight":
            order += [other for other in state if other.startswith(f"{module}.layer_norm_")]
        if not name.startswith("layer_norm_"):
            order.append(key)
    return order


def chunk_buckets(state: Content, split: bool, size: int | None) -> dict[str, list[Tensor]]:
    """The buckets of a model chunk, of each state."""
    named = [(key, state[key]) for key in module_order(state) if isinstance(state[key], Tensor)]
    named.reverse()
    tied = ("embedding.word_embeddings.weight", "output_layer.weight")
    alone = [split and key in tied for key, _ in named]
    return {name: fill([make(w) for _, w in named], alone, size) for name, make in MADE.items()}


def rank_buckets(file: Path, size: int | None) -> list[dict[str, list[Tensor]]]:
    """The buckets of each model chunk, with parameters, of one rank's file."""
    content = torch.load(file, weights_only=False)
    args = content["args"]
    pipeline = args.pipeline_model_parallel_size
    split = pipeline > 1 and not args.untie_embeddings_and_output_weights
    first = pipeline == 1 or file.parent.name.endswith("_000")
    chunks = [content[key] for key in sorted(content) if key.startswith("model")]
    chunks = [chunk for chunk in chunks if any(isinstance(w, Tensor) for w in chunk.values())]
    return [
        chunk_buckets(chunk, split, size if first and number == 0 else None)
        for number, chunk in enumerate(chunks)
    ]


def whole(size: int) -> list[Box]:
    """A bucket in one chunk."""
    return [((0,), (size,))]


def bucket_state(legacy: Path, size: int | None, cuts: Cuts) -> tuple[dict[str, Any], Boxes]:
    """What a distributed checkpoint holds of the optimizer, and the chunks it is saved in."""
    files = sorted(rank_files(legacy), key=lambda file: file.parent.name.split("_")[:1:-1])
    state: dict[str, Any] = {}
    boxes: Boxes = {}
    for group, file in enumerate(files):
        dtype = torch.load(file, weights_only=False)["args"].params_dtype
        rank = f"optimizer.distributed.dp_group_idx_{group}"
        groups = [{"lr": 3e-4, "wd_mult": mult, "step": 30} for mult in (1.0, 0.0)]
        state[f"{rank}.optimizer/shard_0_1"] = [{"param_groups": groups}]
        for number, chunk in enumerate(rank_buckets(file, size)):
            for name, buckets in chunk.items():
                for index, bucket in enumerate(buckets):
                    key = f"{rank}.gbuf_idx_{number}.dtype_{(dtype, torch.float32)}"
                    key = f"{key}.bucket_idx_{index}.{name}"
                    state[key], boxes[key] = bucket, cuts(len(bucket))
    return state, boxes


def make_bucket_checkpoint(
    path: Path,
    name: str,
    layout: Layout,
    dtype: str = "bfloat16",
    naming: str = "local",
    cuts: Cuts = whole,
    change: Callable[[dict[str, Any], Boxes], object] = lambda state, boxes: None,
    **arguments: Any,
) -> tuple[Path, Path]:
    """Write a model, with the optimizer in buckets, as ``torch_dist``; return (it, a legacy one).

    The legacy one has the same weights in the same layout, its keys in the same ``naming``.
    ``cuts`` says, for the size of a bucket, in which chunks it lies; ``change`` changes what is
    saved.
    """
    one, ranks = (
        make_checkpoint(
            path / folder, name, own, dtype=dtype, naming=how, multiple=ROWS // tp, **arguments
        )
        for folder, own, how, tp in (
            ("one", None, "fused", 1),
            ("ranks", layout, naming, layout.tp),
        )
    )
    assert padded_vocab(CONFIGS[name], layout.tp, ROWS // layout.tp) == ROWS
    args = torch.load(rank_files(ranks)[0], weights_only=False)["args"]
    args.transformer_impl = "local" if naming == "local" else "transformer_engine"
    size = arguments.get("ddp_bucket_size") if arguments.get("overlap_grad_reduce") else None
    parts = [dist_state(one, layout.tp), bucket_state(ranks, size, cuts)]
    state = parts[0][0] | parts[1][0]
    boxes = parts[0][1] | parts[1][1]
    change(state, boxes)
    optimizer = {"param_state_sharding_type": "dp_reshardable"}
    return save_dist(path / "dist", args, state, boxes, optimizer=optimizer), ranks
