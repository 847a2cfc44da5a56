"""Running megatron-core on a CPU, by patches of torch and of megatron-core.

megatron-core assumes CUDA in some forty places; tests and small demos have only a CPU. Nearly all
of them are incidental: ``device="cuda"`` in a buffer, the current device, the random state. This
file answers each with its CPU counterpart, so one trainer serves both. Call :func:`install` before
the first import of megatron (the trainer does so in ``core.py``) and :func:`patch_megatron` right
after it; where CUDA is available both do nothing. Context parallelism and fused kernels stay
unavailable.

A patch is one small function whose comment says what would go wrong without it. Some of what goes
wrong is silent: see :func:`_keep_outputs_being_sent`.
"""

import importlib.util
import logging
import sys
import types
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

Function = Callable[..., Any]


@cache
def install() -> bool:
    """Prepare torch for megatron-core on CPU; return False, changing nothing, where CUDA is."""
    if torch.cuda.is_available():
        return False
    _current_device_is_cpu()
    _there_is_no_stream()
    _random_state_is_the_cpu_generator()
    _new_tensors_named_cuda_are_made_on_cpu()
    _moving_to_cuda_stays_on_cpu()
    _types_are_named_as_on_cuda()
    _do_not_compile()
    _stand_in_for_triton_kernels()
    return True


@cache
def patch_megatron() -> None:
    """Repair in megatron-core itself what :func:`install` cannot reach."""
    if torch.cuda.is_available():
        return
    _megatron_random_state()
    _keep_outputs_being_sent()
    _expect_one_generator()
    _count_steps_of_each_parameter()
    _begin_state_before_the_first_step()
    _load_shards_into_torchs_adam()


def _replace(owner: Any, name: str, new: Any) -> Any:
    """Put ``new`` in place of ``owner.name`` and return what was there."""
    old = getattr(owner, name, None)
    setattr(owner, name, new)
    return old


def _itself(value: Any, *_: Any, **__: Any) -> Any:
    return value


def _current_device_is_cpu() -> None:
    # Receive buffers, gathers and gradient buffers are made on torch.cuda.current_device().
    _replace(torch.cuda, "current_device", lambda: torch.device("cpu"))
    _replace(torch.cuda, "device_count", lambda: 1)
    # One function each: torch's compiler, which optimizers load, tells functions apart by identity.
    for name in ("set_device", "synchronize", "empty_cache"):
        _replace(torch.cuda, name, lambda *_, **__: None)


def _there_is_no_stream() -> None:
    # Gradient buffers (0.19) ask for the current stream, for events that only CUDA graphs record.
    _replace(torch.cuda, "current_stream", lambda *_: None)


def _random_state_is_the_cpu_generator() -> None:
    # Megatron keeps several named "CUDA" random states and swaps them in and out of one generator.
    # With the CPU generator in its place, tensor-parallel ranks still draw what they should.
    def seed(value: int) -> None:
        torch.default_generator.manual_seed(int(value))

    def set_state(state: torch.Tensor, *_: Any, **__: Any) -> None:
        torch.set_rng_state(state)

    def get_state(*_: Any, **__: Any) -> torch.Tensor:
        return torch.get_rng_state()

    for owner in (torch.cuda, torch.cuda.random):
        _replace(owner, "manual_seed", seed)
        _replace(owner, "manual_seed_all", seed)
        _replace(owner, "get_rng_state", get_state)
        _replace(owner, "set_rng_state", set_state)


def _new_tensors_named_cuda_are_made_on_cpu() -> None:
    # Schedules, causal masks and gradient norms say device="cuda" in words.
    def on_cpu(make: Function) -> Function:
        def made(*args: Any, **kwargs: Any) -> Any:
            if str(kwargs.get("device")).startswith("cuda"):
                kwargs["device"] = "cpu"
            return make(*args, **kwargs)

        return made

    # ``with torch.device("meta")`` lists the functions it acts on when it is first used. Were ours
    # on that list, it would act on none of torch's, and transformers would load rubbish.
    with torch.device("cpu"):
        torch.empty(0)
    for name in ("zeros", "ones", "empty", "full", "tensor", "arange", "zeros_like", "empty_like"):
        _replace(torch, name, on_cpu(getattr(torch, name)))


def _moving_to_cuda_stays_on_cpu() -> None:
    # A tied embedding on the last pipeline stage is moved with .cuda().
    _replace(torch.Tensor, "cuda", _itself)
    _replace(torch.nn.Module, "cuda", _itself)


def _types_are_named_as_on_cuda() -> None:
    # Gradient clipping and the optimizers compare Tensor.type() with "torch.cuda.FloatTensor".
    def type_name(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return named(tensor, *args, **kwargs)
        return named(tensor).replace("torch.", "torch.cuda.")

    named = _replace(torch.Tensor, "type", type_name)


def _do_not_compile() -> None:
    # Megatron marks one-line functions for torch.compile while it is imported. Loading the compiler
    # costs every rank two seconds, and compiling would ask for a C++ compiler.
    def undecorated(function: Function | None = None, **_: Any) -> Any:
        return _itself if function is None else function

    _replace(torch, "compile", undecorated)


def _stand_in_for_triton_kernels() -> None:
    # megatron-core 0.19 imports the kernels of its paged expert buffers without asking whether
    # triton is installed, as it is only where there is a GPU. Dense models never call them.
    if importlib.util.find_spec("triton") is None:
        kernels = types.ModuleType("megatron.core.transformer.moe.ops.paged_stash")
        for name in ("GLOBAL_BLOCK_SIZE", "paged_stash_copy_kernel", "paged_stash_pop_kernel"):
            _replace(kernels, name, None)
        sys.modules[kernels.__name__] = kernels


def _megatron_random_state() -> None:
    # Megatron has its own copies of torch.cuda's state functions, looking inside CUDA generators.
    from megatron.core.tensor_parallel import random

    def set_state(new_state: torch.Tensor, *_: Any, **__: Any) -> None:
        torch.set_rng_state(new_state)

    def get_state(*_: Any, **__: Any) -> torch.Tensor:
        return torch.get_rng_state()

    _replace(random, "_get_cuda_rng_state", get_state)
    _replace(random, "_set_cuda_rng_state", set_state)


def _keep_outputs_being_sent() -> None:
    # Freeing a stage's output right after isend is ordered by the stream on CUDA. gloo is still
    # reading that memory: activations arrive corrupted, without an error, as a wrong loss or NaN.
    from megatron.core.transformer.transformer_config import TransformerConfig

    def keep_outputs(config: Any) -> None:
        checked(config)
        config.deallocate_pipeline_outputs = False

    checked = _replace(TransformerConfig, "__post_init__", keep_outputs)


def _expect_one_generator() -> None:
    # With one generator for both devices, a fork of the CUDA state always moves the CPU state too.
    def expected(record: logging.LogRecord) -> bool:
        return "CPU RNG state changed within GPU RNG context" not in record.getMessage()

    logging.getLogger("megatron.core.tensor_parallel.random").addFilter(expected)


def _count_steps_of_each_parameter() -> None:
    # Without Transformer Engine and Apex, a loaded DistributedOptimizer gives all parameters one
    # and the same ``step``, which torch's AdamW counts up once per parameter: after a resume the
    # bias correction is wrong, without an error.
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    def load(optimizer: Any, state: Any) -> None:
        loaded(optimizer, state)
        for entry in optimizer.optimizer.state.values():
            if "step" in entry:  # not where param groups count
                entry["step"] = entry["step"].clone()

    loaded = _replace(DistributedOptimizer, "load_state_dict", load)


def _begin_state_before_the_first_step() -> None:
    # Asked for its state before any step, as every load of torch_dist does, a DistributedOptimizer
    # on torch's AdamW fails: it looks for the one step count of parameters that have none.
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    def state_dict(optimizer: Any) -> Any:
        inner = optimizer.optimizer
        if not inner.state:
            for parameter in (p for group in inner.param_groups for p in group["params"]):
                names = ("exp_avg", "exp_avg_sq")
                moments = {name: torch.zeros_like(parameter.data) for name in names}
                inner.state[parameter] = {"step": torch.tensor(0.0), **moments}
        return asked(optimizer)

    asked = _replace(DistributedOptimizer, "state_dict", state_dict)


def _load_shards_into_torchs_adam() -> None:
    # distrib_optim.pt holds no ``step``, which torch's AdamW keeps beside the moments and is then
    # looked for (KeyError); and float32 shards are leaves, which autograd will not have changed.
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    @torch.no_grad()
    def copy(optimizer: Any, parameter: Any, tensors: Any) -> None:
        group, place = optimizer.model_param_group_index_map[parameter]
        main = optimizer.optimizer.param_groups[group]["params"][place]
        for name, value in {"param": main, **optimizer.optimizer.state[main]}.items():
            if name in tensors:
                value.copy_(tensors[name])

    _replace(DistributedOptimizer, "_set_main_param_and_optimizer_states", copy)
