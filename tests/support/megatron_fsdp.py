"""Megatron's own FSDP on a CPU: training and saving a model as ``fsdp_dtensor``, and loading one.

    torchrun --nproc-per-node N megatron_fsdp.py save LEGACY OUT
    torchrun --nproc-per-node N megatron_fsdp.py load LEGACY FSDP OUT

``save`` trains the model in the legacy checkpoint for a few steps in bfloat16, and ``load`` begins
with what is in ``FSDP`` in the place of its weights. Both call the functions with which Megatron-LM
does so (``preprocess_fsdp_dtensor_state_dict`` and ``load_checkpoint``, which are in no package of
0.16), and put every main weight, moment and step whole into a file, from all ranks: ``full.pt`` as
they were saved or loaded, ``next.pt`` after one more step, and ``before.pt`` before loading.

Megatron-FSDP asks for CUDA where it stands for the device alone: its mesh, its streams, and the
name of the current device; and of several tensor ranks, whether a layer is Transformer Engine's,
where none need be there. Where something stands for Transformer Engine (``engine``), layers are its
own, and so is the way in which Adam counts. Nothing of how it cuts, trains and saves is replaced.
torch's Adam has no state of a parameter of which a rank has no rows, where megatron-core counts on
one.
"""

import contextlib
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from fused_adam import FusedAdam
from legacy_checkpoint import load_legacy, model_config, read_arguments
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.device_mesh import DeviceMesh

from flmgrow.trainer.megatron.model import (
    build_model_chunks,
    start_parallel,
    stop_parallel,
    transformer_config,
)

STEPS = 3
ENGINE = find_spec("transformer_engine") is not None
"""Whether layers are Transformer Engine's, and Adam counts as its own does."""

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
    if not ENGINE:
        adapter.TELinear = type("TELinear", (), {})
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


def new_optimizer(model: Any) -> Any:
    """Return the optimizer of a run that has not begun."""
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer

    if ENGINE:
        optimizer.USING_PYTORCH_OPTIMIZER = False
        optimizer.Adam = distrib_optimizer.Adam = FusedAdam
    config = optimizer.OptimizerConfig(
        optimizer="adam", lr=1e-2, weight_decay=0.1, bf16=True, params_dtype=torch.bfloat16,
        use_distributed_optimizer=True,
    )  # fmt: skip
    return optimizer.get_megatron_optimizer(config, [model])


def train(model: Any, optimizer: Any, args: Any, steps: int) -> None:
    """Take a few steps."""
    tokens = torch.arange(args.max_position_embeddings)[None] % args.padded_vocab_size
    for _ in range(steps):
        model.zero_grad_buffer()
        optimizer.zero_grad()
        model(tokens, tokens, None, labels=tokens.flip(1)).float().mean().backward()
        model.finish_grad_sync()
        optimizer.step()
    for each in getattr(optimizer, "chained_optimizers", [optimizer]):
        complete_states(each.optimizer)


def complete_states(adam: Any) -> None:
    """Give a parameter of which this rank has no rows the empty state that others have of it."""
    counts = [state["step"] for state in adam.state.values() if "step" in state]
    for group in adam.param_groups:
        for parameter in group["params"]:
            if not adam.state.get(parameter):
                assert not parameter.to_local().numel()
                empty = {state: torch.zeros_like(parameter) for state in STATES}
                counted = {"step": counts[0].clone()} if counts else {}
                adam.state[parameter] = {**counted, **empty}


def optimizer_state(optimizer: Any, *, loading: bool = False) -> dict[str, Any]:
    """Return the optimizer's part of what is saved or loaded, in one order on all ranks."""
    if loading:
        for each in getattr(optimizer, "chained_optimizers", [optimizer]):
            begin = each._init_optimizer_states_with_dummy_values

            def whole(begin: Any = begin, adam: Any = each.optimizer) -> None:
                begin()
                complete_states(adam)

            each._init_optimizer_states_with_dummy_values = whole
    sharding = {"distrib_optim_sharding_type": "fsdp_dtensor"}
    states: dict[str, Any] = optimizer.sharded_state_dict({}, is_loading=loading, metadata=sharding)
    states["state"] = dict(sorted(states["state"].items()))
    return states


def write_whole(model: Any, optimizer: Any, path: Path) -> None:
    """Write every main weight, moment and step whole, by the names of the model alone, and the
    settings of the param groups.
    """

    def whole(value: Any) -> torch.Tensor:
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, value.to_local())
        return torch.cat(parts)

    def by_name(values: dict[str, Any]) -> dict[str, Any]:
        tensors = {k: v for k, v in sorted(values.items()) if isinstance(v, torch.Tensor)}
        return {name.split("module.")[-1]: whole(value) for name, value in tensors.items()}

    weights = model.module.state_dict_for_save_checkpoint()  # first: it names the parameters
    states = optimizer_state(optimizer)
    moments = {kind: {name: own[kind] for name, own in states["state"].items()} for kind in STATES}
    found: dict[str, Any] = {
        "param": by_name(weights),
        **{kind: by_name(own) for kind, own in moments.items()},
    }
    counted = states["param_to_group_meta"]  # by groups, where parameters have no count
    found["step"] = {
        name.split("module.")[-1]: own["step"].clone()
        if "step" in own
        else torch.tensor(counted[name].get("step", 0))
        for name, own in states["state"].items()
    }
    found["groups"] = [
        {key: value for key, value in group.items() if key not in ("params", "step")}
        for group in optimizer.param_groups
    ]
    if torch.distributed.get_rank() == 0:
        torch.save(found, path)


def asked_for(model: Any, optimizer: Any, args: Any, *, loading: bool = False) -> dict[str, Any]:
    """Return what Megatron-LM saves, or loads into, of a run without its random number state."""
    return {
        "args": args,
        "checkpoint_version": 3.0,
        "iteration": args.iteration,
        "model": model.state_dict_for_save_checkpoint(),
        "optimizer": optimizer_state(optimizer, loading=loading),
        "opt_param_scheduler": {"max_lr": 1e-2, "num_steps": STEPS},
    }


def as_torch_has_it(state: dict[str, Any], model: Any, args: Any) -> dict[str, Any]:
    """Return the state with gate and up apart, and its arrays told by their rows, as
    ``preprocess_fsdp_dtensor_state_dict`` does.
    """
    from megatron.core.distributed.fsdp.src.megatron_fsdp.uneven_dtensor import (
        preprocess_state_dict_for_uneven_dtensor,
    )
    from megatron.core.transformer.fsdp_dtensor_checkpoint import (
        handle_fp8_extra_state_case,
        handle_swiglu_in_state_dict,
    )

    state = {**state}
    handle_fp8_extra_state_case(state["model"])
    if args.swiglu:
        state["model"], state["optimizer"] = handle_swiglu_in_state_dict(
            model, state["model"], state["optimizer"]
        )
    preprocess_state_dict_for_uneven_dtensor(state)
    return state


def save(model: Any, optimizer: Any, args: Any, out: Path) -> None:
    """Save as ``save_checkpoint`` does, with the model unwrapped to Megatron-FSDP."""
    state = as_torch_has_it(asked_for(model.module, optimizer, args), model.module, args)
    state["rng_state"] = {"(0, 0)": [{"torch_rng_state": torch.get_rng_state()}]}
    state["num_floating_point_operations_so_far"] = 0
    folder = out / f"iter_{args.iteration:07d}"
    state_dict_saver.save(state, storage_writer=FileSystemWriter(folder))
    if torch.distributed.get_rank() == 0:
        (out / "latest_checkpointed_iteration.txt").write_text(str(args.iteration))


def load(model: Any, optimizer: Any, args: Any, source: Path, out: Path) -> None:
    """Load as ``load_checkpoint`` does, strictly and with ``--no-load-rng``."""
    raw = asked_for(model.module, optimizer, args, loading=True)
    write_whole(model, optimizer, out / "before.pt")
    kept = {key: {**raw[key]} for key in ("model", "optimizer")}
    state = as_torch_has_it(raw, model.module, args)
    state_dict_loader.load(
        state,
        storage_reader=FileSystemReader(source / f"iter_{args.iteration:07d}"),
        planner=DefaultLoadPlanner(allow_partial_load=False),
    )
    assert state["args"].hidden_size == args.hidden_size
    assert state["opt_param_scheduler"]["num_steps"] == STEPS
    model.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])


def build(args: Any) -> Any:
    """Return this rank's empty model."""
    config = model_config(args)
    start_parallel(tp=args.tensor_model_parallel_size, pp=1, vpp=None)
    settings = transformer_config(
        config, tp=args.tensor_model_parallel_size, pp=1, vpp=None, dtype=args.params_dtype
    )
    settings.transformer_impl = args.transformer_impl
    (model,) = build_model_chunks(config, settings, args.padded_vocab_size)
    return model


def main(action: str, legacy: Path, *paths: Path) -> None:
    out = paths[-1]
    args = read_arguments(legacy)
    args.ckpt_format, args.use_megatron_fsdp = "fsdp_dtensor", True
    args.use_distributed_optimizer = True
    args.transformer_impl = "transformer_engine" if ENGINE else "local"
    stand_in_for_cuda()
    bare = build(args)
    load_legacy(legacy, [bare])
    model = wrapped(bare)
    optimizer = new_optimizer(model)
    if action == "save":
        train(model, optimizer, args, STEPS)
        save(model, optimizer, args, out)
    else:
        load(model, optimizer, args, paths[0], out)
    write_whole(model, optimizer, out / "full.pt")
    train(model, optimizer, args, 1)
    write_whole(model, optimizer, out / "next.pt")
    stop_parallel()


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
