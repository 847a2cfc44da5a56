"""Preparing a step of a run: writing its files, and checking those that are there.

Before a step of a run is taken, its files are written, and what has begun must stay what it is. A
schedule may be edited between two calls: stages that have not begun follow it, and so do those
settings of the others by which they are watched and kept. Anything else would leave a run in which
a stage is not what its files say, and is refused before a file is written.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ValidationError

from flmgrow.errors import UsageError
from flmgrow.formats.history.training_state import read_training_state
from flmgrow.model.tensors import parameter_count
from flmgrow.stages.past import CHECKPOINTS, GROWTH, STAGE
from flmgrow.stages.places import TENSORBOARD
from flmgrow.stages.planned_stage import PlannedStage
from flmgrow.stages.run_folder import SOURCE, RunFolder
from flmgrow.stages.start import StartFile
from flmgrow.storage.durable import write_small
from flmgrow.storage.folders import make_folders
from flmgrow.storage.outputs import check_results_folder
from flmgrow.storage.strict_json import Json
from flmgrow.storage.strict_yaml import dotted, dump_yaml, read_yaml
from flmgrow.storage.validation import problems
from flmgrow.surgery.target_file import GrowthRequest
from flmgrow.text import Setting, Text
from flmgrow.trainer.checkpoint.saved import saved_iterations
from flmgrow.trainer.stage.chain import START
from flmgrow.trainer.stage.file import StageFile
from flmgrow.trainer.stage.watching import METRICS

SCHEDULE = "schedule.yaml"
_LENGTHS = ("training.steps", "training.tokens")
_FREE = ("checkpoint.", "log.", "guard.", "data.checksums")
"""What may change while a stage runs: how it is watched and kept. So may its length, to its end."""

_CHANGEABLE = (
    "training.",
    "learning_rate.",
    "optimizer.",
    "masks.",
    "data.",
    "layout.",
)
"""What may change from a checkpoint on, where the stage says from which. Not its model."""

_OUT = Setting("out")
_REFUSED = Text("this stage has begun: give another ", _OUT, ", or the schedule it began with")
_ENDED = Text(
    "this stage has ended: leave it what it was, and say the other value in the sections of later "
    "stages alone; else give another ",
    _OUT,
)

_FORMS: Mapping[str, type[BaseModel]] = {
    STAGE: StageFile,
    GROWTH: GrowthRequest,
    SOURCE: StartFile,
}
_FOLDER = re.compile(r"\d{2,}-.+")


StageFiles = Mapping[PlannedStage, Mapping[str, Json]]


def prepare(folder: RunFolder, schedule: Path) -> None:
    """Write the files that a run's commands are given, and a copy of the schedule.

    Raises:
        FlmgrowError: What :func:`checked` does.
        StorageError: The file system failed.
    """
    for planned, files in checked(folder, schedule).items():
        make_folders(Path(folder.path.anchor), folder.of(planned))
        for name, content in files.items():
            write_small(folder.of(planned, name), encoded(content))
    write_small(folder.path / SCHEDULE, schedule.read_bytes())


def checked(folder: RunFolder, schedule: Path) -> StageFiles:
    """Return the content of each stage's files, by name.

    Raises:
        UsageError: If the folder has stages that the schedule has not, if a stage that has begun
            would become another, or if a stage begins with what grew from another checkpoint than
            the one before it saved; the message names what differs.
    """
    check_results_folder(folder.path)
    contents = {planned: _contents(planned) for planned in folder.stages}
    _check_folders(folder)
    for planned, files in contents.items():
        _check_unchanged(folder, planned, files)
        _check_length(folder, planned, schedule)
    for planned in folder.stages[1:]:
        _check_source(folder, planned)
    return contents


def _contents(planned: PlannedStage) -> dict[str, Json]:
    stage = planned.stage
    begins: Json = {"folder": Path(CHECKPOINTS)}
    if planned.is_given:
        begins["load"] = Path(START)
    if planned.start is not None:
        begins["begin"] = "anew" if planned.start.anew else "continue"
        begins["args_from"] = None  # what is laid out there has them
    checkpoint = stage.checkpoint.model_copy(update=begins)
    log: Json = {"metrics": Path(METRICS)}
    if stage.log.tensorboard is not None:
        log["tensorboard"] = Path(TENSORBOARD)
    changed = {"checkpoint": checkpoint, "log": stage.log.model_copy(update=log)}
    files = {STAGE: _plain(stage.model_copy(update=changed))}
    if planned.target is not None:
        files[GROWTH] = _plain(planned.target)
    if planned.start is not None:
        files[SOURCE] = _plain(StartFile.of(planned.start, stage))
    return files


def _check_folders(folder: RunFolder) -> None:
    known = {planned.folder for planned in folder.stages}
    found = sorted(folder.path.iterdir()) if folder.path.is_dir() else []
    for path in found:
        is_stage = _FOLDER.fullmatch(path.name) and (path / STAGE).exists()
        if not is_stage or path.name in known:
            continue
        begun = any((path / name).exists() for name in (CHECKPOINTS, START))
        raise UsageError(
            "is a stage that the schedule does not have",
            Text(
                "give another ",
                _OUT,
                ", or give the stage its name and place again",
                "" if begun else "; it has not begun: its folder may be removed",
            ),
            where=path,
        )


def _check_unchanged(folder: RunFolder, planned: PlannedStage, files: Mapping[str, Json]) -> None:
    settled = folder.is_settled(planned)
    ended = settled or any(folder.of(stage, START).exists() for stage in folder.after(planned))
    free = _FREE if ended else (*_FREE, *_LENGTHS)
    if not ended and planned.stage.checkpoint.change_at is not None:
        free = (*free, *_CHANGEABLE)
    given = settled or folder.of(planned, START).exists() or bool(folder.ancestry(planned))
    begun = {
        STAGE: settled or folder.of(planned, CHECKPOINTS).exists(),
        GROWTH: given,
        SOURCE: given,
    }
    for name, content in files.items():
        path = folder.of(planned, name)
        if not begun[name] or not path.exists():
            continue
        old, new = _written(path), dotted(content)
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key) and not key.startswith(free):
                changeable = name == STAGE and key.startswith(_CHANGEABLE)
                ways = _way_on(folder, planned, ended=ended) if changeable else _REFUSED
                raise UsageError(
                    f"{key} is {_shown(old.get(key))}, the schedule says {_shown(new.get(key))}",
                    ways,
                    where=path,
                )


def _way_on(folder: RunFolder, planned: PlannedStage, *, ended: bool) -> str:
    """Return how a setting of a stage that has begun, or that others grew from, may be changed."""
    if ended:
        return _ENDED
    saved = saved_iterations(folder.of(planned, CHECKPOINTS))
    told = f" ({', '.join(map(str, saved))})" if saved else ""
    return Text(
        "this stage has begun: for it to hold from a checkpoint on, say checkpoint.change_at in "
        f"this stage, with an iteration that is saved{told} or {planned.first} for its begin; else "
        "give another ",
        _OUT,
        ", or the schedule it began with",
    )


def _check_length(folder: RunFolder, planned: PlannedStage, schedule: Path) -> None:
    reached = None if folder.is_pending(planned) else folder.trained_to(planned)
    if reached is not None and reached > planned.last:
        key = "steps" if planned.stage.training.tokens is None else "tokens"
        raise UsageError(
            f"stage {planned.stage.name}: training.{key}: end it at iteration "
            f"{planned.last}, it has been trained to {reached}",
            Text(f"give at least {reached - planned.first} steps, or another ", _OUT),
            where=schedule,
        )


def _check_source(folder: RunFolder, planned: PlannedStage) -> None:
    """Raise UsageError unless what a stage begins with speaks of the stage before as it is.

    The sum over all of a source's bytes is left to ``verify``: here is compared what is known
    without reading them.
    """
    before = folder.before(planned)
    source, saved = folder.of(before, CHECKPOINTS), folder.newest(before)
    begun = bool(folder.ancestry(planned)) or folder.of(planned, START).exists()
    if begun and saved is None and not folder.is_verified(planned):
        raise UsageError(
            f"is not verified, and what it grew from is no longer in {source}",
            Text("restore those checkpoints, or give another ", _OUT),
            where=folder.of(planned, START),
        )
    grew_from = _named(folder.grew_from(planned))
    for where, there in (("the schedule", _planned_end(before)), (str(source), _end_of(saved))):
        for key, value in there.items():
            if key in grew_from and grew_from[key] != value:
                raise UsageError(
                    f"grew from a checkpoint whose {key} is {grew_from[key]}, {where} has {value}",
                    Text("restore what it grew from, or give another ", _OUT),
                    where=folder.of(planned),
                )


def _planned_end(planned: PlannedStage) -> Json:
    """Return what a schedule says of a stage's last checkpoint."""
    return {"iteration": planned.last, "parameters": parameter_count(planned.config)}


def _end_of(saved: Path | None) -> Json:
    """Return what a checkpoint says of itself, under the names that its descendants have for it."""
    state = None if saved is None else read_training_state(saved)
    if state is None:
        return {}
    carried = _named(state.carried.model_dump())
    return {"name": state.stage, "iteration": state.iteration, **carried}


def _named(known: Json) -> Json:
    """Return what is known of a checkpoint, what decides on its data by the keys for that."""
    rest = {key: value for key, value in known.items() if key not in ("data_keys", "tokenizer")}
    return {**(known.get("data_keys") or {}), **rest}


def _written(path: Path) -> dict[str, object]:
    """Return the values in a file of the run's folder, and defaults of keys that it lacks.

    So a run may go on with a flmgrow that knows more keys.

    Raises:
        UsageError: If it is no such file.
    """
    hint = Text("restore it from a copy, or give another ", _OUT)
    try:
        return dotted(_plain(_FORMS[path.name].model_validate(read_yaml(path))))
    except ValidationError as error:
        raise UsageError(problems(error.errors()), hint, path) from None
    except UsageError as error:
        raise error.with_hint(hint) from None


def _shown(value: object) -> str:
    return "nothing" if value is None else str(value)


def _plain(content: BaseModel) -> Json:
    """Return a file's content as YAML has it."""
    plain: Json = content.model_dump(mode="json", exclude_none=True)
    return plain


def encoded(content: Json) -> bytes:
    """Return the bytes of a YAML file."""
    return dump_yaml(content).encode()
