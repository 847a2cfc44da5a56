"""A run of several stages is planned as a whole, before the first token is read.

A schedule file has the sections of a stage file, which hold for all stages, and ``stages``: for
each of them what is its own. A later stage says only what changes; its ``growth`` section says how
the model gets there from the stage before. What the model of a later stage is follows from the
growth itself: its norm epsilon and output multiplier may have to change, so that the function does
not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flmgrow.errors import UsageError
from flmgrow.formats.layout import Layout, padded_size
from flmgrow.formats.strict_yaml import dotted, read_yaml
from flmgrow.model.config import ModelConfig
from flmgrow.model.masks import Dimension, Mask
from flmgrow.operators.growth import Growth
from flmgrow.operators.target import grow
from flmgrow.stages.growth_section import (
    HINT,
    KEYS,
    check_only_sizes,
    growth_of,
    sizes_after,
    target_of,
)
from flmgrow.surgery.target_file import TargetFile
from flmgrow.trainer.data import changes
from flmgrow.trainer.model_section import ModelSection
from flmgrow.trainer.stage import StageFile, layout_of, stage_of
from flmgrow.trainer.stage_keys import in_keys, told_of

LONGEST_NAME = 100
"""Bytes of a stage's name: folders are called after it, and file systems take 255."""

_LENGTHS = ("steps", "tokens")
_OF_THE_FOLDER = ("checkpoint.folder", "checkpoint.load", "log.metrics")
"""What a stage file says and a schedule does not: the run's folder decides."""

TENSORBOARD = "tensorboard"
"""The folder beside a stage's checkpoints, if it has one."""

Json = dict[str, Any]


@dataclass(frozen=True, eq=False)
class PlannedStage:
    """One stage of a run: its file, its model, and how it grows (None for the first).

    ``first`` is the iteration at which it begins, ``folder`` its folder in the run's, ``masks`` are
    those with which it begins.
    """

    stage: StageFile
    config: ModelConfig
    layout: Layout
    padded_vocab: int
    first: int
    folder: str
    target: TargetFile | None = None
    growth: Growth | None = None
    masks: Mapping[Dimension, Mask] = field(default_factory=dict)

    @property
    def unfinished(self) -> dict[Dimension, Mask]:
        """The masks that are not open when it ends."""
        return self.stage.masks.after(self.masks, self.stage.steps)

    @property
    def last(self) -> int:
        """The iteration at which it ends."""
        return self.first + self.stage.steps


def read_schedule(path: Path) -> list[PlannedStage]:
    """Return the stages of a schedule file, in order.

    Raises UsageError, naming file, stage and key, for what cannot be carried out.
    """
    data = read_yaml(path)
    if not isinstance(data, dict) or not isinstance(data.get("stages"), list):
        raise UsageError(f"{path}: has no list of stages", HINT)
    if not data["stages"]:
        raise UsageError(f"{path}: has no stages", HINT)
    names = _names_of(path, data["stages"])
    common = {key: value for key, value in data.items() if key != "stages"}
    with told_of(path):
        _check_places(common)
    planned: list[PlannedStage] = []
    for number, (name, own) in enumerate(zip(names, data["stages"], strict=True), 1):
        before = planned[-1] if planned else None
        with told_of(path, f"stage {name}: "):
            planned.append(_planned(path, number, common, own, before))
    return planned


def _names_of(path: Path, stages: Sequence[object]) -> list[str]:
    """Return the name of each stage.

    Raises UsageError for one that is missing, is no name of a folder, or is there twice.
    """
    names: list[str] = []
    for number, own in enumerate(stages, 1):
        where = f"{path}: stage {number}"
        if not isinstance(own, dict):
            raise UsageError(f"{where}: is {own!r:.60}, wanted a mapping with a name", HINT)
        name = own.get("name")
        if name is None:
            raise UsageError(f"{where}: has no name", HINT)
        if not isinstance(name, str):
            raise UsageError(f"{where}: name is {name!r:.60}, wanted a text", "put it in quotes")
        if not name or not all(c.isalnum() or c in "._-" for c in name) or name.startswith("."):
            allowed = "letters, digits, '.', '_' and '-'"
            raise UsageError(f"{where}: name is {name!r:.60}, wanted {allowed}, no '.' in front")
        if (size := len(name.encode())) > LONGEST_NAME:
            raise UsageError(
                f"{where}: name has {size} bytes, wanted at most {LONGEST_NAME}",
                "give a shorter one: its folder is called so",
            )
        if name in names:
            raise UsageError(f"{path}: two stages are called {name}", "give each its own name")
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
                "was grown for it",
            )
    log = data.get("log")
    board = log.get("tensorboard") if isinstance(log, dict) else None
    if board is not None and board != TENSORBOARD:
        raise UsageError(
            f"log.tensorboard: is {board!r:.60}, wanted {TENSORBOARD}: each stage has its own",
            "tensorboard --logdir and the run's folder shows all of them",
        )


def _planned(
    path: Path, number: int, common: Json, own: Json, before: PlannedStage | None
) -> PlannedStage:
    _check_places(own)
    growth = growth_of(own, first=before is None)
    sizes = {} if before is None else {"model": sizes_after(before.config, own.get("model"))}
    merged = merge(merge(common, sizes), {k: v for k, v in own.items() if k != "growth"})
    stage = stage_of(merged, path)
    if stage.model.vocab_size is None:
        raise UsageError("model.vocab_size: is not given", "a run is planned before data is read")
    with in_keys("model", KEYS):
        asked = stage.model.config(stage.model.vocab_size, stage.data.sequence_length)
    folder = f"{number:02d}-{stage.name}"
    multiple = stage.model.make_vocab_size_divisible_by
    padded = padded_size(asked.vocab, multiple, stage.layout.tp)
    if before is None:
        with in_keys("layout", KEYS):
            layout = layout_of(stage, asked, padded)
        return PlannedStage(stage, asked, layout, padded, 0, folder)
    check_only_sizes(own.get("model"))
    _check_same_data(before.stage, stage)
    with in_keys("growth", KEYS):
        target = target_of(growth, stage, before.config, asked)
        grown = grow(before.config, target.target(), before.padded_vocab, padded)
        masks = _masks_of(grown, before)
    with in_keys("layout", KEYS):
        layout = layout_of(stage, grown.new, padded)
    section = ModelSection.of(grown.new, multiple)
    stage = stage.model_copy(update={"model": section})
    return PlannedStage(
        stage,
        grown.new,
        layout,
        padded,
        before.last,
        folder,
        target=target,
        growth=grown,
        masks=masks,
    )


def _masks_of(growth: Growth, before: PlannedStage) -> Mapping[Dimension, Mask]:
    """Return the masks after a growth. Raises UsageError if those of the last one are not open."""
    if not growth.methods:
        return before.unfinished
    if before.unfinished:
        left = ", ".join(f"{name} at {mask.value:.3g}" for name, mask in before.unfinished.items())
        raise UsageError(
            f"growth: the stage {before.stage.name} has not opened its own when it ends ({left})",
            f"let its masks open within {before.stage.steps:,} steps (growth.ramp_steps), or make "
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
