"""A later stage of a schedule says what changes, and that becomes what ``flmgrow expand`` takes."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError

from flmgrow.errors import UsageError
from flmgrow.formats.strict_yaml import problems
from flmgrow.model.config import ModelConfig
from flmgrow.surgery.target_file import TargetFile
from flmgrow.trainer.stage import StageFile
from flmgrow.trainer.stage_keys import KEYS as STAGE_KEYS
from flmgrow.trainer.stage_sections import Count, Section

_GROWN = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "vocab_size",
)
"""What a later stage may say of its model."""

HINT = "see docs/guides/run.md"

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


KEYS = {**STAGE_KEYS, **{name: f"growth.{name}" for name in GrowthSection.model_fields}}
"""A schedule's keys by the names of options, fields and axes."""


def growth_of(own: Json, *, first: bool) -> Json:
    """Return what a stage says of its growth. Raises UsageError if that is no mapping."""
    growth = own.get("growth")
    if growth is None:
        return {}
    if first:
        raise UsageError("growth: the first stage has nothing to grow from")
    if not isinstance(growth, dict):
        raise UsageError(
            f"growth: is {growth!r:.60}, wanted a mapping such as {{method: mask}}",
            "leave it out for the default",
        )
    return growth


def sizes_after(old: ModelConfig, changes: object) -> Json:
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
        "vocab_size": old.vocab,
    }


def check_only_sizes(changes: object) -> None:
    """Raise UsageError if a later stage says of its model what growth leaves as it is."""
    names = set(map(str, changes)) if isinstance(changes, dict) else set()
    if other := sorted(names - set(_GROWN)):
        raise UsageError(
            f"model.{other[0]}: growth changes sizes only",
            f"say it once, for all stages; a later one may say {', '.join(_GROWN)}",
        )


def target_of(growth: Json, stage: StageFile, old: ModelConfig, new: ModelConfig) -> TargetFile:
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
