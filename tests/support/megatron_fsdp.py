"""Megatron's own FSDP, training and saving a model on a CPU as ``fsdp_dtensor``.

    torchrun --nproc-per-node N megatron_fsdp.py LEGACY OUT

The model in the legacy checkpoint is trained for a few steps in bfloat16 and saved by the functions
with which Megatron-LM does (``preprocess_fsdp_dtensor_state_dict``, which is in no package of
0.16). Beside it, ``full.pt`` has every main weight and moment whole, put together from its ranks.

Megatron-FSDP asks for CUDA where it stands for the device alone: its mesh, its streams, and the
name of the current device. Nothing of how it cuts, trains and saves is replaced. torch's Adam has
no state of a parameter of which a rank has no rows, where megatron-core counts on one.
"""

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
from legacy_checkpoint import load_legacy, read_arguments
from megatron_dist import build
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.device_mesh import DeviceMesh

from flmgrow.trainer.megatron.model import stop_parallel

STEPS = 3
STATES = ("exp_avg", "exp_avg_sq")


class Stream:
    """Nothing waits on a CPU: what a stream or an event is asked for has happened."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: self


class CpuTorch:
    """torch, to a module in which every device is the CPU."""

    @staticmethod
    def device(*_: Any) -> torch.device:
        return torch.device("cpu")

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class CpuMesh(DeviceMesh):
    """A mesh of groups, on the CPU whatever is asked for."""

    @staticmethod
    def from_group(group: Any, device_type: str, *more: Any, **options: Any) -> DeviceMesh:
        del device_type
        return DeviceMesh.from_group(group, "cpu", *more, **options)


def stand_in_for_cuda() -> None:
    from megatron.core.distributed.fsdp import mcore_fsdp_adapter
    from megatron.core.distributed.fsdp.src.megatron_fsdp import megatron_fsdp

    adapter: Any = mcore_fsdp_adapter
    adapter.DeviceMesh = CpuMesh
    wrapper: Any = megatron_fsdp
    wrapper.torch = CpuTorch()
    cuda: Any = torch.cuda
    cuda.Stream = cuda.Event = Stream
    cuda.current_stream = lambda *_: Stream()
    cuda.stream = lambda *_: contextlib.nullcontext()
    cuda.synchronize = cuda.empty_cache = lambda *_: None
    tensor: Any = torch.Tensor
    tensor.record_stream = lambda *_: None


def wrapped(model: Any) -> Any:
    """Return a bfloat16 model under Megatron's FSDP, which shards weights, gradients and states."""
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.distributed.fsdp.mcore_fsdp_adapter import FullyShardedDataParallel
    from megatron.core.transformer.module import Float16Module

    settings = DistributedDataParallelConfig(
        use_megatron_fsdp=True,
        use_distributed_optimizer=True,
        data_parallel_sharding_strategy="optim_grads_params",
        overlap_grad_reduce=True,
        overlap_param_gather=True,
        grad_reduce_in_fp32=True,
        gradient_reduce_div_fusion=False,  # gloo does not multiply as it sums
    )
    half = Float16Module(model.config, model)
    return FullyShardedDataParallel(model.config, settings, half, device=torch.device("cpu"))


def train(model: Any, vocab: int, length: int) -> Any:
    """Take a few steps, and return the optimizer."""
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    config = OptimizerConfig(
        optimizer="adam", lr=1e-2, weight_decay=0.1, bf16=True, params_dtype=torch.bfloat16,
        use_distributed_optimizer=True,
    )  # fmt: skip
    optimizer = get_megatron_optimizer(config, [model])
    tokens = torch.arange(length)[None] % vocab
    for _ in range(STEPS):
        model.zero_grad_buffer()
        optimizer.zero_grad()
        model(tokens, tokens, None, labels=tokens.flip(1)).float().mean().backward()
        model.finish_grad_sync()
        optimizer.step()
    return optimizer


def complete_states(adam: Any) -> None:
    """Give a parameter of which this rank has no rows the empty state that others have of it."""
    for group in adam.param_groups:
        for parameter in group["params"]:
            if not adam.state.get(parameter):
                assert not parameter.to_local().numel()
                empty = {state: torch.zeros_like(parameter) for state in STATES}
                adam.state[parameter] = {"step": torch.tensor(float(STEPS)), **empty}


def gathered(weights: dict[str, Any], states: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return every main weight and moment whole, by the names of the model alone: the rows of all
    ranks, one rank after the other.
    """

    def whole(value: Any) -> torch.Tensor:
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, value.to_local())
        return torch.cat(parts)

    def by_name(values: dict[str, Any]) -> dict[str, Any]:
        tensors = {k: v for k, v in sorted(values.items()) if isinstance(v, torch.Tensor)}
        return {name.split("module.")[-1]: whole(value) for name, value in tensors.items()}

    moments = {kind: {name: own[kind] for name, own in states.items()} for kind in STATES}
    return {"param": by_name(weights), **{kind: by_name(own) for kind, own in moments.items()}}


def save(model: Any, optimizer: Any, args: Any, out: Path) -> None:
    """Save as Megatron-LM's ``save_checkpoint`` does, with the model unwrapped to Megatron-FSDP."""
    from megatron.core.distributed.fsdp.src.megatron_fsdp.uneven_dtensor import (
        preprocess_state_dict_for_uneven_dtensor,
    )
    from megatron.core.transformer.fsdp_dtensor_checkpoint import (
        handle_fp8_extra_state_case,
        handle_swiglu_in_state_dict,
    )

    sharding = {"distrib_optim_sharding_type": "fsdp_dtensor"}
    weights = model.state_dict_for_save_checkpoint()
    states = optimizer.sharded_state_dict({}, metadata=sharding)
    states["state"] = dict(sorted(states["state"].items()))
    full = gathered(weights, states["state"])
    handle_fp8_extra_state_case(weights)
    if args.swiglu:
        weights, states = handle_swiglu_in_state_dict(model, weights, states)
    state = {
        "args": args,
        "checkpoint_version": 3.0,
        "iteration": args.iteration,
        "model": weights,
        "optimizer": states,
        "opt_param_scheduler": {"max_lr": 1e-2, "num_steps": STEPS},
        "rng_state": {"(0, 0)": [{"torch_rng_state": torch.get_rng_state()}]},
        "num_floating_point_operations_so_far": 0,
    }
    preprocess_state_dict_for_uneven_dtensor(state)
    folder = out / f"iter_{args.iteration:07d}"
    state_dict_saver.save(state, storage_writer=FileSystemWriter(folder))
    if torch.distributed.get_rank() == 0:
        (out / "latest_checkpointed_iteration.txt").write_text(str(args.iteration))
        torch.save(full, out / "full.pt")


if __name__ == "__main__":
    source, out = map(Path, sys.argv[1:])
    args = read_arguments(source)
    args.ckpt_format, args.use_megatron_fsdp = "fsdp_dtensor", True
    args.use_distributed_optimizer = True
    stand_in_for_cuda()
    models = build(args, 1, 1, None)
    load_legacy(source, models)
    model = wrapped(models[0])
    optimizer = train(model, args.padded_vocab_size, args.max_position_embeddings)
    for each in getattr(optimizer, "chained_optimizers", [optimizer]):
        complete_states(each.optimizer)
    save(model.module, optimizer, args, out)
    stop_parallel()
