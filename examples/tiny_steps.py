"""Two runs can be compared step by step only if both see the same batches, in whatever layout.

The parts of a training step of ``tiny_megatron.py``: its batches, which depend on the step alone,
its loss, megatron-core's optimizer, and what is reported, in full precision if asked for.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from legacy_checkpoint import Run
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler


def report(log: Path | None, first: int, step: int, losses: list[Any], norm: float) -> None:
    """Tell, from the last rank, the mean loss over all replicas; and all digits to ``log``.

    ``first`` is the run's first step, which is always told.
    """
    replicas = parallel_state.get_data_parallel_world_size()
    mean = torch.tensor(
        sum(loss["lm loss"] for loss in losses) / max(1, len(losses)), dtype=torch.float64
    )
    torch.distributed.all_reduce(mean, group=parallel_state.get_data_parallel_group())
    mean /= replicas
    if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
        if step == first or step % 10 == 0:
            print(f"iteration {step:4d}   lm loss {mean:.4f}", flush=True)
        if log is not None:
            line = {"step": step, "loss": mean.item(), "grad_norm": float(norm)}
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")


def replicated(models: list[Any], run: Run) -> list[Any]:
    """Return a rank's model chunks as replicas, with buffers for their gradients.

    With a bucket size, gradients are reduced while others are computed: Megatron-LM then closes
    buckets in a rank's first chunk only.
    """
    reduction = DistributedDataParallelConfig(
        grad_reduce_in_fp32=run.bf16,
        use_distributed_optimizer=run.distributed,
        overlap_grad_reduce=run.bucket_size is not None,
        bucket_size=run.bucket_size,
    )
    wrapped = [
        DistributedDataParallel(model.config, reduction, model, disable_bucketing=chunk > 0)
        for chunk, model in enumerate(models)
    ]
    if run.bucket_size is not None:
        pauses = [model.no_sync for model in wrapped]
        models[0].config.no_sync_func = pauses if len(pauses) > 1 else pauses[0]
    return wrapped


def optimizer_and_schedule(models: list[Any], run: Run) -> tuple[Any, OptimizerParamScheduler]:
    """Return megatron-core's AdamW and its learning-rate schedule."""
    config = OptimizerConfig(
        optimizer="adam",
        lr=run.learning_rate,
        min_lr=run.min_learning_rate,
        weight_decay=run.weight_decay,
        bf16=run.bf16,
        params_dtype=run.dtype,
        use_distributed_optimizer=run.distributed,
    )
    optimizer = get_megatron_optimizer(config, models)
    scheduler = OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=run.learning_rate,
        min_lr=run.min_learning_rate,
        lr_warmup_steps=run.warmup,
        lr_decay_steps=run.decay_steps,
        lr_decay_style="cosine",
        start_wd=run.weight_decay,
        end_wd=run.weight_decay,
        wd_incr_steps=run.decay_steps,
        wd_incr_style="constant",
    )
    return optimizer, scheduler


def forward_step(batches: Iterator[tuple[torch.Tensor, torch.Tensor]], model: Any) -> Any:
    """Run one micro-batch, as megatron-core's schedules ask for it."""
    tokens, labels = next(batches)
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)

    def mean_loss(losses: torch.Tensor) -> Any:
        loss = losses.mean()
        return loss, {"lm loss": loss.item()}

    return model(tokens, positions, None, labels=labels), mean_loss


def micro_batches(
    text: torch.Tensor, run: Run, step: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (tokens, labels) cut from random places, a model replica's share of the batch."""
    replica, replicas = (
        parallel_state.get_data_parallel_rank(),
        parallel_state.get_data_parallel_world_size(),
    )
    chance = torch.Generator().manual_seed((run.seed + step) * 1000)
    places = [
        torch.randint(len(text) - run.length, (run.micro_batch,), generator=chance)
        for _ in range(run.micro_batches)
    ]
    for starts in places[replica::replicas]:
        rows = torch.stack([text[start : start + run.length + 1] for start in starts.tolist()])
        yield rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
