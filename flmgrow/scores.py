"""What checkpoints can do: evaluated on tasks, and put side by side."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from flmgrow.errors import UsageError
from flmgrow.evaluation.backends import Computing
from flmgrow.evaluation.evaluating import Evaluation, Subject
from flmgrow.evaluation.paper_columns import CAUTION, paper_results
from flmgrow.evaluation.request import EvaluationRequest, asked_in
from flmgrow.evaluation.results import EvaluationResult, results_below
from flmgrow.evaluation.table import table
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.given import EvaluatingGiven
from flmgrow.opened import opened, read_options
from flmgrow.stages.last_checkpoints import is_run, last_checkpoints
from flmgrow.stages.past import CHECKPOINTS
from flmgrow.storage.durable import write_small
from flmgrow.storage.outputs import check_results_folder
from flmgrow.storage.strict_json import Json
from flmgrow.storage.world import find_world
from flmgrow.text import Setting, Text
from flmgrow.trainer.stage.chain import START

PathLike = str | os.PathLike[str]
Opener = Callable[[Path], Checkpoint]

PAPER = "paper"
"""What stands beside one's own scores: those that the paper reports."""
STAGES = "open-llm-stages"
"""The group on which the paper compares the stages of a run."""
TABLE = "table.md"


@dataclass(frozen=True)
class Scores:
    """The scores of checkpoints, in the order they were given in, and what stands beside them.

    ``str(scores)`` is a table in Markdown; ``to_json()`` the same, and more, as plain data.
    """

    request: EvaluationRequest
    results: tuple[EvaluationResult, ...]
    beside: tuple[EvaluationResult, ...] = ()

    def __str__(self) -> str:
        return table(self.results, self.beside)

    def to_json(self) -> Json:
        """Return all scores with their standard errors, and what was asked, as plain data."""
        return {
            "request": self.request.to_json(),
            "checkpoints": [each.to_json() for each in self.results],
            "beside": [each.to_json() for each in self.beside],
        }


def evaluate(
    checkpoints: Sequence[PathLike],
    tasks: str | Sequence[str],
    out: PathLike,
    *,
    beside: Sequence[PathLike] = (),
    open: Opener | None = None,
    noted: Callable[[str], object] = lambda _: None,
    **how: Unpack[EvaluatingGiven],
) -> Scores:
    """Return the scores of ``checkpoints`` on ``tasks``, whose files are written into ``out``.

    A folder of a run means each stage's last checkpoint. ``beside`` are files or folders with
    results to be put beside, or ``paper``. Results of the same request that are in ``out`` are
    read.

    Raises:
        FlmgrowError: As :func:`flmgrow.open` does.
        UsageError: For what cannot be asked.
        OutputExistsError: For results of another request.
        BadDataError: For damaged files.
    """
    request = EvaluationRequest(
        asked_in([tasks] if isinstance(tasks, str) else tasks),
        None if (data := how.get("data")) is None else Path(data),
        how.get("shots"),
        how.get("seed", 0),
        how.get("limit"),
    )
    tokenizer = how.get("tokenizer")
    computing = Computing(
        how.get("backend", "native"),
        how.get("dtype"),
        how.get("device"),
        how.get("batch_size"),
        None if tokenizer is None else Path(tokenizer),
    )
    check_results_folder(Path(out))
    others = tuple(one for place in beside for one in _beside(Path(place), request, noted))
    subjects = _subjects([Path(path) for path in checkpoints], open or _open)
    restart = how.get("restart", False)
    evaluation = Evaluation(request, computing, Path(out), restart=restart, noted=noted)
    found = Scores(request, tuple(evaluation.run(subjects)), others)
    if find_world(os.environ).first:
        write_small(Path(out) / TABLE, f"{found}\n".encode())
    return found


def _open(path: Path) -> Checkpoint:
    return opened(path, None, read_options())


def _subjects(paths: Sequence[Path], open: Opener) -> list[Subject]:
    """Return what is evaluated, under names that tell one from the other."""
    found = [
        each for path in paths for each in (last_checkpoints(path) if is_run(path) else [path])
    ]
    if not found:
        raise UsageError("no checkpoint to evaluate")
    parts = [_telling(path) for path in found]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-count:]) for own in parts]
        if len(set(names)) == len(names):
            return [
                Subject(name, lambda path=path: open(path))  # type: ignore[misc]
                for name, path in zip(names, found, strict=True)
            ]
    twice = next(path for path in found if found.count(path) > 1)
    raise UsageError("is to be evaluated twice", where=twice)


def _telling(path: Path) -> list[str]:
    """Return the parts of a path that tell which checkpoint is there: in a stage's folder, which
    one it is.
    """
    *parts, last = (path.resolve() if path.name in ("", "..") else path).parts
    if last in (CHECKPOINTS, START) and parts:
        *parts, stage = parts
        last = stage if last == CHECKPOINTS else f"{stage}/{last}"
    return [*parts, last]


def _beside(
    place: Path, request: EvaluationRequest, noted: Callable[[str], object]
) -> list[EvaluationResult]:
    """Return what stands beside.

    Raises:
        UsageError: For a place without results.
    """
    if str(place) == PAPER and not place.exists():
        noted(CAUTION)
        return paper_results(stages=STAGES in {each.name for each in request.tasks})
    if not place.exists():
        raise UsageError(
            "no such file or folder",
            where=Text(Setting("beside"), f" {place}"),
            wanted=f"{PAPER}, a results_*.json, or a folder of results",
        )
    found = results_below(place)
    if not found:
        raise UsageError("holds no results_*.json", where=place)
    return found
