"""The model in a stage file: what can be said of it, and what follows from what was said.

Sizes have Megatron-LM's names, as everywhere in flmgrow.
"""

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from flmgrow.errors import UsageError
from flmgrow.model.config import (
    Activation,
    ModelConfig,
    Multipliers,
    Norm,
    Positions,
    RotarySettings,
)
from flmgrow.model.wording import flat_fields
from flmgrow.text import Setting, Text
from flmgrow.trainer.stage.section import Count, Positive, Section


class RotarySection(Section):
    """How rotary positions are computed: see :class:`RotarySettings`."""

    base: Positive = 10000.0
    percent: Annotated[float, Field(ge=0, le=1)] = 1.0
    interleaved: bool = False
    scaling_factor: Positive | None = None
    interpolation: Positive | None = None
    xpos_scale_base: Positive = 512.0
    xpos_centre: Annotated[int, Field(ge=0)] = 0


class MultiplierSection(Section):
    """Constant factors: see :class:`Multipliers`.

    ``base_output`` is the output multiplier of the model that all growth began with: muP's learning
    rate of the head follows from both. To be said where the checkpoint does not know it.
    """

    embedding: Positive = 1.0
    output: Positive = 1.0
    mup_base_width: Count | None = None
    attention: Positive | None = None
    attention_by_inverse_layer: bool = False
    residual: Positive = 1.0
    base_output: Positive | None = None


SIZES = {
    "num_layers": "layers",
    "hidden_size": "hidden",
    "ffn_hidden_size": "ffn",
    "num_attention_heads": "heads",
    "num_query_groups": "kv_groups",
    "kv_channels": "head_dim",
    "vocab_size": "vocab",
}
"""A model's sizes by the keys of a stage file, and what they are called in ModelConfig."""

FIELDS = {
    **SIZES,
    "max_position_embeddings": "max_positions",
    "normalization": "norm",
    "norm_epsilon": "norm_eps",
}
"""What ModelConfig calls a key's value, where it is not called alike."""

POSITIONS = ("rotary", "max_position_embeddings")
"""What a later stage may say anew of positions that are computed: no weight depends on it."""

NEEDED = ("num_layers", "hidden_size", "num_attention_heads")
"""The sizes from which the others follow."""

_PARTS = ("make_vocab_size_divisible_by", "rotary", "multipliers")
"""The keys that are no field of ModelConfig."""


class ModelSection(Section):
    """The model. What is not given follows: FFN 4 x hidden, groups = heads, heads of equal size.

    Where a checkpoint is loaded all of it follows from there.
    """

    num_layers: Count | None = None
    hidden_size: Count | None = None
    ffn_hidden_size: Count | None = None
    num_attention_heads: Count | None = None
    num_query_groups: Count | None = None
    kv_channels: Count | None = None
    vocab_size: Count | None = None
    make_vocab_size_divisible_by: Count = 128
    max_position_embeddings: Count | None = None
    normalization: Norm = "layernorm"
    norm_epsilon: Annotated[float, Field(ge=0, lt=1)] = 1e-5
    activation: Activation = "gelu"
    linear_bias: bool = True
    qkv_bias: bool | None = None
    qk_norm: bool = False
    tied: bool = True
    positions: Positions = "rope"
    rotary: RotarySection = RotarySection()
    multipliers: MultiplierSection = MultiplierSection()

    def config(self, vocab: int, length: int) -> ModelConfig:
        """Return the model; ``vocab`` and ``length`` stand for sizes that are not given.

        Raises:
            UsageError: For sizes that are missing or do not fit together.
        """
        layers, hidden, heads = (self._needed(name) for name in NEEDED)
        groups = self.num_query_groups or heads
        if heads % groups:
            raise UsageError(
                Text(
                    Setting("num_attention_heads"),
                    f" {heads} is no multiple of num_query_groups {groups}",
                ),
                "a group has equally many heads",
            )
        if self.kv_channels is None and hidden % heads:
            raise UsageError(
                Text(
                    Setting("hidden_size"),
                    f" {hidden} is no multiple of num_attention_heads {heads}",
                ),
                "give kv_channels, the size of a head",
            )
        return ModelConfig(
            layers=layers,
            hidden=hidden,
            ffn=self.ffn_hidden_size or 4 * hidden,
            kv_groups=groups,
            queries_per_group=heads // groups,
            head_dim=self.kv_channels or hidden // heads,
            vocab=self.vocab_size or vocab,
            max_positions=self.max_position_embeddings or length,
            norm=self.normalization,
            norm_eps=self.norm_epsilon,
            activation=self.activation,
            linear_bias=self.linear_bias,
            qkv_bias=self.linear_bias if self.qkv_bias is None else self.qkv_bias,
            qk_norm=self.qk_norm,
            tied=self.tied,
            positions=self.positions,
            rotary=RotarySettings(**self.rotary.model_dump()),
            multipliers=Multipliers(**self.multipliers.model_dump(exclude={"base_output"})),
        )

    def _needed(self, name: str) -> int:
        found: int | None = getattr(self, name)
        if found is None:
            raise UsageError(
                Text(Setting(name), ": is not given"), "only a checkpoint that is loaded tells it"
            )
        return found

    @classmethod
    def of(cls, config: ModelConfig, vocab_multiple: int = 128) -> "ModelSection":
        """Return the section that describes ``config`` in full."""
        alike = {
            key: getattr(config, FIELDS.get(key, key))
            for key in cls.model_fields
            if key not in _PARTS
        }
        return cls(
            **alike,
            make_vocab_size_divisible_by=vocab_multiple,
            rotary=RotarySection(
                **{name: getattr(config.rotary, name) for name in RotarySection.model_fields}
            ),
            multipliers=MultiplierSection(
                **{
                    name: value
                    for name, value in vars(config.multipliers).items()
                    if name in MultiplierSection.model_fields
                }
            ),
        )


def with_positions(section: ModelSection, config: ModelConfig, length: int) -> ModelConfig:
    """Return ``config`` with the positions that ``section`` says, for texts of ``length`` tokens.

    A model is trained on all of them, so its context is no shorter; a table that was learned is as
    it is.
    """
    if config.positions == "learned":
        return config
    said = section.rotary.model_dump(include=section.rotary.model_fields_set)
    context = section.max_position_embeddings or config.max_positions
    return replace(
        config, rotary=replace(config.rotary, **said), max_positions=max(context, length)
    )


def contradictions(section: ModelSection, config: ModelConfig) -> list[str]:
    """Return, in words, where what a section says is not so in ``config``.

    Only what the file says is compared: what it leaves out is as the model has it.
    """
    found, wanted = _fields(config), _spoken(section)
    return [
        f"{name} is {found[name]}, the stage file says {wanted[name]}"
        for name in sorted(wanted.keys() & found.keys())
        if wanted[name] != found[name]
    ]


def differences(before: ModelConfig, now: ModelConfig) -> list[str]:
    """Return, in words, each field of a model in which another one differs."""
    was, found = _fields(before), _fields(now)
    names = {field: key for key, field in FIELDS.items()}
    return [
        f"model.{names.get(name, name)} is {value}, was {was[name]}"
        for name, value in found.items()
        if value != was[name]
    ]


def _spoken(section: ModelSection) -> dict[str, object]:
    """Return what a section says of a model's fields; a default says nothing."""
    spoken: dict[str, object] = {}
    for key in section.model_fields_set:
        value = getattr(section, key)
        if isinstance(value, Section):
            spoken |= {f"{key}.{name}": getattr(value, name) for name in value.model_fields_set}
        elif value is not None:
            spoken[FIELDS.get(key, key)] = value
    return spoken


def _fields(config: ModelConfig) -> dict[str, object]:
    """Return all fields of a model, those of its parts by the part's name and their own."""
    return {"heads": config.heads, **flat_fields(config)}
