"""Distributed checkpoints of pico models in forms that megatron-core has had, built with torch.

A checkpoint's weights and its optimizer's states are first arrays of the parameters' own shapes;
:data:`FORMS` lays them out otherwise. Nothing here is computed as flmgrow does.
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from damage import rank_files
from dcp_folders import Box, grid
from pico import make_checkpoint
from pico_dist import SHARDED, Boxes, dist_state, save_dist
from torch import Tensor

from flmgrow.model.config import ModelConfig

State = dict[str, Any]
Form = Callable[[str, str, Tensor, list[Box], int, bool], dict[str, tuple[Tensor, list[Box]]]]
"""From prefix, key, array, its chunks, tensor ranks, and whether FFNs are gated, to the arrays."""

LAYERS = "decoder.layers."


def plain(
    prefix: str, key: str, array: Tensor, boxes: list[Box], tp: int, gated: bool
) -> dict[str, tuple[Tensor, list[Box]]]:
    """As megatron-core 0.16 and later save all that is not bound to a layout."""
    return {prefix + key: (array, boxes)}


def local_shards(
    prefix: str, key: str, array: Tensor, boxes: list[Box], tp: int, gated: bool
) -> dict[str, tuple[Tensor, list[Box]]]:
    """As megatron-core 0.14 and before: a shard of each rank in a line, cut for three replicas."""
    layers = array.shape[:1] if key.startswith(LAYERS) else torch.Size(())
    body = array.shape[len(layers) :]
    cuts = [1] * len(body)
    split = next((dim for name, dim in SHARDED.items() if key.endswith(name)), None)
    if split is not None:
        cuts[split - len(layers)] = 2 * tp if gated and "linear_fc1" in key else tp
    local = [size // cut for size, cut in zip(body, cuts, strict=True)]
    parts = array.reshape(*layers, *[n for pair in zip(cuts, local, strict=True) for n in pair])
    first = len(layers)
    order = [*range(first), *range(first, parts.ndim, 2), *range(first + 1, parts.ndim, 2)]
    flat = parts.permute(order).reshape(*layers, *cuts, -1).contiguous()
    size = flat.shape[-1]
    ends = sorted({0, size // 3, 2 * size // 3, size})
    outer = grid(flat.shape[:-1], flat.shape[:-1])
    chunks = [
        ((*at, begin), (*ones, end - begin)) for at, ones in outer for begin, end in pairwise(ends)
    ]
    return {prefix + key: (flat, chunks)}


def halves(
    prefix: str, key: str, array: Tensor, boxes: list[Box], tp: int, gated: bool
) -> dict[str, tuple[Tensor, list[Box]]]:
    """As with ``singleton_local_shards``: layers numbered, gate and up apart."""
    arrays = {key: array}
    if key.startswith(LAYERS):
        rest = key.removeprefix(LAYERS)
        arrays = {f"{LAYERS}{n}.{rest}": layer for n, layer in enumerate(array)}
    found = {}
    for name, own in arrays.items():
        if gated and ".linear_fc1." in name and "layer_norm" not in name:
            for end, half in zip("wv", own.chunk(2), strict=True):
                found[f"{prefix}{name}_{end}"] = (
                    half.clone(),
                    grid(half.shape, [tp, 1][: half.ndim]),
                )
        else:
            found[prefix + name] = (own.clone(), grid(own.shape, [1] * own.ndim))
    return found


FORMS: dict[str, Form] = {"plain": plain, "local shards": local_shards, "halves": halves}

STATES: dict[str, Callable[[Tensor], Tensor]] = {
    "param": lambda w: w.float() * (1 + 2**-13),
    "exp_avg": lambda w: w.float() * 0.125,
    "exp_avg_sq": lambda w: w.float() ** 2,
}


def make_form(
    path: Path,
    model: str | ModelConfig,
    tp: int,
    weights: str = "plain",
    states: str = "plain",
    change: Callable[[State, Boxes], object] = lambda state, boxes: None,
) -> Path:
    """Write a model with a distributed optimizer, weights and states each in a form."""
    legacy = make_checkpoint(
        path / "legacy", model, dtype="bfloat16", naming="fused", multiple=8 * tp
    )
    args = torch.load(rank_files(legacy)[0], weights_only=False)["args"]
    args.transformer_impl = "transformer_engine"
    args.tensor_model_parallel_size, args.make_vocab_size_divisible_by = tp, 8
    arrays, chunks = dist_state(legacy, tp)
    state: State = {key: value for key, value in arrays.items() if not isinstance(value, Tensor)}
    boxes: Boxes = {}

    def add(form: str, prefix: str, key: str, array: Tensor) -> None:
        laid = FORMS[form](prefix, key, array, chunks[key], tp, args.swiglu)
        state.update({name: own for name, (own, _) in laid.items()})
        boxes.update({name: cut for name, (_, cut) in laid.items()})

    for key, array in arrays.items():
        if isinstance(array, Tensor):
            add(weights, "", key, array)
            for name, made in STATES.items():
                old = states == "local shards" and name == "param"
                add(states, f"optimizer.state.{'fp32_param' if old else name}.", key, made(array))
    change(state, boxes)
    groups = [{"lr": 3e-4, "wd_mult": mult, "step": 30} for mult in (1.0, 0.0)]
    kind = "fully_sharded_model_space" if states == "local shards" else "fully_reshardable"
    optimizer = {"optimizer": {"param_groups": groups}, "param_state_sharding_type": kind}
    return save_dist(path / "dist", args, state, boxes, optimizer=optimizer)
