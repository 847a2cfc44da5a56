"""Reading a schedule, the file of a run of several stages, and checking it as a whole.

A run of several stages is planned as a whole, before the first token is read. A schedule file has
the sections of a stage file, which hold for all stages, and ``stages``: for each of them what is
its own. A later stage says only what changes; its ``growth`` section says how the model gets there
from the stage before. What the model of a later stage is follows from the growth itself: its norm
epsilon and output multiplier may have to change, so that the function does not.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flmgrow.errors import UsageError
from flmgrow.formats.layout.placements import padded_size
from flmgrow.model.config import ModelConfig
from flmgrow.model.masks import Dimension, Mask
from flmgrow.operators.growth import Growth
from flmgrow.operators.target import grow
from flmgrow.stages.growth_section import (
    HINT,
    WORDS,
    accepts_change,
    check_keeps_function,
    check_may_change,
    growth_of,
    in_place_of,
    positions_after,
    sizes_after,
    target_of,
)
from flmgrow.stages.later_data import check_orders, data_after
from flmgrow.stages.places import (
    check_later,
    check_of_one_stage,
    check_places,
    names_of,
)
from flmgrow.stages.planned_stage import PlannedStage, Smaller, StagePlace
from flmgrow.stages.start import HINT as HINT_TO_START
from flmgrow.stages.start import check_agrees, start_of, with_start
from flmgrow.storage.strict_json import Json
from flmgrow.storage.strict_yaml import read_yaml
from flmgrow.trainer.stage.chain import check_ranks
from flmgrow.trainer.stage.file import StageFile, layout_of, stage_of
from flmgrow.trainer.stage.keys import in_keys, told_of
from flmgrow.trainer.stage.model import ModelSection, with_positions

_LENGTHS = ("steps", "tokens")


def read_schedule(path: Path, run: Path | None = None) -> list[PlannedStage]:
    """Return the stages of a schedule file, in order.

    ``run`` is the run's folder: how many steps a stage takes depends on what has been done there
    with other batches.

    Raises:
        UsageError: For what cannot be carried out; the message names file, stage and key.
        FlmgrowError: What opening the checkpoint raises that the first stage starts with.
    """
    return planned_stages(read_yaml(path), path, run)


def planned_stages(data: object, path: Path, run: Path | None = None) -> list[PlannedStage]:
    """Return the stages of the schedule that ``data``, of the file ``path``, holds.

    Raises:
        FlmgrowError: As ``read_schedule`` does.
    """
    if not isinstance(data, dict) or not isinstance(data.get("stages"), list):
        raise UsageError("has no list of stages", HINT, where=path)
    if not data["stages"]:
        raise UsageError("has no stages", HINT, where=path)
    names = names_of(path, data["stages"])
    common = {key: value for key, value in data.items() if key != "stages"}
    with told_of(path):
        check_places(common)
        check_of_one_stage(common)
    planned: list[PlannedStage] = []
    for number, (name, own) in enumerate(zip(names, data["stages"], strict=True), 1):
        before = planned[-1] if planned else None
        with told_of(path, f"stage {name}"):
            stage = _planned(StagePlace(path, number, run), common, own, before)
            check_orders([each.stage.data for each in planned], stage.stage.data)
            _ = stage.frozen  # what it names must be there
        planned.append(stage)
        if planned[-1].start is not None:  # what is said of the model is said once, by its start
            common = {**common, "model": planned[-1].start.section.model_dump(exclude_none=True)}
    return planned


def _planned(
    place: StagePlace, common: Json, own: Json, before: PlannedStage | None
) -> PlannedStage:
    if before is None:
        own = with_start(own)
    check_places(own)
    if before is None:
        return _first(place, common, own)
    check_later(own)
    return _grown(place, common, own, Smaller.after(before))


def _grown(place: StagePlace, common: Json, own: Json, before: Smaller) -> PlannedStage:
    """Return a stage that trains what grows out of ``before``."""
    growth = growth_of(own)
    check_may_change(own.get("model"), before.config)
    held = sizes_after(before.config, own.get("model")) | positions_after(before.config)
    stage = stage_of(merge(merge(common, {"model": held}), _of_a_stage(own)), place.schedule)
    asked = _asked(stage)
    multiple = stage.model.make_vocab_size_divisible_by
    padded = padded_size(asked.vocab, multiple, stage.layout.tp)
    accepts = accepts_change(growth)
    with in_keys("growth", WORDS):
        in_place = in_place_of(growth, before.stage.folder if before.stage is not None else None)
        target = target_of(growth, stage, before.config, asked)
        grown = grow(before.config, target.target(), before.padded_vocab, padded)
        check_keeps_function(grown, accepts=accepts)
        masks = _masks_of(grown, before)
    if in_place is not None and before.stage is not None:
        check_ranks(before.stage.stage, stage, "leave out growth.in_place: expand lays it out anew")
    with in_keys("layout", WORDS):
        layout = layout_of(stage, grown.new, padded)
    config = with_positions(stage.model, grown.new, stage.data.sequence_length)
    stage = _going_on(stage, before, config, multiple, moved=config != grown.new)
    stage = stage.model_copy(update={"growth": in_place})
    return PlannedStage(
        stage,
        config,
        layout,
        padded,
        before.last,
        place.steps_of(stage, before.last),
        place.folder_of(stage),
        target=target,
        growth=grown,
        start=before.start,
        accepts=not grown.preserves,
        masks=masks,
        fresh=grown.fresh or before.fresh,
    )


def _first(place: StagePlace, common: Json, own: Json) -> PlannedStage:
    """Return the first stage, which begins with fresh weights, a start, or what grows out of it."""
    grows = own.get("growth") is not None
    # The sizes of a stage that grows are those of the result, and not the start's
    said = {key: value for key, value in _of_a_stage(own).items() if key != "model" or not grows}
    stage = stage_of(merge(common, said), place.schedule)
    start = start_of(own, stage, place.schedule.absolute().parent)
    if start is None:
        if grows:
            raise UsageError("growth: the first stage has nothing to grow from", HINT_TO_START)
        if stage.checkpoint.begin is not None:
            raise UsageError(
                f"checkpoint.begin: is {stage.checkpoint.begin}, but the stage has no start",
                "fresh weights begin anew: leave it out",
            )
        config = _asked(stage)
    else:
        check_agrees(stage.model, start)
        if grows:
            whole = {**common, "model": start.section.model_dump(exclude_none=True)}
            return _grown(place, whole, own, Smaller.at(start))
        config = start.config
        stage = stage.model_copy(update={"model": start.section})
    padded = padded_size(config.vocab, stage.model.make_vocab_size_divisible_by, stage.layout.tp)
    with in_keys("layout", WORDS):
        layout = layout_of(stage, config, padded)
    first = 0 if start is None else start.iteration
    steps, folder = place.steps_of(stage, first), place.folder_of(stage)
    masks = {} if start is None else start.masks
    fresh = {} if start is None else start.fresh
    return PlannedStage(
        stage, config, layout, padded, first, steps, folder, start=start, masks=masks, fresh=fresh
    )


def _of_a_stage(own: Json) -> Json:
    """Return what is a stage file's of what a schedule says of a stage."""
    return {key: value for key, value in own.items() if key not in ("growth", "start")}


def _asked(stage: StageFile) -> ModelConfig:
    """Return the model that a stage describes."""
    if stage.model.vocab_size is None:
        raise UsageError("model.vocab_size: is not given", "a run is planned before data is read")
    with in_keys("model", WORDS):
        return stage.model.config(stage.model.vocab_size, stage.data.sequence_length)


def _masks_of(growth: Growth, before: Smaller) -> Mapping[Dimension, Mask]:
    """Return the masks after a growth.

    Raises:
        UsageError: If those of the last one are not open.
    """
    if not growth.methods:
        return before.masks
    if not before.masks:
        return growth.masks
    left = ", ".join(f"{name} at {mask.value:.3g}" for name, mask in before.masks.items())
    if before.stage is None:
        raise UsageError(
            f"start: has not opened its own masks ({left})",
            "leave the growth to a later stage, before which they open",
        )
    raise UsageError(
        f"the stage {before.stage.stage.name} has not opened its own when it ends ({left})",
        f"let its masks open within {before.stage.steps:,} steps (growth.ramp_steps), or make "
        "it longer",
    )


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


def _going_on(
    stage: StageFile, before: Smaller, config: ModelConfig, multiple: int, *, moved: bool
) -> StageFile:
    """Return a later stage as its own file says it, of which a schedule knows the stage before.

    Its positions may be ``moved``: a schedule that says so asks for it.
    """
    earlier = before.stage
    checkpoint = stage.checkpoint.model_copy(update={"other_positions": moved})
    return stage.model_copy(
        update={
            "model": ModelSection.of(config, multiple),
            "data": stage.data if earlier is None else data_after(earlier.stage.data, stage.data),
            "checkpoint": checkpoint if moved else stage.checkpoint,
        }
    )
