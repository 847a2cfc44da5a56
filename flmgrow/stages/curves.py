"""Reading the records of runs as one curve per stage.

A run is a record per step in several files; a picture of it is one curve per stage. Stages are kept
apart, because a curve that is smoothed across a growth would hide whether the loss jumped there.
Nothing here draws: what a picture shows can be computed, and tested, without one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from flmgrow.errors import BadDataError, UsageError
from flmgrow.model.arrays import FloatArray
from flmgrow.stages.metrics_files import find_metrics, folder_of
from flmgrow.stages.run_scores import ScoreCurve, evaluations_in, score_curves
from flmgrow.stages.smoothing import smooth
from flmgrow.text import Found, Setting, Text
from flmgrow.trainer.metrics.log import read_metrics
from flmgrow.trainer.metrics.records import (
    Measured,
    MemoryGrowthRecord,
    SetLoss,
    StepRecord,
    ValidationRecord,
)

SMOOTHED_OVER = 50
"""A smoothed value comes from this part of a run's steps: one in fifty."""
LARGEST_LOSS = 1e9
"""Nats per token, of either sign. A loss beyond would drown the others in every sum."""
LARGEST_COUNT = 10**40
"""Tokens or FLOPs that no run comes near."""

AnyRecord = TypeVar("AnyRecord", StepRecord, ValidationRecord)


@dataclass(frozen=True, eq=False)
class Points:
    """Losses in nats per token, and what was spent until each: tokens, and FLOPs."""

    tokens: FloatArray
    flops: FloatArray
    loss: FloatArray


@dataclass(frozen=True, eq=False)
class Trace:
    """A number that was measured of a part, in the steps that measured it."""

    tokens: FloatArray
    flops: FloatArray
    values: FloatArray


PartKind = Literal["sets", "masks", "updates", "dimensions"]
Parts = Mapping[PartKind, Mapping[str, Trace]]
"""What is told of parts: the loss of each validation set, by dimension how far a mask is open, and
how far old and fresh move, of all parameters and by the dimension that grew.
"""


@dataclass(frozen=True)
class Spent:
    """A place in a run: the tokens and FLOPs until there."""

    tokens: float
    flops: float


@dataclass(frozen=True, eq=False)
class StageCurve:
    """A stage: where it begins, its losses, and where masks were below 1.

    ``smoothed`` has a value for each of ``training``. Losses that are not finite, or beyond
    ``LARGEST_LOSS``, are left out.
    """

    name: str
    begin: Spent
    training: Points
    smoothed: FloatArray
    validation: Points
    ramps: tuple[tuple[Spent, Spent], ...]
    parts: Parts = field(default_factory=lambda: {kind: {} for kind in get_args(PartKind)})


@dataclass(frozen=True)
class RunCurves:
    """A run's stages in order, at least one; ``name`` tells it from others in a picture.

    ``left_out`` is how many losses are in no curve; ``scores`` are those of its checkpoints.
    """

    name: str
    stages: tuple[StageCurve, ...]
    left_out: int = 0
    scores: tuple[ScoreCurve, ...] = ()


def read_runs(paths: Sequence[Path], evaluations: Sequence[Path] = ()) -> list[RunCurves]:
    """Return the runs at ``paths``: run folders, stage folders or files of metrics.

    ``evaluations`` are files or folders with the scores of the only one; without any, those in the
    folder of each are read.

    Raises:
        UsageError: If one of them is none of these.
        BadDataError: If one is damaged or empty.
    """
    folders = [folder_of(path).resolve().name for path in paths]
    names = folders if len(set(folders)) == len(folders) else [str(path) for path in paths]
    if evaluations and len(paths) > 1:
        what = Text(Setting("evaluation"), f" beside {len(paths)} runs")
        raise UsageError(what, "draw one run, or put each one's evaluations into its folder")
    return [
        _read_run(name, path, evaluations or evaluations_in(path))
        for name, path in zip(names, paths, strict=True)
    ]


def curves(files: Iterable[Sequence[Measured]], where: str) -> tuple[StageCurve, ...]:
    """Return the curve of each stage in the records of ``files``.

    Raises:
        BadDataError: If no loss is among them; the message names ``where``.
    """
    stages = [list(stage) for records in files for stage in _stages(records)]
    steps = [
        [record for record in stage if isinstance(record, StepRecord) and _is_drawn(record)]
        for stage in stages
    ]
    half = sum(map(len, steps)) // (2 * SMOOTHED_OVER)
    found: list[StageCurve] = []
    for stage, training in zip(stages, steps, strict=True):
        if not training:
            continue
        last = found[-1].training if found else None
        points = _points(training, [record.loss for record in training])
        checks = [
            record for record in stage if isinstance(record, ValidationRecord) and _is_drawn(record)
        ]
        found.append(
            StageCurve(
                training[0].stage,
                _spent(training[0]) if last is None else Spent(last.tokens[-1], last.flops[-1]),
                points,
                smooth(points.loss, half),
                _points(checks, [record.validation_loss for record in checks]),
                tuple(_ramps(training)),
                {
                    "sets": _traces(checks, lambda record: _set_losses(record.sets)),
                    "masks": _traces(training, lambda record: record.masks),
                    "updates": _traces(training, lambda record: record.updates),
                    "dimensions": _traces(training, _by_dimension),
                },
            )
        )
    if not found:
        if any(isinstance(record, StepRecord) for stage in stages for record in stage):
            raise BadDataError(
                "holds no loss of any step that can be drawn",
                "the run has diverged: lower the learning rate, or look at the data",
                where=where,
                wanted=f"finite ones up to {LARGEST_LOSS:g}",
            )
        raise BadDataError("holds no loss of any step", "has the run begun?", where=where)
    return tuple(found)


def _read_run(name: str, path: Path, evaluations: Sequence[Path]) -> RunCurves:
    files = [_read(file) for file in find_metrics(path)]
    left_out = sum(not _is_drawn(record) for records in files for record in records)
    return RunCurves(name, curves(files, str(path)), left_out, score_curves(evaluations))


def _read(file: Path) -> list[Measured]:
    """Return the losses in a file.

    Raises:
        BadDataError: If a count is none that a run has.
    """
    found: list[Measured] = []
    for number, record in enumerate(read_metrics(file), start=1):
        if isinstance(record, MemoryGrowthRecord):  # a new curve begins with its stage all the same
            continue
        found.append(record)
        for name, count in (("tokens", record.tokens), ("flops", record.flops)):
            if not 0 <= count <= LARGEST_COUNT:
                amount = "fewer than 0" if count < 0 else f"more than {LARGEST_COUNT:.0e}"
                raise BadDataError(
                    Text(f"{file}:{number}: {name}: found ", Found(amount)),
                    "remove the line if the file was edited, or the disk lost it",
                    wanted=f"0 to {LARGEST_COUNT:.0e}",
                )
    return found


def _is_drawn(record: Measured) -> bool:
    loss = record.loss if isinstance(record, StepRecord) else record.validation_loss
    return abs(loss) <= LARGEST_LOSS  # which no NaN is


def _stages(records: Sequence[Measured]) -> Iterator[Iterator[Measured]]:
    return (stage for _, stage in groupby(records, key=lambda record: record.stage))


def _ramps(records: Sequence[StepRecord]) -> Iterator[tuple[Spent, Spent]]:
    """Yield the first and last place of each stretch of steps with a mask below 1."""
    for masked, stretch in groupby(records, key=lambda record: bool(record.masks)):
        if masked:
            steps = list(stretch)
            yield _spent(steps[0]), _spent(steps[-1])


def _traces(
    records: Sequence[AnyRecord], told: Callable[[AnyRecord], Mapping[Any, float]]
) -> dict[str, Trace]:
    """Return what records tell of parts, as ``told`` finds it in one, finite values only."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for record in records:
        for part, value in told(record).items():
            if np.isfinite(value):
                spent = _spent(record)
                found.setdefault(str(part), []).append((spent.tokens, spent.flops, value))
    return {part: Trace(*np.array(rows, np.float64).T) for part, rows in found.items()}


def _by_dimension(record: StepRecord) -> dict[str, float]:
    """Return how far a step moved what is old and fresh along each dimension."""
    return {
        f"{dimension} {part}": value
        for dimension, parts in record.updates_by_dimension.items()
        for part, value in parts.items()
    }


def _set_losses(sets: Mapping[str, SetLoss]) -> dict[str, float]:
    """Return the loss of each set, as far as it can be drawn."""
    return {name: each.loss for name, each in sets.items() if abs(each.loss) <= LARGEST_LOSS}


def _spent(record: Measured) -> Spent:
    return Spent(float(record.tokens), float(record.flops))


def _points(records: Sequence[Measured], losses: Sequence[float]) -> Points:
    return Points(
        np.array([record.tokens for record in records], np.float64),
        np.array([record.flops for record in records], np.float64),
        np.array(losses, np.float64),
    )
