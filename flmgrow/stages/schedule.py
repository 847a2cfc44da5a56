"""A run of several stages is planned as a whole, before the first token is read.

A schedule file has the sections of a stage file, which hold for all stages, and ``stages``: for
each of them what is its own. A later stage says only what changes; its ``growth`` section says how
the model gets there from the stage before. What the model of a later stage is follows from the
growth itself: its norm epsilon and output multiplier may have to change, so that the function does
not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from flmgrow.errors import UsageError
from flmgrow.formats.layout import Layout
from flmgrow.model.config import ModelConfig
from flmgrow.operators.growth import Growth
from flmgrow.operators.target import grow
from flmgrow.operators.vocab import padded_size
from flmgrow.surgery.target_file import TargetFile
from flmgrow.trainer.stage import StageFile, layout_of, problems, read_yaml, stage_of
from flmgrow.trainer.stage_sections import Count, ModelSection, Section

HINT = "see docs/guides/run.md"
_LENGTHS = ("steps", "tokens")
_SIZES = {
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "vocab_size",
}
Json = dict[str, Any]


class GrowthSection(Section):
    """How a stage's model grows out of the one before: what ``flmgrow expand`` takes."""

    method: str | dict[str, str] = "mask"
    depth_placement: str | None = None
    new_layers: str | None = None
    copy_noise: float | None = Field(None, ge=0, le=10)
    optimizer: str | None = None
    fresh_second_moment: str | None = None
    ramp_steps: Count | None = None
    seed: int | None = Field(None, ge=0)


@dataclass(frozen=True, eq=False)
class PlannedStage:
    """One stage of a run: its file, its model, and how it grows (None for the first).

    ``first`` is the iteration at which it begins, ``folder`` its folder in the run's.
    """

    stage: StageFile
    config: ModelConfig
    layout: Layout
    padded_vocab: int
    first: int
    folder: str
    target: TargetFile | None = None
    growth: Growth | None = None

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
    common = {key: value for key, value in data.items() if key != "stages"}
    planned: list[PlannedStage] = []
    for number, own in enumerate(data["stages"], 1):
        if not isinstance(own, dict) or not isinstance(own.get("name"), str):
            raise UsageError(f"{path}: stage {number}: has no name", HINT)
        before = planned[-1] if planned else None
        try:
            planned.append(_planned(path, number, common, own, before))
        except UsageError as error:
            message = error.message.removeprefix(f"{path}: ")
            where = f"{path}: stage {own['name']}"
            raise UsageError(f"{where}: {message}", error.hint) from None
    if not planned:
        raise UsageError(f"{path}: has no stages", HINT)
    _check_names(path, planned)
    return planned


def _check_names(path: Path, planned: list[PlannedStage]) -> None:
    names = [each.stage.name for each in planned]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{path}: two stages are called {name}", "give each its own name")
        if not name or not all(c.isalnum() or c in "._-" for c in name) or name.startswith("."):
            raise UsageError(f"{path}: stage {name!r}: wanted letters, digits, '.', '_' and '-'")


def _planned(
    path: Path, number: int, common: Json, own: Json, before: PlannedStage | None
) -> PlannedStage:
    sizes = {} if before is None else {"model": _sizes_after(before.config, own.get("model"))}
    merged = merge(merge(common, sizes), {k: v for k, v in own.items() if k != "growth"})
    stage = stage_of(merged, path)
    if stage.model.vocab_size is None:
        raise UsageError("model.vocab_size: is not given", "a run is planned before data is read")
    asked = stage.model.config(stage.model.vocab_size, stage.data.sequence_length)
    folder = f"{number:02d}-{stage.name}"
    multiple = stage.model.make_vocab_size_divisible_by
    padded = padded_size(asked.vocab, multiple, stage.layout.tp)
    if before is None:
        if own.get("growth") is not None:
            raise UsageError("growth: the first stage has nothing to grow from")
        layout = layout_of(stage, asked, padded)
        return PlannedStage(stage, asked, layout, padded, 0, folder)
    _check_only_sizes(own.get("model"))
    _check_same_data(before.stage, stage)
    target = _target(own.get("growth") or {}, stage, before.config, asked)
    growth = grow(before.config, target.target(), before.padded_vocab, padded)
    layout = layout_of(stage, growth.new, padded)
    section = ModelSection.of(growth.new, multiple)
    stage = stage.model_copy(update={"model": section})
    return PlannedStage(
        stage, growth.new, layout, padded, before.last, folder, target=target, growth=growth
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


def _sizes_after(old: ModelConfig, changes: object) -> Json:
    """Return the sizes of the stage before, which hold until a stage says otherwise.

    An FFN of 4 x hidden and a group for each head are left to follow what they follow from.
    """
    changed = changes if isinstance(changes, dict) else {}
    widens = "hidden_size" in changed and old.ffn == 4 * old.hidden
    adds_heads = "num_attention_heads" in changed and old.queries_per_group == 1
    return {
        "num_layers": old.layers,
        "hidden_size": old.hidden,
        "ffn_hidden_size": None if widens else old.ffn,
        "num_attention_heads": old.heads,
        "num_query_groups": None if adds_heads else old.kv_groups,
        "kv_channels": old.head_dim,
    }


def _check_only_sizes(changes: object) -> None:
    names = set(map(str, changes)) if isinstance(changes, dict) else set()
    if other := sorted(names - _SIZES):
        raise UsageError(
            f"model.{other[0]}: growth changes sizes only",
            f"say it once, for all stages; a later one may say {', '.join(sorted(_SIZES))}",
        )


def _check_same_data(before: StageFile, stage: StageFile) -> None:
    if before.data != stage.data:
        names = type(stage.data).model_fields
        other = [n for n in names if getattr(before.data, n) != getattr(stage.data, n)]
        raise UsageError(
            f"data.{other[0]}: is another than in the stage before",
            "samples go on through all stages, each read once: say the data once, for all",
        )


def _target(growth: object, stage: StageFile, old: ModelConfig, new: ModelConfig) -> TargetFile:
    """Return what ``flmgrow expand --to`` is given, sizes that stay left out."""
    try:
        section = GrowthSection.model_validate(growth)
        sizes = {
            "num_layers": (old.layers, new.layers),
            "hidden_size": (old.hidden, new.hidden),
            "ffn_hidden_size": (old.ffn, new.ffn),
            "num_attention_heads": (old.heads, new.heads),
            "num_query_groups": (old.kv_groups, new.kv_groups),
            "vocab_size": (old.vocab, new.vocab),
        }
        layout = stage.layout
        method = section.method
        fields = {
            **{name: size for name, (was, size) in sizes.items() if was != size},
            **section.model_dump(exclude_none=True, exclude={"method"}),
            "method": method if isinstance(method, str) else _methods_text(method),
            "tp": layout.tp,
            "pp": layout.pp,
            "vpp": layout.vpp,
            "pipeline_layers": layout.pipeline_layers,
        }
        target = TargetFile.model_validate(fields)
    except ValidationError as error:
        raise UsageError(f"growth: {problems(error.errors())}", HINT) from None
    if new.head_dim != old.head_dim:
        raise UsageError(
            f"heads of {new.head_dim} after heads of {old.head_dim}: the head size cannot grow",
            "give more heads, so that hidden_size / num_attention_heads stays",
        )
    return target


def _methods_text(methods: Mapping[str, str]) -> str:
    return ",".join(f"{dimension}={method}" for dimension, method in methods.items())
