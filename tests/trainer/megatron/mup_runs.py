"""What megatron-core's optimizer is given under muP, and how activations then move.

Run as a script, this prints, as JSON, the settings of every parameter of a few models, and how far
the logits of models of several widths have moved after some steps of training, with muP and
without.
"""

import json
from dataclasses import replace
from typing import Any

import torch

from flmgrow.trainer.megatron import cpu

cpu.install()

from megatron.core.distributed import (  # noqa: E402
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer  # noqa: E402
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler  # noqa: E402
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402

from flmgrow.model.config import ModelConfig, Multipliers  # noqa: E402
from flmgrow.trainer.megatron.model import (  # noqa: E402
    build_model_chunks,
    full_logits,
    start_parallel,
    stop_parallel,
    transformer_config,
)
from flmgrow.trainer.megatron.mup import mup_overrides  # noqa: E402

BASE = 32
WIDTHS = (32, 64, 128, 256)
STEPS = 4
RATE = 0.01
NARROW = ModelConfig(
    layers=2, hidden=BASE, ffn=64, kv_groups=2, queries_per_group=1, head_dim=16, vocab=64,
    max_positions=32, multipliers=Multipliers(output=2.0, mup_base_width=BASE),
)  # fmt: skip
WIDE = replace(NARROW, hidden=128, ffn=256, kv_groups=8)
MODELS = {
    "tied": WIDE,
    "untied": replace(WIDE, tied=False),
    "grown": replace(WIDE, tied=False, multipliers=replace(WIDE.multipliers, output=4.0)),
    "qk norm": replace(WIDE, qk_norm=True),
    "base": replace(NARROW, tied=False),
}


def built(config: ModelConfig) -> list[Any]:
    torch.manual_seed(1)
    settings = transformer_config(config, tp=1, pp=1, init_std=0.1)
    settings.finalize_model_grads_func = finalize_model_grads
    (model,) = build_model_chunks(config, settings, config.vocab)
    return [DistributedDataParallel(settings, DistributedDataParallelConfig(), model)]


def optimizer_for(models: list[Any], config: ModelConfig) -> Any:
    settings = OptimizerConfig(
        optimizer="adam", lr=RATE, min_lr=RATE / 10, weight_decay=0.1, adam_eps=1e-8
    )
    overrides = mup_overrides(config, settings, base_output=2.0)
    optimizer = get_megatron_optimizer(settings, models, overrides)
    OptimizerParamScheduler(
        optimizer, init_lr=0.0, max_lr=RATE, min_lr=RATE / 10, lr_warmup_steps=0,
        lr_decay_steps=100, lr_decay_style="constant", start_wd=0.1, end_wd=0.1, wd_incr_steps=100,
        wd_incr_style="constant",
    )  # fmt: skip
    return optimizer


def settings_of(config: ModelConfig) -> dict[str, Any]:
    """Return each parameter's learning rate, epsilon and weight decay, and its spread at first."""
    models = built(config)
    groups = optimizer_for(models, config).param_groups
    found = {}
    for name, parameter in models[0].module.named_parameters():
        (group,) = [one for one in groups if any(parameter is other for other in one["params"])]
        values = [group[key] for key in ("lr", "min_lr", "eps", "weight_decay")]
        found[name] = [*values, parameter.float().std().item()]
    return found


def movement(config: ModelConfig) -> float:
    """Return the root mean square by which a few steps have moved the logits."""
    models = built(config)
    optimizer = optimizer_for(models, config)
    tokens = torch.randint(64, (4, 33), generator=torch.Generator().manual_seed(0))
    before = full_logits(models, tokens[:, :32])
    positions = torch.arange(32).expand(4, 32)

    def forward(_: Any, model: Any) -> Any:
        losses = model(tokens[:, :32], positions, None, labels=tokens[:, 1:].contiguous())
        return losses, lambda output: (output.mean(), {})

    for _ in range(STEPS):
        models[0].zero_grad_buffer()
        optimizer.zero_grad()
        get_forward_backward_func()(
            forward_step_func=forward, data_iterator=[None], model=models, num_microbatches=1,
            seq_length=32, micro_batch_size=4, forward_only=False,
        )  # fmt: skip
        optimizer.step()
    after = full_logits(models, tokens[:, :32])
    assert before is not None
    assert after is not None
    return (after - before).square().mean().sqrt().item()


def main() -> None:
    """Print both."""
    start_parallel(tp=1, pp=1)
    wide = [
        replace(NARROW, hidden=width, ffn=2 * width, kv_groups=width // 16, tied=False)
        for width in WIDTHS
    ]
    result = {
        "settings": {name: settings_of(config) for name, config in MODELS.items()},
        "with": [movement(config) for config in wide],
        "without": [
            movement(replace(config, multipliers=Multipliers(output=2.0))) for config in wide
        ],
    }
    stop_parallel()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
