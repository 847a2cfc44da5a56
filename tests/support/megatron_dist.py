"""megatron-core's side of torch_dist: save a legacy checkpoint as one, and load one strictly.

    torchrun --nproc-per-node N megatron_dist.py save LEGACY OUT
    torchrun --nproc-per-node N megatron_dist.py save-all LEGACY OUT [SHARDING]
    torchrun --nproc-per-node N megatron_dist.py load TORCH_DIST TP PP VPP LEGACY_OUT
    torchrun --nproc-per-node N megatron_dist.py load-all TORCH_DIST TP PP VPP LEGACY_OUT

``save-all`` and ``load-all`` mean the optimizer, too; a distributed one is saved in the given
sharding (fully reshardable if none is given). Loading lets megatron-core read the checkpoint in its
own layout, and saves what it got in the legacy format, so that a test can compare weights and
states bit for bit. A megatron-core that knows ``integrity.json`` is told to write it, and to check
it where there is one.
"""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from legacy_checkpoint import Run, load_legacy, model_config, read_arguments, save_legacy
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.validation import StrictHandling
from tiny_megatron import saved_pipeline_layers  # the module prepares megatron-core for the CPU
from tiny_steps import optimizer_and_schedule, replicated

from flmgrow.trainer.megatron.model import (
    PipelineLayers,
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


def build(
    args: Any, tp: int, pp: int, vpp: int | None, layers: PipelineLayers | None = None
) -> list[Any]:
    """Return this rank's empty model chunks, of an even pipeline or of one with such ``layers``."""
    config = model_config(args)
    start_parallel(tp=tp, pp=pp, vpp=vpp)
    settings = transformer_config(
        config, tp=tp, pp=pp, vpp=vpp, pipeline_layers=layers, dtype=args.params_dtype
    )
    models: list[Any] = build_model_chunks(config, settings, args.padded_vocab_size)
    return models


def sharded(models: list[Any]) -> dict[str, Any]:
    """Return the models' sharded state, as Megatron-LM asks for it."""
    names = ["model"] if len(models) == 1 else [f"model{chunk}" for chunk in range(len(models))]
    return {
        name: model.sharded_state_dict(metadata=CONTENT)
        for name, model in zip(names, models, strict=True)
    }


def new_optimizer(args: Any, models: list[Any], out: Path) -> tuple[Any, Any]:
    """Return the optimizer and the scheduler of a run with ``args`` that has not begun."""
    half = args.params_dtype == torch.bfloat16
    run = Run(
        out, tp=args.tensor_model_parallel_size, pp=args.pipeline_model_parallel_size, vpp=None,
        pipeline_layers=None, world=torch.distributed.get_world_size(), steps=args.iteration,
        stop=args.iteration, seed=1, optimizer=True, bf16=half,
        distributed=args.use_distributed_optimizer,
        bucket_size=getattr(args, "ddp_bucket_size", None),
    )  # fmt: skip
    optimizer, scheduler = optimizer_and_schedule(replicated(models, run), run)
    return optimizer, scheduler


def save(source: Path, out: Path, sharding: str | None) -> None:
    """Save the legacy checkpoint ``source`` as torch_dist, in its own layout.

    ``sharding`` is that of a distributed optimizer; None saves no optimizer at all.
    """
    args = read_arguments(source)
    layout = (
        args.tensor_model_parallel_size,
        args.pipeline_model_parallel_size,
        args.virtual_pipeline_model_parallel_size,
    )
    models = build(args, *layout, saved_pipeline_layers(args))
    content: dict[str, Any] = dict(CONTENT)
    if sharding:
        optimizer, scheduler = new_optimizer(args, models, out)
        load_legacy(source, models, optimizer, scheduler)
        if args.use_distributed_optimizer:
            content["distrib_optim_sharding_type"] = sharding
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
    options = {"content_metadata": content, **with_integrity(dist_checkpointing.save)}
    dist_checkpointing.save({**common, **state}, str(folder), **options)
    stop_parallel()


def load(source: Path, tp: int, pp: int, vpp: int | None, out: Path, everything: bool) -> None:
    """Load torch_dist strictly in the given layout, and save what was loaded as legacy."""
    folder = source / f"iter_{int((source / 'latest_checkpointed_iteration.txt').read_text()):07d}"
    args = dist_checkpointing.load_common_state_dict(str(folder))["args"]
    args.tensor_model_parallel_size, args.pipeline_model_parallel_size = tp, pp
    args.virtual_pipeline_model_parallel_size = vpp
    models = build(args, tp, pp, vpp)
    both: tuple[Any, Any] = (None, None)
    if everything:
        both = new_optimizer(args, models, out)
    optimizer, scheduler = both
    wanted = sharded(models)
    names = list(wanted)
    if everything:
        content = dist_checkpointing.load_content_metadata(str(folder))
        state = optimizer.sharded_state_dict(dict(wanted), is_loading=True, metadata=content)
        wanted["optimizer"] = state
    options: dict[str, Any] = {"strict": StrictHandling.RAISE_ALL}
    if (folder / "integrity.json").exists():
        options |= with_integrity(dist_checkpointing.load)
    loaded = dist_checkpointing.load(wanted, str(folder), **options)
    for name, model in zip(names, models, strict=True):
        model.load_state_dict(loaded[name], strict=True)
    if everything:
        optimizer.load_state_dict(loaded["optimizer"])
        scheduler.load_state_dict(loaded["opt_param_scheduler"])
    save_legacy(out, args, models, optimizer, scheduler)
    stop_parallel()


if __name__ == "__main__":
    command, source, *rest = sys.argv[1:]
    if command.startswith("save"):
        sharding = rest[1] if rest[1:] else "fully_reshardable"
        save(Path(source), Path(rest[0]), sharding if command == "save-all" else None)
    else:
        tp, pp, vpp = (int(number) for number in rest[:3])
        everything = command == "load-all"
        load(Path(source), tp, pp, vpp if vpp > 1 else None, Path(rest[3]), everything)
