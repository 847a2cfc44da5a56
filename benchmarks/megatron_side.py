"""One process of the trainer, for ``bench_training.py``: what ``flmgrow train`` does in a step."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training_work import BETAS, CLIP, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Step, Work

from flmgrow.formats.history.training_state import Carried
from flmgrow.formats.layout.placements import make_layout
from flmgrow.model.axes import Axis
from flmgrow.model.config import ModelConfig
from flmgrow.model.masks import AXES, Dimension, Mask
from flmgrow.trainer.checkpoint.begin import Begin
from flmgrow.trainer.components import build
from flmgrow.trainer.megatron.live_masks import LiveMasks
from flmgrow.trainer.megatron.model import start_parallel
from flmgrow.trainer.run_config import RunConfig
from flmgrow.trainer.stage.file import StageFile
from flmgrow.trainer.stage.freezing import FreezeRule, frozen_of, frozen_slices
from flmgrow.trainer.stage.model import ModelSection
from flmgrow.trainer.steps import losses_of, run_batch

MASKED_AT = 0.37
ALONE = {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}


def megatron_side(
    work: Work,
    live: LiveMasks | None = None,
    precision: str = "float32",
    micro_batch: int | None = None,
) -> Step:
    """Build what the trainer trains; without ``micro_batch`` the whole batch is one."""
    os.environ |= ALONE
    start_parallel(tp=1, pp=1)
    rows = work.batch if micro_batch is None else micro_batch
    run = _run_config(work, stage_of(work, precision, rows))
    return _step(work, run, rows, live)


def frozen_side(
    work: Work, rules: Sequence[Mapping[str, Any]], micro_batch: int
) -> tuple[Step, int]:
    """Build what the trainer trains where ``rules`` freeze, in a process that may have others.

    Returns its step, and the operations of one per token.
    """
    if not torch.distributed.is_initialized():
        os.environ |= ALONE
        start_parallel(tp=1, pp=1)
    run = _run_config(work, stage_of(work, "float32", micro_batch))
    frozen = frozen_of([FreezeRule(**rule) for rule in rules], run.config, run.padded_vocab, {})
    still = frozen_slices(frozen, run.config, run.padded_vocab)
    run = replace(run, frozen=frozen, still=still)
    return _step(work, run, micro_batch), run.flops_per_token


def _run_config(work: Work, stage: StageFile) -> RunConfig:
    config, begin = work.config, Begin(None, False, 0, 0, Carried(), {})
    return RunConfig(stage, config, make_layout(config.layers), config.vocab, begin, 1.0)


def _step(work: Work, run: RunConfig, rows: int, live: LiveMasks | None = None) -> Step:
    """Build what ``run`` trains, with ``work``'s weights; return what takes a step of it."""
    if live is None:
        live = LiveMasks({}, run.config, getattr(torch, run.stage.training.precision))
    components = build(run, live)
    _share_weights(components.models[0].module, work.weights)
    micro_batches = list(_micro_batches(work, rows))

    def step() -> float:
        components.zero_gradients()
        length = run.config.max_positions
        sums = run_batch(components.models, micro_batches, sequence_length=length)
        components.optimizer.step()
        components.schedule.step(increment=1)
        return losses_of(sums.tolist()).mean

    return step


def masked_sides(work: Work) -> tuple[Step, Step]:
    """Build one model with masks in all dimensions, and return steps at 1 and at ``MASKED_AT``."""
    live = LiveMasks(half_fresh(work.config), work.config, torch.float32)
    step = megatron_side(work, live)

    def at(value: float) -> Step:
        masks = half_fresh(work.config, value)

        def moved() -> float:
            live.move_to(masks)
            return step()

        return moved

    return at(1.0), at(MASKED_AT)


def _micro_batches(work: Work, rows: int) -> Iterator[dict[str, Any]]:
    tokens, labels = (values.numpy() for values in work.tokens_and_labels())
    positions = np.broadcast_to(np.arange(tokens.shape[1]), (rows, tokens.shape[1])).copy()
    counts = np.ones(positions.shape, np.float32)
    for first in range(0, work.batch, rows):
        taken = slice(first, first + rows)
        yield {
            "tokens": tokens[taken],
            "labels": labels[taken],
            "positions": positions,
            "loss_mask": counts,
            "taught": np.zeros(rows, np.bool_),
        }


def stage_of(work: Work, precision: str, micro_batch: int) -> StageFile:
    """Return the stage that says what the plain loop does."""
    length = work.config.max_positions
    content: dict[str, Any] = {
        "name": "stage",
        "model": ModelSection.of(work.config),
        "data": {"sequence_length": length, "corpora": [{"path": "unread"}]},
        "training": {
            "steps": 1,
            "batch": work.batch,
            "micro_batch": micro_batch,
            "precision": precision,
        },
        "learning_rate": {"peak": LEARNING_RATE, "floor": LEARNING_RATE, "style": "constant"},
        "optimizer": {
            "beta1": BETAS[0],
            "beta2": BETAS[1],
            "epsilon": EPSILON,
            "weight_decay": WEIGHT_DECAY,
            "clip_grad": CLIP,
        },
    }
    return StageFile.model_validate(content)


def half_fresh(config: ModelConfig, value: float = MASKED_AT) -> dict[Dimension, Mask]:
    """Return masks as after a growth that doubled the model in every dimension."""
    fresh = {axis: np.arange(size // 2, size) for axis, size in config.sizes.items()}
    fresh[Axis.QUERY_PER_GROUP] = np.arange(0)
    return {
        dimension: Mask(dimension, {axis: fresh[axis] for axis in axes}, value)
        for dimension, axes in AXES.items()
    }


def _share_weights(model: Any, path: Path) -> None:
    """Leave the weights in a file, or take them from there if they are."""
    if path.exists():
        model.load_state_dict(torch.load(path), strict=False)
    else:
        torch.save({key: x for key, x in model.state_dict().items() if x is not None}, path)
