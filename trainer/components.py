"""What is trained, put together from a stage: model, optimizer and learning-rate schedule.

Everything is megatron-core's; this file only says with which settings. Param groups come from the
stage file alone, never from a checkpoint: megatron-core would match a checkpoint's groups by a few
of their settings, and could take muP's head for its embedding.
"""

from dataclasses import dataclass
from typing import Any

import torch

from flmgrow.formats.megatron.arguments.layout_text import layout_text
from flmgrow.formats.megatron.arguments.new import new_arguments
from flmgrow.formats.megatron.arguments.run_rows import SEQUENCE_LENGTH
from flmgrow.formats.megatron.arguments.vocabulary_rows import MULTIPLE
from flmgrow.trainer.megatron.core import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    OptimizerConfig,
    OptimizerParamScheduler,
    finalize_model_grads,
    get_megatron_optimizer,
    parallel_state,
)
from flmgrow.trainer.megatron.live_masks import LiveMasks
from flmgrow.trainer.megatron.model import build_model_chunks, transformer_config
from flmgrow.trainer.megatron.mup import mup_overrides
from flmgrow.trainer.megatron.parameters import OptimizerView, Parameter, parameters_of
from flmgrow.trainer.run_config import RunConfig
from flmgrow.trainer.stage.clock import Clock
from flmgrow.trainer.stage.file import StageFile

NEVER = 1e30
"""A norm of gradients that is never reached: megatron-core computes none without a limit."""


@dataclass(frozen=True, eq=False)
class Components:
    """This rank's part of what is trained."""

    models: list[Any]
    optimizer: Any
    view: OptimizerView
    schedule: Any
    parameters: list[Parameter]

    def zero_gradients(self) -> None:
        """Begin a new sum of gradients."""
        for model in self.models:
            model.zero_grad_buffer()
        self.optimizer.zero_grad()

    def gather(self) -> None:
        """Have this rank's weights whole, where replicas bring them together only as they compute.

        On all ranks at once.
        """
        for model in self.models:
            if model.ddp_config.overlap_param_gather:
                model.start_param_sync(force_sync=True)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step, for parameters without a rate of their own."""
        rate: float = self.schedule.get_lr({})
        return rate


def build(run: RunConfig, masks: LiveMasks) -> Components:
    """Return the model and an optimizer that has taken no step.

    Weights are fresh, or any if the run's checkpoint will fill them.
    """
    stage, config, layout = run.stage, run.config, run.layout
    dtype = getattr(torch, stage.training.precision)
    settings = transformer_config(
        config,
        tp=layout.tp,
        pp=layout.pp,
        vpp=layout.vpp if layout.vpp > 1 else None,
        pipeline_layers=None if layout.even else layout_text(layout),
        sequence_parallel=stage.layout.sequence_parallel,
        dtype=dtype,
        init_std=stage.training.init_std if run.begin.checkpoint is None else None,
        switches=run.switches,
    )
    settings.finalize_model_grads_func = finalize_model_grads
    settings.calculate_per_token_loss = True
    _recompute(settings, stage.training.recompute)
    plain = build_model_chunks(config, settings, run.padded_vocab, masks)
    parameters = parameters_of(plain, config, layout, run.padded_vocab)
    _freeze(run, plain, parameters)
    for model in plain:
        _leave_padding_out(model, config.vocab)
    reduction = DistributedDataParallelConfig(
        grad_reduce_in_fp32=dtype != torch.float32,
        use_distributed_optimizer=stage.layout.distributed_optimizer,
        overlap_grad_reduce=stage.layout.overlap_grad_reduce,
        overlap_param_gather=stage.layout.overlap_param_gather,
    )
    models = [
        DistributedDataParallel(settings, reduction, model, disable_bucketing=chunk > 0)
        for chunk, model in enumerate(plain)
    ]
    if stage.layout.overlap_grad_reduce:  # of the last micro-batch only
        held = [model.no_sync for model in models]
        settings.no_sync_func = held if len(held) > 1 else held[0]
    optimizer = _optimizer(run, models)
    settings.grad_scale_func = optimizer.scale_loss
    view = OptimizerView(optimizer)
    schedule = _schedule(stage, run.clock, optimizer)
    return Components(models, optimizer, view, schedule, parameters)


def _leave_padding_out(model: Any, vocab: int) -> None:
    """Let the rows that pad the vocabulary take no part in the softmax.

    How many there are depends on the layout, and the loss must not.
    """
    if not model.post_process:
        return
    rows = model.output_layer.output_size_per_partition
    real = vocab - rows * parallel_state.get_tensor_model_parallel_rank()
    if real >= rows:
        return

    def behind(_: Any, __: Any, output: tuple[torch.Tensor, Any]) -> tuple[torch.Tensor, Any]:
        logits = output[0]
        padding = logits.narrow(-1, max(0, real), rows - max(0, real))
        padding.fill_(torch.finfo(logits.dtype).min)
        return logits, output[1]

    model.output_layer.register_forward_hook(behind)


def _freeze(run: RunConfig, models: list[Any], parameters: list[Parameter]) -> None:
    """Let frozen parameters have no gradient, and so no place in buffers and optimizers."""
    for parameter in parameters:
        if parameter.placement.slices[0] in run.still:
            parameter.tensor.requires_grad_(False)
    embedding = getattr(models[0], "embedding", None)
    if embedding is None or any(each.requires_grad for each in embedding.parameters()):
        return

    def with_gradient(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        return output.requires_grad_()

    if run.stage.training.recompute == "full":
        # What is computed again gives its own parameters a gradient only if its input needs one.
        embedding.register_forward_hook(with_gradient)


def _recompute(settings: Any, kind: str) -> None:
    if kind == "full":
        settings.recompute_granularity = "full"
        settings.recompute_method, settings.recompute_num_layers = "uniform", 1
    elif kind == "selective":
        settings.recompute_granularity = "selective"
        settings.recompute_modules = ["core_attn"]


def _optimizer(run: RunConfig, models: list[Any]) -> Any:
    stage, config = run.stage, run.config
    rate, chosen = stage.learning_rate, stage.optimizer
    dtype = getattr(torch, stage.training.precision)
    settings = OptimizerConfig(
        optimizer="adam",
        lr=rate.peak,
        min_lr=rate.floor,
        weight_decay=chosen.weight_decay,
        adam_beta1=chosen.beta1,
        adam_beta2=chosen.beta2,
        adam_eps=chosen.epsilon,
        clip_grad=chosen.clip_grad or NEVER,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=stage.layout.distributed_optimizer,
        overlap_param_gather=stage.layout.overlap_param_gather,
    )
    overrides = None
    if config.multipliers.mup_base_width is not None:
        overrides = mup_overrides(config, settings, run.base_output)
    optimizer = get_megatron_optimizer(settings, models, config_overrides=overrides)
    # Torch's AdamW goes over all its memory a dozen times, unless its kernel is the fused one.
    for group in OptimizerView(optimizer).groups:
        if "fused" in group:
            group["fused"], group["foreach"] = True, False
    return optimizer


_COOLDOWNS = {"linear": "linear", "sqrt": "minus_sqrt"}
"""What megatron-core calls the ways down."""


def _schedule(stage: StageFile, clock: Clock, optimizer: Any) -> Any:
    """Return the schedule, which counts samples, as Megatron-LM's does."""
    rate, decay = stage.learning_rate, stage.optimizer.weight_decay
    end = max(clock.decay, clock.warmup + 1)
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=rate.peak,
        min_lr=rate.floor,
        lr_warmup_steps=clock.warmup,
        lr_decay_steps=end,
        lr_decay_style="WSD" if rate.style == "wsd" else rate.style,
        wsd_decay_steps=max(1, clock.cooldown),
        lr_wsd_decay_style=_COOLDOWNS[rate.cooldown],
        start_wd=decay,
        end_wd=decay,
        wd_incr_steps=end,
        wd_incr_style="constant",
    )


def arguments_of(run: RunConfig) -> dict[str, object]:
    """Return what Megatron-LM would hold in ``args`` for this run, as far as others need it."""
    stage = run.stage
    half = stage.training.precision == "bfloat16"
    return {
        **new_arguments(run.config, run.padded_vocab, stage.training.precision, "local"),
        MULTIPLE.name: run.vocab_multiple,
        SEQUENCE_LENGTH.name: stage.data.sequence_length,
        "micro_batch_size": stage.training.micro_batch,
        "global_batch_size": stage.training.batch,
        **({"rampup_batch_size": ramp} if (ramp := stage.training.batch_ramp) else {}),
        "data_parallel_size": stage.layout.dp,
        "sequence_parallel": stage.layout.sequence_parallel,
        "train_iters": stage.steps,
        "optimizer": "adam",
        "lr": stage.learning_rate.peak,
        "min_lr": stage.learning_rate.floor,
        "weight_decay": stage.optimizer.weight_decay,
        "adam_beta1": stage.optimizer.beta1,
        "adam_beta2": stage.optimizer.beta2,
        "adam_eps": stage.optimizer.epsilon,
        "clip_grad": stage.optimizer.clip_grad,
        "use_distributed_optimizer": stage.layout.distributed_optimizer,
        "accumulate_allreduce_grads_in_fp32": half,
        "overlap_grad_reduce": stage.layout.overlap_grad_reduce,
        "init_method_std": stage.training.init_std,
    }
