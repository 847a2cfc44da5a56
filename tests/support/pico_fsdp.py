"""Tiny ``fsdp_dtensor`` checkpoints: pico models with Adam's state, saved by torch itself.

The names, the halves and the cuts between rows are what megatron-core 0.16 was seen to save
(``megatron_fsdp.py`` has it do so); the files are torch's own. Nothing here is computed as flmgrow
does.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dcp_folders
import torch
from damage import rank_files
from pico import ITERATION, make_checkpoint
from pico_forms import STATES
from torch import Tensor

from flmgrow.model.config import ModelConfig

State = dict[str, Any]
Boxes = dict[str, list[dcp_folders.Box]]

WRAPPED = {"bfloat16": "module.module.module.", "float32": "module.module."}
"""What a model is wrapped in, before its names in the optimizer."""

STEP = 30


def rows_of(shape: torch.Size, ranks: int, columns: int = 1) -> list[dcp_folders.Box]:
    """The chunks of an array that ranks share by rows, one unevenly more than the last; of each
    tensor rank's ``columns``, if they are cut.
    """
    rows = shape[0]
    weights = range(1, ranks + 1)
    ends = [rows * sum(weights[: n + 1]) // sum(weights) for n in range(ranks)]
    cuts = sorted({0, *ends})
    spans = list(itertools.pairwise(cuts))
    rest = dcp_folders.grid(shape[1:], [columns] * (len(shape) - 1))
    return [((low, *at), (high - low, *size)) for low, high in spans for at, size in rest]


def halves(key: str, array: Tensor, gated: bool) -> dict[str, Tensor]:
    """What Megatron-FSDP makes of an array: gate and up apart."""
    if gated and ".linear_fc1." in key and "layer_norm" not in key:
        return {f"{key}_{end}": half for end, half in zip("wv", array.chunk(2), strict=True)}
    return {key: array}


def fsdp_state(content: dict[str, Any], ranks: int, tp: int = 1) -> tuple[State, Boxes]:
    """Return what a run with a one-rank checkpoint's ``content`` saves, and its chunks."""
    args = content["args"]
    dtype = str(args.params_dtype).removeprefix("torch.")
    state: State = {"args": args, "checkpoint_version": 3.0, "iteration": ITERATION}
    boxes: Boxes = {}
    for key, value in content["model"].items():
        if not isinstance(value, Tensor):
            continue  # Megatron-FSDP leaves every _extra_state out
        split = tp if key.endswith(("linear_proj.weight", "linear_fc2.weight")) else 1
        for name, part in halves(key, value, args.swiglu).items():
            stem = f"optimizer.state.{WRAPPED[dtype]}{name}"
            for kind, make in STATES.items():
                place = f"model.module.{name}" if kind == "param" else f"{stem}.{kind}"
                state[place] = make(part)
                boxes[place] = rows_of(part.shape, ranks, split)
            state[f"{stem}.step"] = torch.tensor(float(STEP))
        group = {"lr": 3e-4, "wd_mult": float(value.ndim > 1)}
        for setting, own in group.items():
            state[f"optimizer.param_to_group_meta.{WRAPPED[dtype]}{key}.{setting}"] = own
    state["opt_param_scheduler"] = {"max_lr": 3e-4, "num_steps": 960}
    state["rng_state"] = {"(0, 0)": [{"torch_rng_state": torch.zeros(8), "random_rng_state": (3,)}]}
    state["num_floating_point_operations_so_far"] = 7
    return state, boxes


def make_fsdp(
    path: Path,
    model: str | ModelConfig,
    ranks: int = 3,
    tp: int = 1,
    change: Callable[[State, Boxes], object] = lambda state, boxes: None,
    **options: Any,
) -> Path:
    """Write a pico model as ``fsdp_dtensor`` at ``path`` and return it.

    ``ranks`` share its rows, ``tp`` its columns. ``change`` has the last word on the state and its
    chunks.
    """
    options = {"dtype": "bfloat16", "naming": "fused", "multiple": 8 * tp, **options}
    legacy = make_checkpoint(path / "legacy", model, **options)
    content = torch.load(rank_files(legacy)[0], weights_only=False)
    args = content["args"]
    args.ckpt_format, args.use_megatron_fsdp = "fsdp_dtensor", True
    args.transformer_impl = "local" if options["naming"] == "local" else "transformer_engine"
    args.tensor_model_parallel_size, args.make_vocab_size_divisible_by = tp, 8
    args.use_distributed_optimizer = True
    state, boxes = fsdp_state(content, ranks, tp)
    change(state, boxes)
    folder = path / "fsdp" / f"iter_{ITERATION:07d}"
    folder.mkdir(parents=True)
    dcp_folders.save(folder, state, boxes, files=2)
    (path / "fsdp" / "latest_checkpointed_iteration.txt").write_text(str(ITERATION))
    return path / "fsdp"
