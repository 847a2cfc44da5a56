"""Tiny distributed checkpoints: pico models, saved by torch itself in megatron-core's form."""

import re
from pathlib import Path
from typing import Any

import dcp_folders
import torch
from pico import ITERATION, make_checkpoint
from torch import Tensor

from flmgrow.model.config import ModelConfig

SHARDED = {
    "linear_qkv.weight": 1,
    "linear_qkv.bias": 1,
    "linear_fc1.weight": 1,
    "linear_fc1.bias": 1,
}
SHARDED |= {"linear_proj.weight": 2, "linear_fc2.weight": 2}
SHARDED |= {"word_embeddings.weight": 0, "output_layer.weight": 0}


def global_arrays(legacy: Path) -> dict[str, Tensor]:
    """Return the whole arrays of a one-rank legacy checkpoint, layers stacked."""
    (file,) = legacy.rglob("*.pt")
    model = torch.load(file, weights_only=False)["model"]
    arrays: dict[str, Any] = {}
    for key, value in model.items():
        if isinstance(value, Tensor):
            match = re.fullmatch(r"decoder\.layers\.\d+\.(.*)", key)
            if match:
                arrays.setdefault(f"decoder.layers.{match[1]}", []).append(value)
            else:
                arrays[key] = value
    return {k: torch.stack(v) if isinstance(v, list) else v for k, v in arrays.items()}


def _boxes(key: str, array: Tensor, tp: int, gated: bool) -> list[dcp_folders.Box]:
    """The chunks that so many tensor ranks save, one layer each."""
    layered = key.startswith("decoder.layers.")
    parts = [array.shape[0] if layered and place == 0 else 1 for place in range(array.ndim)]
    split = next((dim for name, dim in SHARDED.items() if key.endswith(name)), None)
    if split is not None:
        parts[split] = 2 * tp if gated and "linear_fc1" in key else tp
    return dcp_folders.grid(array.shape, parts)


Boxes = dict[str, list[dcp_folders.Box]]


def dist_state(legacy: Path, tp: int) -> tuple[dict[str, Any], Boxes]:
    """Return a one-rank checkpoint's model as a distributed state, and the chunks it lies in."""
    (file,) = legacy.rglob("*.pt")
    args = torch.load(file, weights_only=False)["args"]
    state: dict[str, Any] = dict(global_arrays(legacy))
    boxes = {key: _boxes(key, array, tp, args.swiglu) for key, array in state.items()}
    for layer in range(args.num_layers):
        name = f"decoder.layers.mlp.linear_fc1._extra_state/shard_{layer}_{args.num_layers}"
        state[name] = [None]
    return state, boxes


def save_dist(
    root: Path,
    args: Any,
    state: dict[str, Any],
    boxes: Boxes,
    in_shard: bool = False,
    **common: Any,
) -> Path:
    """Let torch write ``state`` as ``torch_dist`` at ``root`` and return that.

    The common part lies ``in_shard``, as megatron-core 0.19 has it, or in ``common.pt``.
    """
    folder = root / f"iter_{ITERATION:07d}"
    folder.mkdir(parents=True)
    common |= {"args": args, "checkpoint_version": 3.0, "iteration": ITERATION}
    common["content_metadata"] = {"singleton_local_shards": False}
    if in_shard:
        state["common_state/shard_0_1"] = [common]
    else:
        torch.save(common, folder / "common.pt")
    dcp_folders.save(folder, state, boxes, files=2, flatten=False)
    (root / "latest_checkpointed_iteration.txt").write_text(str(ITERATION))
    return root


def make_dist_checkpoint(
    path: Path, model: str | ModelConfig, tp: int = 1, in_shard: bool = False, **options: Any
) -> Path:
    """Write a pico model as ``torch_dist`` of ``tp`` tensor ranks at ``path`` and return it.

    The common part lies ``in_shard`` or not: see :func:`save_dist`.
    """
    legacy = make_checkpoint(path / "legacy", model, naming="fused", **options)
    (file,) = legacy.rglob("*.pt")
    args = torch.load(file, weights_only=False)["args"]
    args.transformer_impl = "transformer_engine"
    return save_dist(path / "dist", args, *dist_state(legacy, tp), in_shard=in_shard)
