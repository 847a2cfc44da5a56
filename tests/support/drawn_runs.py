"""Folders of runs with nothing in them but records: what pictures are made of."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from flmgrow.model.masks import Dimension
from flmgrow.trainer.metrics.records import Measured, StepRecord, ValidationRecord


def step(number: int, loss: float, stage: str, masks: Mapping[Dimension, float]) -> StepRecord:
    return StepRecord(
        step=number, samples=8 * number, tokens=256 * number, flops=1000 * number * number,
        loss=loss, language_loss=None, teacher_loss=None, grad_norm=1.0, learning_rate=1e-3,
        seconds=0.1, tokens_per_second=2560.0, model_tflops=0.1, utilisation=None, masks=masks,
        stage=stage,
    )  # fmt: skip


def stage_of(name: str, first: int, count: int, *, masked: int = 0) -> list[Measured]:
    """A stage's records: falling losses, masks in the first steps, a validation at the end."""
    records: list[Measured] = [
        step(n, 5.0 / n, name, {Dimension.FFN: 0.5} if n < first + masked else {})
        for n in range(first, first + count)
    ]
    last = first + count - 1
    return [*records, ValidationRecord(last, 256 * last, 1000 * last * last, 5.1 / last, name)]


def write_run(folder: Path, stages: Sequence[Sequence[Measured]]) -> Path:
    """Write a run's folder, a folder for each stage."""
    for number, records in enumerate(stages, 1):
        path = folder / f"{number:02}-{records[0].stage}" / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(record.to_json()) + "\n" for record in records))
    return folder
