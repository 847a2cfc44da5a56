"""Runs as their metrics tell them, made without training: losses that fall, and masks that rise."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from flmgrow.model.masks import Dimension
from flmgrow.trainer.metrics.log import MetricsLog
from flmgrow.trainer.metrics.records import Measured, StepRecord, ValidationRecord

RECORD = StepRecord(
    step=1,
    samples=8,
    tokens=8 * 64,
    flops=3 * 8 * 64 * 10**6,
    loss=5.5,
    language_loss=None,
    teacher_loss=None,
    grad_norm=0.8125,
    learning_rate=3e-4,
    seconds=0.5,
    tokens_per_second=1024.0,
    model_tflops=0.41,
    utilisation=None,
    masks={},
    stage="stage",
)


@dataclass(frozen=True)
class Stage:
    """A stage to be made up; ``ramp`` is how many of its first steps have a mask below 1."""

    name: str
    steps: int
    batch_tokens: int = 1_000_000
    flops_per_token: int = 10**9
    ramp: int = 0


STAGES = (
    Stage("16M", 400, flops_per_token=10**8),
    Stage("51M", 300, flops_per_token=3 * 10**8, ramp=60),
    Stage("101M", 200, flops_per_token=6 * 10**8, ramp=60),
)


def make_records(
    stages: Sequence[Stage], *, noise: float = 0.05, every: int = 50, seed: int = 0
) -> list[list[Measured]]:
    """The records of each stage, one after the other; ``every`` so many steps there is one more."""
    draw = np.random.default_rng(seed)
    now, found = replace(RECORD, step=0, samples=0, tokens=0, flops=0), []
    for stage in stages:
        records: list[Measured] = []
        for index in range(stage.steps):
            flops = now.flops + stage.batch_tokens * stage.flops_per_token
            clean = 1.9 + 9 * (flops / 10**15 + 1) ** -0.25
            rising = stage.ramp and index < stage.ramp
            now = replace(
                now,
                step=now.step + 1,
                samples=now.samples + 8,
                tokens=now.tokens + stage.batch_tokens,
                flops=flops,
                loss=float(clean + noise * draw.standard_normal()),
                masks={Dimension.WIDTH: index / stage.ramp} if rising else {},
                stage=stage.name,
            )
            records.append(now)
            if now.step % every == 0:
                loss = float(clean + 0.02)
                records.append(ValidationRecord(now.step, now.tokens, now.flops, loss, stage.name))
        found.append(records)
    return found


def make_run(folder: Path, stages: Sequence[Stage] = STAGES, seed: int = 0) -> Path:
    """A run's folder as ``flmgrow run`` leaves it: a folder with metrics for each stage."""
    for number, records in enumerate(make_records(stages, seed=seed), start=1):
        name = stages[number - 1].name
        write_records(folder / f"{number:02}-{name}" / "metrics.jsonl", records)
    return folder


def write_records(path: Path, records: Sequence[Measured]) -> Path:
    with MetricsLog(path, records[0].stage if records else "", 0, resumed=False) as log:
        for record in records:
            log.write(record)
    return path


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def same(first: float, second: float) -> bool:
    """Whether two numbers have the same bits, or are both not a number."""
    return (math.isnan(first) and math.isnan(second)) or first.hex() == second.hex()
