"""A run of several stages is planned as a whole, before the first token is read.

A schedule file has the sections of a stage file, which hold for all stages, and ``stages``: for
each of them what is its own. A later stage says only what changes; its ``growth`` section says how
the model gets there from the stage before. What the model of a later stage is follows from the
growth itself: its norm epsilon and output multiplier may have to change, so that the function does
not.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from flmgrow.errors import UsageError
from flmgrow.formats.layout import Layout
from flmgrow.formats.strict_yaml import problems, read_yaml
from flmgrow.model.config import ModelConfig
from flmgrow.operators.growth import Growth
from flmgrow.operators.target import grow
from flmgrow.operators.vocab import padded_size
from flmgrow.surgery.target_file import TargetFile
from flmgrow.trainer.stage import StageFile, layout_of, stage_of
from flmgrow.trainer.stage_sections import Count, LayoutSection, ModelSection, Section

HINT = "see docs/guides/run.md"
LONGEST_NAME = 100
"""Bytes of a stage's name: folders are called after it, and file systems take 255."""

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
_OF_THE_FOLDER = ("checkpoint.folder", "checkpoint.load", "log.metrics")
"""What a stage file says and a schedule does not: the run's folder decides."""

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


_KEYS = {
    **{name: f"model.{name}" for name in ModelSection.model_fields},
    **{name: f"layout.{name}" for name in LayoutSection.model_fields},
    **{name: f"growth.{name}" for name in GrowthSection.model_fields},
    "sequence_length": "data.sequence_length",
    "layer": "model.num_layers",
    "hidden": "model.hidden_size",
    "ffn": "model.ffn_hidden_size",
    "kv_group": "model.num_query_groups",
    "vocab": "model.vocab_size",
}
"""A schedule's keys by the names of options, fields and axes."""

_SPOKEN = re.compile(r"^([a-z_]+)(?=[ :])|--([a-z]+(?:-[a-z]+)*)")
_BEGINS_WITH_KEY = re.compile(r"(model|layout|growth|data)[.:]")


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
    if not data["stages"]:
        raise UsageError(f"{path}: has no stages", HINT)
    names = _names_of(path, data["stages"])
    common = {key: value for key, value in data.items() if key != "stages"}
    with _told_of(path):
        _check_places(common)
    planned: list[PlannedStage] = []
    for number, (name, own) in enumerate(zip(names, data["stages"], strict=True), 1):
        before = planned[-1] if planned else None
        with _told_of(path, f"stage {name}: "):
            planned.append(_planned(path, number, common, own, before))
    return planned


@contextmanager
def _told_of(path: Path, where: str = "") -> Iterator[None]:
    """Let what is refused inside begin with the file, and ``where`` in it."""
    try:
        yield
    except UsageError as error:
        message = error.message.removeprefix(f"{path}: ")
        raise UsageError(f"{path}: {where}{message}", error.hint) from None


@contextmanager
def _in_keys(section: str) -> Iterator[None]:
    """Let what is refused inside speak of a schedule's keys, and begin with one.

    It comes from what every command uses, and speaks of options and axes. ``section`` is the key
    where it names none.
    """
    try:
        yield
    except UsageError as error:
        message, hint = _keyed(error.message), _keyed(error.hint)
        where = "" if _BEGINS_WITH_KEY.match(message) else f"{section}: "
        raise UsageError(f"{where}{message}", hint) from None


def _keyed(text: str) -> str:
    """Return ``text`` with a schedule's keys for options, and for the name that it begins with."""
    return _SPOKEN.sub(lambda f: _KEYS.get((f[1] or f[2]).replace("-", "_"), f[0]), text)


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


def _planned(
    path: Path, number: int, common: Json, own: Json, before: PlannedStage | None
) -> PlannedStage:
    _check_places(own)
    growth = _growth_of(own, before)
    sizes = {} if before is None else {"model": _sizes_after(before.config, own.get("model"))}
    merged = merge(merge(common, sizes), {k: v for k, v in own.items() if k != "growth"})
    stage = stage_of(merged, path)
    if stage.model.vocab_size is None:
        raise UsageError("model.vocab_size: is not given", "a run is planned before data is read")
    with _in_keys("model"):
        asked = stage.model.config(stage.model.vocab_size, stage.data.sequence_length)
    folder = f"{number:02d}-{stage.name}"
    multiple = stage.model.make_vocab_size_divisible_by
    padded = padded_size(asked.vocab, multiple, stage.layout.tp)
    if before is None:
        with _in_keys("layout"):
            layout = layout_of(stage, asked, padded)
        return PlannedStage(stage, asked, layout, padded, 0, folder)
    _check_only_sizes(own.get("model"))
    _check_same_data(before.stage, stage)
    with _in_keys("growth"):
        target = _target(growth, stage, before.config, asked)
        grown = grow(before.config, target.target(), before.padded_vocab, padded)
    with _in_keys("layout"):
        layout = layout_of(stage, grown.new, padded)
    section = ModelSection.of(grown.new, multiple)
    stage = stage.model_copy(update={"model": section})
    return PlannedStage(
        stage, grown.new, layout, padded, before.last, folder, target=target, growth=grown
    )


def _growth_of(own: Json, before: PlannedStage | None) -> Json:
    """Return what a stage says of its growth. Raises UsageError if that is no mapping."""
    growth = own.get("growth")
    if growth is None:
        return {}
    if before is None:
        raise UsageError("growth: the first stage has nothing to grow from")
    if not isinstance(growth, dict):
        raise UsageError(
            f"growth: is {growth!r:.60}, wanted a mapping such as {{method: mask}}",
            "leave it out for the default",
        )
    return growth


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


def _target(growth: Json, stage: StageFile, old: ModelConfig, new: ModelConfig) -> TargetFile:
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
