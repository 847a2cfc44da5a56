"""One process of the trainer, for ``bench_training.py``: its model in megatron-core's own loop."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from training_work import BETAS, CLIP, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Step, Work

from flmgrow.model.axes import Axis
from flmgrow.model.config import ModelConfig
from flmgrow.model.masks import AXES, Dimension, Mask
from flmgrow.trainer.masks import LiveMasks
from flmgrow.trainer.model import build_model_chunks, start_parallel, transformer_config

# The trainer comes first: it prepares torch for megatron-core on a CPU.
from megatron.core.distributed import (  # isort: skip
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer  # isort: skip
from megatron.core.pipeline_parallel import get_forward_backward_func  # isort: skip

MASKED_AT = 0.37
ALONE = {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}


def megatron_side(work: Work, *, masked: bool) -> Step:
    """Build the trainer's model and the loop; ``masked`` in all dimensions, between 0 and 1."""
    os.environ |= ALONE
    start_parallel(tp=1, pp=1)
    settings = transformer_config(work.config, tp=1, pp=1)
    settings.finalize_model_grads_func = finalize_model_grads
    live = LiveMasks(half_fresh(work.config) if masked else {}, work.config, torch.float32)
    (model,) = build_model_chunks(work.config, settings, work.config.vocab, live)
    _share_weights(model, work.weights)
    wrapped = DistributedDataParallel(settings, DistributedDataParallelConfig(), model)
    adam = OptimizerConfig(
        optimizer="adam",
        lr=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        clip_grad=CLIP,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        adam_eps=EPSILON,
        params_dtype=torch.float32,
    )
    optimizer = get_megatron_optimizer(adam, [wrapped])
    tokens, labels = work.tokens_and_labels()
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)

    def forward(_: Any, model: Any) -> Any:
        def mean(losses: Tensor) -> Any:
            loss = losses.mean()
            return loss, {"loss": loss.detach()}

        return model(tokens, positions, None, labels=labels), mean

    def step() -> float:
        wrapped.zero_grad_buffer()
        optimizer.zero_grad()
        (found,) = get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=[None],
            model=[wrapped],
            num_microbatches=1,
            seq_length=tokens.shape[1],
            micro_batch_size=work.batch,
            forward_only=False,
        )
        optimizer.step()
        return float(found["loss"])

    return step


def half_fresh(config: ModelConfig) -> dict[Dimension, Mask]:
    """Return masks as after a growth that doubled the model in every dimension."""
    fresh = {axis: np.arange(size // 2, size) for axis, size in config.sizes.items()}
    fresh[Axis.QUERY_PER_GROUP] = np.arange(0)
    return {
        dimension: Mask(dimension, {axis: fresh[axis] for axis in axes}, MASKED_AT)
        for dimension, axes in AXES.items()
    }


def _share_weights(model: Any, path: Path) -> None:
    """Leave the weights in a file, or take them from there if they are."""
    if path.exists():
        model.load_state_dict(torch.load(path), strict=False)
    else:
        torch.save({key: x for key, x in model.state_dict().items() if x is not None}, path)
