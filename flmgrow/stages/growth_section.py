"""The growth section of a schedule's stage, as a target for ``flmgrow expand``.

A stage says what changes of the model before it, and that becomes what ``flmgrow expand`` takes.
"""

from pathlib import Path

from pydantic import ValidationError

from flmgrow.errors import UsageError
from flmgrow.model.config import ModelConfig
from flmgrow.operators.growth import Growth
from flmgrow.stages.past import GROWTH as GROWTH_FILE
from flmgrow.stages.past import STAGE
from flmgrow.storage.strict_json import Json
from flmgrow.storage.validation import problems
from flmgrow.surgery.target_file import GrowthRequest
from flmgrow.text import Found, Setting, Text
from flmgrow.trainer.stage.beginning import GrowthSection
from flmgrow.trainer.stage.file import StageFile
from flmgrow.trainer.stage.keys import KEYS, FileWords
from flmgrow.trainer.stage.model import POSITIONS, SIZES, ModelSection

HINT = "see docs/guides/run.md"


GROWTH = (
    "method",
    "depth_placement",
    "new_layers",
    "copy_noise",
    "untie",
    "optimizer",
    "fresh_second_moment",
    "ramp_steps",
    "seed",
)
"""What a stage may say of its growth: all of a target but sizes and layout."""

IN_PLACE = ("in_place", "if_diverged")
"""What it may say of a growth in memory."""

_OF_THE_RUN = ("accept", *IN_PLACE)
"""What it says of how the run goes on, and not of what grows."""

ACCEPTED = "changed-function"
"""What ``growth.accept`` may say."""

WORDS = FileWords({**KEYS, **{name: f"growth.{name}" for name in GROWTH}})
"""The words of a schedule."""


def growth_of(own: Json) -> Json:
    """Return what a stage says of its growth.

    Raises:
        UsageError: If that is no mapping.
    """
    growth = own.get("growth")
    if growth is None:
        return {}
    if not isinstance(growth, dict):
        raise UsageError(
            Text("growth: is ", Found(f"{growth!r:.60}")),
            "leave it out for the default",
            wanted="a mapping such as {method: mask}",
        )
    return growth


def sizes_after(old: ModelConfig, changes: object) -> Json:
    """Return the sizes of the model before, which hold until a stage says otherwise.

    An FFN of 4 x hidden and a group for each head are left to follow what they follow from.
    """
    changed = changes if isinstance(changes, dict) else {}
    widens = "hidden_size" in changed and old.ffn == 4 * old.hidden
    adds_heads = "num_attention_heads" in changed and old.queries_per_group == 1
    sizes: Json = {key: getattr(old, field) for key, field in SIZES.items()}
    follow = {"ffn_hidden_size": widens, "num_query_groups": adds_heads}
    return {key: None if follow.get(key) else size for key, size in sizes.items()}


def positions_after(old: ModelConfig) -> Json:
    """Return the positions of the stage before, which hold until a stage says otherwise."""
    section = ModelSection.of(old)
    return section.model_dump(include=set(POSITIONS), exclude_none=True)


def check_may_change(changes: object, old: ModelConfig) -> None:
    """Raise UsageError if a stage that grows says of its model what no stage can change."""
    names = set(map(str, changes)) if isinstance(changes, dict) else set()
    if other := sorted(names - SIZES.keys() - set(POSITIONS)):
        raise UsageError(
            f"model.{other[0]}: growth changes sizes only",
            f"say it once, for all stages; a later one may say {', '.join((*SIZES, *POSITIONS))}",
        )
    if old.positions == "learned" and (said := sorted(names & set(POSITIONS))):
        raise UsageError(
            f"model.{said[0]}: the model has a table of {old.max_positions:,} learned positions",
            "only computed ones can be others in a later stage",
        )


def accepts_change(growth: Json) -> bool:
    """Return whether a stage may grow into another function.

    Raises:
        UsageError: For other words.
    """
    said = growth.get("accept")
    if said not in (None, ACCEPTED):
        raise UsageError(
            Text("is ", Found(f"{said!r:.60}")), HINT, "growth.accept", wanted=ACCEPTED
        )
    return said is not None


def in_place_of(growth: Json, before: str | None) -> GrowthSection | None:
    """Return how a stage file says that its model grows in memory, None if it does not.

    ``before`` is the folder of the stage before, if there is one.

    Raises:
        UsageError: For what is no answer.
    """
    said = growth.get("in_place", False)
    if not isinstance(said, bool):
        raise UsageError(
            Text("is ", Found(f"{said!r:.60}")), HINT, "growth.in_place", wanted="true or false"
        )
    if "if_diverged" in growth and not said:
        raise UsageError(
            "holds for a growth in memory", "say growth.in_place: true, too", "growth.if_diverged"
        )
    if not said:
        return None
    if before is None:
        raise UsageError(
            "what a run starts with is in no memory yet", "leave it out", "growth.in_place"
        )
    places = {"after": Path("..", before, STAGE), "to": Path(GROWTH_FILE)}
    diverged = {key: growth[key] for key in IN_PLACE[1:] if key in growth}
    try:
        return GrowthSection.model_validate({**places, **diverged})
    except ValidationError as error:
        raise UsageError(problems(error.errors()), HINT) from None


def check_keeps_function(growth: Growth, *, accepts: bool) -> None:
    """Raise UsageError if a growth changes the function and the schedule does not accept that.

    It would be trained for, grown, and then stopped by its verification.
    """
    if growth.preserves or accepts:
        return
    methods = ", ".join(f"{name} by {method}" for name, method in growth.methods.items())
    raise UsageError(
        Text(
            Setting("method"),
            f": {methods} changes the function, so its verification would stop the run",
        ),
        "choose a method that keeps it (mask, zero or copy), or say growth.accept: "
        f"{ACCEPTED} in that stage: verify's verdict is then recorded, and the run goes on",
    )


def target_of(growth: Json, stage: StageFile, old: ModelConfig, new: ModelConfig) -> GrowthRequest:
    """Return what ``flmgrow expand --to`` is given, sizes that stay left out."""
    changed = {
        key: getattr(new, field)
        for key, field in SIZES.items()
        if key != "kv_channels" and getattr(new, field) != getattr(old, field)
    }
    layout = stage.layout.model_dump(include={"tp", "pp", "vpp", "pipeline_layers"})
    growth = {key: value for key, value in growth.items() if key not in _OF_THE_RUN}
    if unknown := sorted(map(str, growth.keys() - set(GROWTH))):
        raise UsageError("there is no such key", HINT, where=unknown[0])
    try:
        target = GrowthRequest.model_validate({**changed, "method": "mask", **growth, **layout})
    except ValidationError as error:
        raise UsageError(problems(error.errors()), HINT) from None
    if new.head_dim != old.head_dim:
        raise UsageError(
            f"heads of {new.head_dim} after heads of {old.head_dim}: the head size cannot grow",
            "give more heads, so that hidden_size / num_attention_heads stays",
        )
    return target
