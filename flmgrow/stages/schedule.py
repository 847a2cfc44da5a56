"""Reading a schedule, the file of a run of several stages, and checking it as a whole.

A run of several stages is planned as a whole, before the first token is read. A schedule file has
the sections of a stage file, which hold for all stages, and ``stages``: for each of them what is
its own. A later stage says only what changes; its ``growth`` section says how the model gets there
from the stage before. What the model of a later stage is follows from the growth itself: its norm
epsilon and output multiplier may have to change, so that the function does not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flmgrow.errors import UsageError
from flmgrow.formats.layout.placements import Layout, padded_size
from flmgrow.model.config import ModelConfig
from flmgrow.model.masks import Dimension, Mask
from flmgrow.operators.growth import Growth
from flmgrow.operators.target import grow
from flmgrow.stages.growth_section import (
    HINT,
    WORDS,
    accepts_change,
    check_keeps_function,
    check_only_sizes,
    growth_of,
    sizes_after,
    target_of,
)
from flmgrow.stages.past import steps_of
from flmgrow.stages.start import Start, check_agrees, start_of, with_start
from flmgrow.storage.strict_json import Json
from flmgrow.storage.strict_yaml import dotted, read_yaml
from flmgrow.surgery.target_file import GrowthRequest
from flmgrow.text import Found, Text
from flmgrow.trainer.data.batches import changes
from flmgrow.trainer.stage.file import StageFile, layout_of, stage_of
from flmgrow.trainer.stage.keys import in_keys, told_of
from flmgrow.trainer.stage.model import ModelSection

LONGEST_NAME = 100
"""Bytes of a stage's name: folders are called after it, and file systems take 255."""

_LENGTHS = ("steps", "tokens")
_OF_THE_FOLDER = ("checkpoint.folder", "checkpoint.load", "log.metrics")
"""What a stage file says and a schedule does not: the run's folder decides."""

_OF_ONE_STAGE = ("checkpoint.begin", "checkpoint.change_at", "checkpoint.args_from")
"""What can hold for one stage only."""

_OF_A_START = ("begin", "args_from")
"""What of a stage's checkpoint can hold for the first stage only."""

TENSORBOARD = "tensorboard"
"""The folder beside a stage's checkpoints, if it has one."""


@dataclass(frozen=True, eq=False)
class PlannedStage:
    """One stage of a run: its file, its model, and how it grows (None for the first).

    A first stage may have a ``start``. Of a later one ``accepts`` says that it may grow into
    another function.

    ``first`` is the iteration at which it begins, ``folder`` its folder in the run's, ``masks`` are
    those with which it begins. It takes ``steps`` of them, of which some may have had another
    batch.
    """

    stage: StageFile
    config: ModelConfig
    layout: Layout
    padded_vocab: int
    first: int
    steps: int
    folder: str
    target: GrowthRequest | None = None
    growth: Growth | None = None
    start: Start | None = None
    accepts: bool = False
    masks: Mapping[Dimension, Mask] = field(default_factory=dict)

    @property
    def is_given(self) -> bool:
        """Whether it begins with a checkpoint, and not with fresh weights."""
        return self.target is not None or self.start is not None

    @property
    def unfinished(self) -> dict[Dimension, Mask]:
        """The masks that are not open when it ends."""
        return self.stage.masks.after(self.masks, self.steps)

    @property
    def last(self) -> int:
        """The iteration at which it ends."""
        return self.first + self.steps


def read_schedule(path: Path, run: Path | None = None) -> list[PlannedStage]:
    """Return the stages of a schedule file, in order.

    ``run`` is the run's folder: how many steps a stage takes depends on what has been done there
    with other batches. Raises UsageError, naming file, stage and key, for what cannot be carried
    out, and what opening the checkpoint raises that the first stage starts with.
    """
    data = read_yaml(path)
    if not isinstance(data, dict) or not isinstance(data.get("stages"), list):
        raise UsageError("has no list of stages", HINT, where=path)
    if not data["stages"]:
        raise UsageError("has no stages", HINT, where=path)
    names = _names_of(path, data["stages"])
    common = {key: value for key, value in data.items() if key != "stages"}
    with told_of(path):
        _check_places(common)
        _check_of_one_stage(common)
    planned: list[PlannedStage] = []
    for number, (name, own) in enumerate(zip(names, data["stages"], strict=True), 1):
        before = planned[-1] if planned else None
        with told_of(path, f"stage {name}"):
            planned.append(_planned(Place(path, number, run), common, own, before))
        if planned[-1].start is not None:  # what is said of the model is said once, by its start
            common = {**common, "model": planned[-1].start.section.model_dump(exclude_none=True)}
    return planned


def _names_of(path: Path, stages: Sequence[object]) -> list[str]:
    """Return the name of each stage.

    Raises UsageError for one that is missing, is no name of a folder, or is there twice.
    """
    names: list[str] = []
    for number, own in enumerate(stages, 1):
        where = f"{path}: stage {number}"
        if not isinstance(own, dict):
            raise UsageError(
                Text("is ", Found(f"{own!r:.60}")),
                HINT,
                where=where,
                wanted="a mapping with a name",
            )
        name = own.get("name")
        if name is None:
            raise UsageError("has no name", HINT, where=where)
        if not isinstance(name, str):
            raise UsageError(
                Text("name is ", Found(f"{name!r:.60}")),
                "put it in quotes",
                where=where,
                wanted="a text",
            )
        if not name or not all(c.isalnum() or c in "._-" for c in name) or name.startswith("."):
            allowed = "letters, digits, '.', '_' and '-'"
            raise UsageError(
                Text("name is ", Found(f"{name!r:.60}")),
                where=where,
                wanted=f"{allowed}, no '.' in front",
            )
        if (size := len(name.encode())) > LONGEST_NAME:
            raise UsageError(
                Text("name has ", Found(size), " bytes"),
                "give a shorter one: its folder is called so",
                where=where,
                wanted=f"at most {LONGEST_NAME}",
            )
        if name in names:
            raise UsageError(f"two stages are called {name}", "give each its own name", where=path)
        names.append(name)
    return names


def _check_places(data: Json) -> None:
    for key in _OF_THE_FOLDER:
        section, name = key.split(".")
        inside = data.get(section)
        if isinstance(inside, dict) and inside.get(name) is not None:
            raise UsageError(
                f"{key}: is {inside[name]!r:.60}, but the run's folder decides it",
                "leave it out: all of a run lies in its folder, and each stage begins with what "
                "was grown for it; a model that the first one begins with is its start: FOLDER",
            )
    log = data.get("log")
    board = log.get("tensorboard") if isinstance(log, dict) else None
    if board is not None and board != TENSORBOARD:
        raise UsageError(
            Text("log.tensorboard: is ", Found(f"{board!r:.60}")),
            "tensorboard --logdir and the run's folder shows all of them",
            wanted=f"{TENSORBOARD}: each stage has its own",
        )


def _check_of_one_stage(data: Json) -> None:
    for key in _OF_ONE_STAGE:
        section, name = key.split(".")
        inside = data.get(section)
        if isinstance(inside, dict) and inside.get(name) is not None:
            raise UsageError(f"{key}: holds for one stage only", "say it in that stage")


@dataclass(frozen=True)
class Place:
    """Where a stage stands: the schedule's file, its number there, and the run's folder."""

    schedule: Path
    number: int
    run: Path | None

    def steps_of(self, stage: StageFile, first: int) -> int:
        """Return the steps that a stage takes, of which some may be done."""
        if self.run is None:
            return stage.steps
        return steps_of(self.run / self.folder_of(stage), stage, first)

    def folder_of(self, stage: StageFile) -> str:
        """Return the name of the stage's folder."""
        return f"{self.number:02d}-{stage.name}"


def _planned(place: Place, common: Json, own: Json, before: PlannedStage | None) -> PlannedStage:
    if before is None:
        own = with_start(own)
    _check_places(own)
    if before is None:
        return _first(place, common, own)
    _check_later(own)
    growth = growth_of(own, first=False)
    sizes = {"model": sizes_after(before.config, own.get("model"))}
    merged = merge(merge(common, sizes), {k: v for k, v in own.items() if k != "growth"})
    stage = stage_of(merged, place.schedule)
    asked = _asked(stage)
    multiple = stage.model.make_vocab_size_divisible_by
    padded = padded_size(asked.vocab, multiple, stage.layout.tp)
    check_only_sizes(own.get("model"))
    if stage.checkpoint.change_at is None:
        _check_same_data(before.stage, stage)
    accepts = accepts_change(growth)
    with in_keys("growth", WORDS):
        target = target_of(growth, stage, before.config, asked)
        grown = grow(before.config, target.target(), before.padded_vocab, padded)
        check_keeps_function(grown, accepts=accepts)
        masks = _masks_of(grown, before)
    with in_keys("layout", WORDS):
        layout = layout_of(stage, grown.new, padded)
    section = ModelSection.of(grown.new, multiple)
    stage = stage.model_copy(update={"model": section})
    return PlannedStage(
        stage,
        grown.new,
        layout,
        padded,
        before.last,
        place.steps_of(stage, before.last),
        place.folder_of(stage),
        target=target,
        growth=grown,
        accepts=not grown.preserves,
        masks=masks,
    )


def _first(place: Place, common: Json, own: Json) -> PlannedStage:
    """Return the first stage, which begins with fresh weights, or a start."""
    growth_of(own, first=True)
    merged = merge(common, {key: value for key, value in own.items() if key != "start"})
    stage = stage_of(merged, place.schedule)
    start = start_of(own, stage, place.schedule.absolute().parent)
    if start is None:
        if stage.checkpoint.begin is not None:
            raise UsageError(
                f"checkpoint.begin: is {stage.checkpoint.begin}, but the stage has no start",
                "fresh weights begin anew: leave it out",
            )
        config = _asked(stage)
    else:
        check_agrees(stage.model, start)
        config = start.config
        stage = stage.model_copy(update={"model": start.section})
    padded = padded_size(config.vocab, stage.model.make_vocab_size_divisible_by, stage.layout.tp)
    with in_keys("layout", WORDS):
        layout = layout_of(stage, config, padded)
    first = 0 if start is None else start.iteration
    steps, folder = place.steps_of(stage, first), place.folder_of(stage)
    return PlannedStage(stage, config, layout, padded, first, steps, folder, start=start)


def _asked(stage: StageFile) -> ModelConfig:
    """Return the model that a stage describes."""
    if stage.model.vocab_size is None:
        raise UsageError("model.vocab_size: is not given", "a run is planned before data is read")
    with in_keys("model", WORDS):
        return stage.model.config(stage.model.vocab_size, stage.data.sequence_length)


def _check_later(own: Json) -> None:
    """Raise UsageError if a later stage says how the run begins."""
    checkpoint = own.get("checkpoint")
    section = checkpoint if isinstance(checkpoint, dict) else {}
    said = {f"checkpoint.{name}": section.get(name) for name in _OF_A_START}
    for key in (
        key for key, value in {**said, "start": own.get("start")}.items() if value is not None
    ):
        raise UsageError(
            f"{key}: a later stage begins with what grew out of the one before",
            "only the first stage of a schedule may say it",
        )


def _masks_of(growth: Growth, before: PlannedStage) -> Mapping[Dimension, Mask]:
    """Return the masks after a growth. Raises UsageError if those of the last one are not open."""
    if not growth.methods:
        return before.unfinished
    if before.unfinished:
        left = ", ".join(f"{name} at {mask.value:.3g}" for name, mask in before.unfinished.items())
        raise UsageError(
            f"the stage {before.stage.name} has not opened its own when it ends ({left})",
            f"let its masks open within {before.steps:,} steps (growth.ramp_steps), or make "
            "it longer",
        )
    return growth.masks


def merge(common: Mapping[str, Any], own: Mapping[str, Any]) -> Json:
    """Return ``common`` with ``own`` over it, mapping by mapping.

    A length in steps takes the place of one in tokens, and the other way round.
    """
    result = dict(common)
    if set(_LENGTHS) & own.keys():
        result = {key: value for key, value in result.items() if key not in _LENGTHS}
    for key, value in own.items():
        known = result.get(key)
        if isinstance(value, dict) and isinstance(known, dict):
            value = merge(known, value)
        result[key] = value
    return result


def _check_same_data(before: StageFile, stage: StageFile) -> None:
    was, now = (dotted(each.data.model_dump(mode="json"), "data.") for each in (before, stage))
    if differing := changes(was, now):
        raise UsageError(
            f"other data than in the stage before: {differing}",
            "samples go on through all stages, each read once: say the data once, for all",
        )
