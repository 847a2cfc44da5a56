"""megatron-core's side of torch_dist: save a legacy checkpoint as one, and load one strictly.

    torchrun --nproc-per-node N tests/megatron_dist.py save LEGACY OUT
    torchrun --nproc-per-node N tests/megatron_dist.py save-all LEGACY OUT
    torchrun --nproc-per-node N tests/megatron_dist.py load TORCH_DIST TP PP VPP LEGACY_OUT

``save-all`` saves the optimizer, too, a distributed one as fully reshardable. ``load`` lets
megatron-core read the checkpoint in its own layout, and saves what it got in the legacy format, so
that a test can compare weights bit for bit. A megatron-core that knows ``integrity.json`` is told
to write it, and to check it where there is one.
"""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_megatron  # noqa: F401 - prepares megatron-core for the CPU
import torch
from legacy_checkpoint import Run, load_legacy, model_config, read_arguments, save_legacy
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.validation import StrictHandling
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from tiny_steps import optimizer_and_schedule

from flmgrow.trainer.model import (
    build_model_chunks,
    start_parallel,
    stop_parallel,
    transformer_config,
)

CONTENT = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}


def with_integrity(function: Callable[..., Any]) -> dict[str, bool]:
    """Return the option that asks for ``integrity.json``, if ``function`` has it."""
    known = "verify_integrity" in inspect.signature(function).parameters
    return {"verify_integrity": True} if known else {}


def build(args: Any, tp: int, pp: int, vpp: int | None) -> list[Any]:
    """Return this rank's empty model chunks."""
    config = model_config(args)
    start_parallel(tp=tp, pp=pp, vpp=vpp)
    settings = transformer_config(config, tp=tp, pp=pp, vpp=vpp, dtype=args.params_dtype)
    models: list[Any] = build_model_chunks(config, settings, args.padded_vocab_size)
    return models


def sharded(models: list[Any]) -> dict[str, Any]:
    """Return the models' sharded state, as Megatron-LM asks for it."""
    names = ["model"] if len(models) == 1 else [f"model{chunk}" for chunk in range(len(models))]
    return {
        name: model.sharded_state_dict(metadata=CONTENT)
        for name, model in zip(names, models, strict=True)
    }


def loaded_optimizer(source: Path, args: Any, models: list[Any]) -> tuple[Any, Any]:
    """Return optimizer and scheduler as the legacy checkpoint has them; loads ``models``, too."""
    half = args.params_dtype == torch.bfloat16
    run = Run(
        source, tp=args.tensor_model_parallel_size, pp=args.pipeline_model_parallel_size, vpp=None,
        pipeline_layers=None, world=torch.distributed.get_world_size(), steps=args.iteration,
        stop=args.iteration, seed=1, optimizer=True, bf16=half,
        distributed=args.use_distributed_optimizer,
    )  # fmt: skip
    reduction = DistributedDataParallelConfig(
        grad_reduce_in_fp32=half, use_distributed_optimizer=run.distributed
    )
    wrapped = [DistributedDataParallel(model.config, reduction, model) for model in models]
    optimizer, scheduler = optimizer_and_schedule(wrapped, run)
    load_legacy(source, models, optimizer, scheduler)
    return optimizer, scheduler


def save(source: Path, out: Path, everything: bool) -> None:
    """Save the legacy checkpoint ``source`` as torch_dist, in its own layout."""
    args = read_arguments(source)
    layout = (
        args.tensor_model_parallel_size,
        args.pipeline_model_parallel_size,
        args.virtual_pipeline_model_parallel_size,
    )
    models = build(args, *layout)
    if everything:
        optimizer, scheduler = loaded_optimizer(source, args, models)
        content: dict[str, Any] = dict(CONTENT)
        if args.use_distributed_optimizer:
            content["distrib_optim_sharding_type"] = "fully_reshardable"
        state = sharded(models)
        state["optimizer"] = optimizer.sharded_state_dict(state, metadata=content)
        state["opt_param_scheduler"] = scheduler.state_dict()
    else:
        load_legacy(source, models)
        state = sharded(models)
    args.ckpt_format = "torch_dist"
    folder = out / f"iter_{args.iteration:07d}"
    if torch.distributed.get_rank() == 0:
        folder.mkdir(parents=True)
        (out / "latest_checkpointed_iteration.txt").write_text(str(args.iteration))
    torch.distributed.barrier()
    common = {"args": args, "checkpoint_version": 3.0, "iteration": args.iteration}
    options = {"content_metadata": CONTENT, **with_integrity(dist_checkpointing.save)}
    dist_checkpointing.save({**common, **state}, str(folder), **options)
    stop_parallel()


def load(source: Path, tp: int, pp: int, vpp: int | None, out: Path) -> None:
    """Load torch_dist strictly in the given layout, and save what was loaded as legacy."""
    folder = source / f"iter_{int((source / 'latest_checkpointed_iteration.txt').read_text()):07d}"
    args = dist_checkpointing.load_common_state_dict(str(folder))["args"]
    args.tensor_model_parallel_size, args.pipeline_model_parallel_size = tp, pp
    args.virtual_pipeline_model_parallel_size = vpp
    models = build(args, tp, pp, vpp)
    wanted = sharded(models)
    options: dict[str, Any] = {"strict": StrictHandling.RAISE_ALL}
    if (folder / "integrity.json").exists():
        options |= with_integrity(dist_checkpointing.load)
    loaded = dist_checkpointing.load(wanted, str(folder), **options)
    for name, model in zip(wanted, models, strict=True):
        model.load_state_dict(loaded[name], strict=True)
    save_legacy(out, args, models)
    stop_parallel()


if __name__ == "__main__":
    command, source, *rest = sys.argv[1:]
    if command.startswith("save"):
        save(Path(source), Path(rest[0]), command == "save-all")
    else:
        tp, pp, vpp = (int(number) for number in rest[:3])
        load(Path(source), tp, pp, vpp if vpp > 1 else None, Path(rest[3]))
