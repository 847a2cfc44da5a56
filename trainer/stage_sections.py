"""The parts of a stage file: what can be said, in which units, and what holds if nothing is said.

Sizes have Megatron-LM's names, as everywhere in flmgrow. Amounts of text are in tokens, and may be
written ``245.37B``.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from flmgrow.errors import UsageError
from flmgrow.formats.layout import Layout, make_layout
from flmgrow.model.config import (
    Activation,
    ModelConfig,
    Multipliers,
    Norm,
    Positions,
    RotarySettings,
)
from flmgrow.model.masks import Dimension, Mask, ramped

_AMOUNT = re.compile(r"\s*(\d{1,3}(?:,\d{3})+|\d{1,20}(?:\.\d{1,20})?)\s*([KMBT]?)\s*", re.ASCII)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def amount(value: object) -> object:
    """Return the number that a text such as ``245.37B`` or ``4,608,000`` means, or 1e9.

    What is neither stays as it is. Raises ValueError for what is no whole number.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, str):
        return value
    match = _AMOUNT.fullmatch(value.upper())
    number = Fraction(match[1].replace(",", "")) * _UNITS[match[2]] if match else Fraction(1, 2)
    if number.denominator != 1:
        raise ValueError(f"found {value!r:.40}, wanted an amount, such as 245.37B or 4,608,000")
    return number.numerator


def token_text(value: object) -> object:
    """Return a token's number as text; anything else as it is."""
    return str(value) if type(value) is int else value


MOST = 10**18
"""More tokens than anybody trains on."""

Amount = Annotated[int, BeforeValidator(amount), Field(ge=1, le=MOST)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=1 << 31)]
FilePath = Annotated[Path, Field(strict=False), AfterValidator(Path.expanduser)]
Name = Annotated[str, Field(pattern=r"^[\p{L}\p{N}_-][\p{L}\p{N}._-]{0,99}$")]


class Section(BaseModel):
    """A part of a stage file: nothing unknown, nothing converted by guesswork."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class RotarySection(Section):
    """How rotary positions are computed: see :class:`RotarySettings`."""

    base: Positive = 10000.0
    percent: Annotated[float, Field(gt=0, le=1)] = 1.0
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
    base_output: Positive | None = None


NEEDED = ("num_layers", "hidden_size", "num_attention_heads")
"""The sizes of a model from which the others follow."""


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

        Raises UsageError for sizes that are missing or do not fit together.
        """
        layers, hidden, heads = (self._needed(name) for name in NEEDED)
        groups = self.num_query_groups or heads
        if heads % groups:
            raise UsageError(
                f"num_attention_heads {heads} is no multiple of num_query_groups {groups}",
                "a group has equally many heads",
            )
        if self.kv_channels is None and hidden % heads:
            raise UsageError(
                f"hidden_size {hidden} is no multiple of num_attention_heads {heads}",
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
            raise UsageError(f"{name}: is not given", "only a checkpoint that is loaded tells it")
        return found

    @classmethod
    def of(cls, config: ModelConfig, vocab_multiple: int = 128) -> "ModelSection":
        """Return the section that describes ``config`` in full."""
        return cls(
            num_layers=config.layers,
            hidden_size=config.hidden,
            ffn_hidden_size=config.ffn,
            num_attention_heads=config.heads,
            num_query_groups=config.kv_groups,
            kv_channels=config.head_dim,
            vocab_size=config.vocab,
            make_vocab_size_divisible_by=vocab_multiple,
            max_position_embeddings=config.max_positions,
            normalization=config.norm,
            norm_epsilon=config.norm_eps,
            activation=config.activation,
            linear_bias=config.linear_bias,
            qkv_bias=config.qkv_bias,
            qk_norm=config.qk_norm,
            tied=config.tied,
            positions=config.positions,
            rotary=RotarySection(**vars(config.rotary)),
            multipliers=MultiplierSection(**vars(config.multipliers)),
        )


class LayoutSection(Section):
    """Ranks: tensor x pipeline x data-parallel, and how layers lie on the pipeline.

    ``pipeline_layers`` has a count for each pipeline rank, or each of their chunks.
    ``overlap_grad_reduce`` sums gradients over replicas while others are still computed.
    """

    tp: Count = 1
    pp: Count = 1
    vpp: Count = 1
    dp: Count = 1
    pipeline_layers: list[int] | None = None
    sequence_parallel: bool = False
    distributed_optimizer: bool = False
    overlap_grad_reduce: bool = False

    @property
    def world(self) -> int:
        """The number of processes."""
        return self.tp * self.pp * self.dp

    def layout(self, layers: int) -> Layout:
        """Return the layout of a model. Raises UsageError where layers do not fit."""
        return make_layout(layers, self.tp, self.pp, self.vpp, self.pipeline_layers)


class CorpusSection(Section):
    """A corpus that ``flmgrow data prepare`` made (or Megatron's prefix), and its weight."""

    path: FilePath
    weight: Positive = 1.0


class TeacherSection(Section):
    """Propositions with their truth (.jsonl), and their share of the samples."""

    files: list[FilePath] = Field(min_length=1)
    share: Annotated[float, Field(gt=0, lt=1)]
    packed: bool = True


class DataSection(Section):
    """What is read. ``validation_share`` of each corpus' documents, the last, is held out."""

    tokenizer: str = "bytes"
    eod: Annotated[str, BeforeValidator(token_text)] | None = None
    sequence_length: Count
    corpora: list[CorpusSection] = Field(min_length=1)
    teacher: TeacherSection | None = None
    validation_share: Share = 0.0
    seed: Seed = 1234


class TrainingSection(Section):
    """How long, and in which numbers. Exactly one of ``steps`` and ``tokens`` is given.

    ``batch`` and ``micro_batch`` count sequences; ``init_std`` is the spread of fresh weights, at
    muP's base width if there is one.
    """

    steps: Amount | None = None
    tokens: Amount | None = None
    batch: Count
    micro_batch: Count = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    recompute: Literal["none", "selective", "full"] = "none"
    init_std: Positive = 0.02
    seed: Seed = 1234

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("give either steps or tokens")
        return self

    def step_count(self, sequence_length: int) -> int:
        """Return the number of optimizer steps, at least one."""
        if self.steps is not None:
            return self.steps
        assert self.tokens is not None
        return max(1, round(Fraction(self.tokens, self.batch * sequence_length)))


class LearningRateSection(Section):
    """The stage's own schedule: warm-up to ``peak``, then down to ``floor``.

    ``decay_tokens`` is where the floor is reached, counted from the stage's begin; by default where
    the stage ends.
    """

    peak: Positive
    floor: NotNegative = 0.0
    warmup_samples: Annotated[int, BeforeValidator(amount), Field(ge=0, le=MOST)] = 0
    decay_tokens: Amount | None = None
    style: Literal["cosine", "linear", "constant"] = "cosine"

    @model_validator(mode="after")
    def _floor_is_below(self) -> Self:
        if self.floor > self.peak:
            raise ValueError(f"the floor {self.floor:g} is above the peak {self.peak:g}")
        return self


class OptimizerSection(Section):
    """AdamW."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    epsilon: Positive = 1e-8
    weight_decay: NotNegative = 0.1
    clip_grad: NotNegative = 1.0


class MaskSection(Section):
    """How masks rise, from where the checkpoint has them.

    ``ramp_steps`` is the time from 0 to 1, by default what the growth asked for; ``in_turn`` lets
    one dimension rise after the other instead of all together.
    """

    ramp_steps: Count | None = None
    in_turn: bool = False

    def rising(self, masks: Mapping[Dimension, Mask]) -> dict[Dimension, Mask]:
        """Return the masks that are not open yet, each as steep as the stage wants it."""
        return {
            name: mask if self.ramp_steps is None else replace(mask, ramp_steps=self.ramp_steps)
            for name, mask in masks.items()
            if mask.value < 1
        }

    def after(self, masks: Mapping[Dimension, Mask], steps: int) -> dict[Dimension, Mask]:
        """Return what is not open yet of ``masks`` after so many steps."""
        return self.rising(ramped(self.rising(masks), steps, in_turn=self.in_turn))


class CheckpointSection(Section):
    """Where checkpoints lie, and what the stage begins with.

    The stage goes on from the newest checkpoint in ``folder``; if there is none, it begins with
    ``load`` (a checkpoint of any format and layout); without that, with fresh weights. ``every``
    counts steps; ``keep`` is how many are kept (None: all).
    """

    folder: FilePath = Path("checkpoints")
    load: FilePath | None = None
    every: Count | None = None
    keep: Count | None = None
    format: Literal["megatron", "torch_dist"] = "torch_dist"


class LogSection(Section):
    """What is told, and where. ``metrics`` gets a line of JSON per step, whatever ``every`` is.

    ``peak_tflops`` is that of one device, for the utilisation.
    """

    every: Count = 10
    metrics: FilePath = Path("metrics.jsonl")
    tensorboard: FilePath | None = None
    validation_every: Count | None = None
    validation_batches: Count = 8
    peak_tflops: Positive | None = None


class GuardSection(Section):
    """When to stop: a loss ``spike`` nats above the mean of the last ``window`` steps.

    None lets spikes pass. A loss or gradient that is not finite always stops the run.
    """

    spike: Positive | None = None
    window: Count = 50
