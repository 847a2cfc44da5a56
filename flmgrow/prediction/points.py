"""Runs as points: how large, how long, how well; and files of such points.

A law can only be fitted to runs that differ in what the law speaks of. So a run is read with all
that must be the same in every other one: data, sequence length, and, for a law of sizes alone, the
step.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from statistics import fmean

from flmgrow.errors import BadDataError, UsageError
from flmgrow.formats.opening import open_checkpoint
from flmgrow.model.tensors import parameter_count
from flmgrow.storage.encodings import encoding_hint
from flmgrow.storage.strict_json import Json
from flmgrow.storage.strict_yaml import dotted
from flmgrow.text import Found, Setting, Text, unlike
from flmgrow.trainer.metrics.log import read_metrics
from flmgrow.trainer.metrics.records import StepRecord, ValidationRecord
from flmgrow.trainer.stage.file import StageFile, read_stage
from flmgrow.trainer.stage.watching import METRICS

LAST_SHARE = 50
"""Where there is no validation: the mean loss of the last step in so many."""

_COLUMNS = ("parameters", "tokens", "loss", "seed")

_OTHER = ("data.seed", "data.checksums", "data.validation_sets")
"""What of the data may differ between runs; sets do not, where one of them has *the* loss."""


_MOST = {"parameters": 1e18, "tokens": 1e18, "loss": 1e3}
"""What no run can have more of; a column in another unit shows itself so."""


@dataclass(frozen=True)
class RunPoint:
    """A run's end: ``loss`` (nats per token) of a model of so many ``parameters`` after ``tokens``.

    ``seed`` tells repetitions apart. ``name`` is where it comes from.
    """

    parameters: float
    tokens: float
    loss: float
    seed: int = 0
    name: str = ""
    fixed: Json = field(default_factory=dict)
    """What must be the same in all runs of a law, by key."""

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            if not isfinite(value) or not 0 < value <= most:
                what = unlike(name, f"{value:g}", f"above 0, and at most {most:g}")
                raise BadDataError(what, where=self.name)

    def to_json(self) -> Json:
        """Return the point as plain data."""
        return {
            "parameters": self.parameters,
            "tokens": self.tokens,
            "loss": self.loss,
            "seed": self.seed,
            "name": self.name,
        }


def points_of(paths: Sequence[Path], step: int | None) -> list[RunPoint]:
    """Return the points of runs, and of files of points (``.csv``), at a ``step`` or their last.

    A run is a folder with ``stage.yaml`` and its metrics, a folder of a run of one stage, or a
    stage file.

    Raises:
        UsageError: For what is none of these or has not come that far, for one that is named twice,
            and for runs of different data.
        BadDataError: For what is damaged.
    """
    places = [path.resolve() for path in paths]
    for number, path in enumerate(paths):
        if places[number] in places[:number]:
            raise UsageError(
                "is named twice", "a run that counts twice narrows the intervals", where=path
            )
    found = [
        point
        for path in paths
        for point in (_from_table(path) if path.suffix == ".csv" else [end_of(path, step)])
    ]
    runs = [point for point in found if point.fixed]  # of a table nobody knows what data it is of
    for point in runs[1:]:
        _check_alike(runs[0], point)
    return found


def _check_alike(one: RunPoint, other: RunPoint) -> None:
    for key in sorted(one.fixed.keys() | other.fixed.keys()):
        if one.fixed.get(key) != other.fixed.get(key):
            raise UsageError(
                f"{key} is {other.fixed.get(key)!r:.80}, and {one.fixed.get(key)!r:.80} in "
                f"{one.name}",
                "a law holds for one kind of data: leave out the runs of another",
                where=other.name,
            )


def end_of(path: Path, step: int | None) -> RunPoint:
    """Return where a run of one stage was at a ``step``, or at its end.

    Raises:
        FlmgrowError: As ``points_of`` does.
        UsageError: For one that has not ended if no step is given.
    """
    file = _stage_file(path)
    stage = read_stage(file)
    records = read_metrics(stage.log.metrics)
    steps = [each for each in records if isinstance(each, StepRecord)]
    if not steps:
        raise BadDataError("holds no step", "has the run begun?", where=stage.log.metrics)
    taken = steps[-1].step - steps[0].step + 1
    if step is None and taken < stage.steps:
        raise UsageError(
            Text("has taken ", Found(f"{taken:,} steps")),
            Text("let it run on, or give ", Setting("step"), " to compare runs before their end"),
            where=path,
            wanted=f"all {stage.steps:,} of its stage",
        )
    last = steps[-1].step if step is None else step
    at = next((each for each in reversed(steps) if each.step == last), None)
    if at is None:
        raise UsageError(
            Text("ends at ", Found(f"step {steps[-1].step:,}")),
            "let it run on, or compare at a step that all have reached",
            where=path,
            wanted=Text(Setting("step", step)),
        )
    checks = [
        each.validation_loss
        for each in records
        if isinstance(each, ValidationRecord) and each.step == last
    ]
    window = max(1, last // LAST_SHARE)
    recent = [each.loss for each in steps if last - window < each.step <= last]
    loss = checks[-1] if checks else fmean(recent)
    main = next((e for e in stage.data.validation_sets if e.name == stage.validation_set), None)
    on = "" if main is None else f" on {main.model_dump(mode='json')}"
    fixed = {
        key: value
        for key, value in dotted(stage.data.model_dump(mode="json"), "data.").items()
        if key not in _OTHER
    }
    return RunPoint(
        _parameters(stage), at.tokens, loss, stage.training.seed, str(path),
        {**fixed, "loss": f"of validation{on}" if checks else "of training"},
    )  # fmt: skip


def _stage_file(path: Path) -> Path:
    if path.is_file():
        return path
    if (path / "stage.yaml").is_file():
        return path / "stage.yaml"
    stages = sorted(path.glob(f"[0-9]*-*/{METRICS}"))
    if len(stages) == 1:
        return stages[0].with_name("stage.yaml")
    found = "is a run of several stages" if stages else "is no run"
    raise UsageError(
        found,
        "a law is fitted to models that were never grown: give the folder of a first stage",
        where=path,
        wanted="a folder with stage.yaml, a stage file, or a table of points (.csv)",
    )


def _parameters(stage: StageFile) -> int:
    vocabulary = stage.model.vocab_size
    if vocabulary is None:
        return parameter_count(open_checkpoint(stage.checkpoint.folder).config)
    return parameter_count(stage.model.config(vocabulary, stage.data.sequence_length))


def _from_table(path: Path) -> list[RunPoint]:
    """Return the points in a table with the columns parameters and loss, and tokens and seed if
    they differ.
    """
    try:
        content = path.read_bytes()
        rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"))))
    except UnicodeDecodeError as error:
        raise BadDataError("is no UTF-8", encoding_hint(error.object), where=path) from None
    except (OSError, ValueError, csv.Error) as error:
        raise BadDataError(str(getattr(error, "strerror", None) or error), where=path) from None
    if not rows or not {"parameters", "loss"} <= rows[0].keys():
        raise BadDataError(
            "has no rows under columns parameters and loss",
            "the first line names the columns, with commas: parameters,tokens,loss,seed",
            where=path,
        )
    return [_from_row(row, f"{path}:{number}") for number, row in enumerate(rows, 2)]


def _from_row(row: dict[str, str | None], where: str) -> RunPoint:
    """Return the point in a row: a column that is there has a number in every row.

    A cell that is empty, or one too many, must not be read as something else.
    """
    absent = {"tokens": "1", "seed": "0"}
    try:
        parameters, tokens, loss = (
            float(row.get(name, absent.get(name)) or "") for name in _COLUMNS[:3]
        )
        seed = int(row.get("seed", absent["seed"]) or "")
    except ValueError:
        bad = True
    else:
        bad = None in row  # where DictReader keeps what has no column
    if bad:
        cells = ",".join("" if value is None else str(value) for value in row.values())
        what = Text("is ", Found(f"{cells:.80}"))
        raise BadDataError(what, where=where, wanted="a number in each column")
    return RunPoint(parameters, tokens, loss, seed, where)


def table_of(points: Sequence[RunPoint]) -> str:
    """Return the table of points, as ``points_of`` reads it."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows([getattr(point, name) for name in _COLUMNS] for point in points)
    return file.getvalue()
