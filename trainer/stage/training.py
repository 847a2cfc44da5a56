"""The parts of a stage file that say how it trains: ranks, length, learning rate, optimizer, masks.

Amounts of text are in tokens, and may be written ``245.37B``.
"""

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from flmgrow.formats.layout.placements import Layout, make_layout
from flmgrow.model.masks import Dimension, Mask, ramped
from flmgrow.text import Found, Text, Wanted
from flmgrow.trainer.stage.batch_sizes import BatchSizes
from flmgrow.trainer.stage.freezing import Freeze
from flmgrow.trainer.stage.section import (
    MOST,
    Amount,
    Count,
    NotNegative,
    Positive,
    Section,
    Seed,
    Share,
    amount,
    nearest,
)


def _steps_or_share(value: object) -> object:
    """Return steps, or a share that is neither nothing nor all.

    Raises:
        ValueError: For what is neither.
    """
    counts = type(value) is int and 1 <= value <= MOST
    if value is None or counts or (isinstance(value, float) and 0 < value < 1):
        return value
    wanted = Wanted("steps, from 1 on, or a share between 0 and 1")
    raise ValueError(Text("found ", Found(f"{value!r:.40}"), wanted))


class LayoutSection(Section):
    """Ranks: tensor x pipeline x data-parallel, and how layers lie on the pipeline.

    ``pipeline_layers`` has a count for each pipeline rank, or each of their chunks.
    ``overlap_grad_reduce`` sums gradients over replicas while others are still computed, and
    ``overlap_param_gather`` brings weights together while the first layers compute already.
    """

    tp: Count = 1
    pp: Count = 1
    vpp: Count = 1
    dp: Count = 1
    pipeline_layers: list[int] | None = None
    sequence_parallel: bool = False
    distributed_optimizer: bool = False
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False

    @model_validator(mode="after")
    def _gathers_what_is_cut(self) -> Self:
        if self.overlap_param_gather and not (
            self.distributed_optimizer and self.overlap_grad_reduce
        ):
            raise ValueError(
                "overlap_param_gather needs distributed_optimizer and overlap_grad_reduce"
            )
        return self

    @property
    def world(self) -> int:
        """The number of processes."""
        return self.tp * self.pp * self.dp

    def layout(self, layers: int) -> Layout:
        """Return the layout of a model.

        Raises:
            UsageError: Where layers do not fit.
        """
        return make_layout(layers, self.tp, self.pp, self.vpp, self.pipeline_layers)


SwitchName = Literal[
    "cross_entropy_fusion",
    "activation_fusion",
    "rope_fusion",
    "gradient_accumulation_fusion",
    "transformer_engine",
    "fp8",
]
"""What :mod:`flmgrow.trainer.megatron.switches` knows, by name."""


class TrainingSection(Section):
    """How long, and in which numbers. Exactly one of ``steps`` and ``tokens`` is given.

    ``batch`` and ``micro_batch`` count sequences. ``batch_ramp`` is a smaller batch to begin with,
    by how much it grows at a time, and over how many samples of the stage. ``init_std`` is the
    spread of fresh weights, at muP's base width if there is one. ``switches`` are megatron-core's
    own faster ways of computing, taken where they are here. ``freeze`` are rules of what does
    not train, until the stage has taken ``unfreeze_at`` steps, or that share of its steps.
    """

    steps: Amount | None = None
    tokens: Amount | None = None
    batch: Count
    batch_ramp: Annotated[list[Amount], Field(min_length=3, max_length=3)] | None = None
    micro_batch: Count = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    recompute: Literal["none", "selective", "full"] = "none"
    switches: list[SwitchName] = Field(default_factory=list)
    init_std: Positive = 0.02
    seed: Seed = 1234
    freeze: Freeze | None = None
    unfreeze_at: Annotated[int | float | None, BeforeValidator(_steps_or_share)] = None

    @model_validator(mode="after")
    def _unfreezes_what_is_frozen(self) -> Self:
        if self.unfreeze_at is not None and self.freeze is None:
            raise ValueError("unfreeze_at without freeze: nothing is frozen")
        return self

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("give either steps or tokens")
        return self

    @model_validator(mode="after")
    def _ramp_ends_at_the_batch(self) -> Self:
        if self.batch_ramp is not None:
            start, increment, _ = self.batch_ramp
            if start >= self.batch or (self.batch - start) % increment:
                raise ValueError(
                    f"batch_ramp: from {start} by {increment} does not lead to a batch of "
                    f"{self.batch}"
                )
        return self

    @property
    def sizes(self) -> BatchSizes:
        """How many samples each step reads."""
        return BatchSizes(self.batch, *(self.batch_ramp or ()))

    def step_count(self, sequence_length: int) -> int:
        """Return the number of optimizer steps, at least one."""
        if self.steps is not None:
            return self.steps
        assert self.tokens is not None
        return max(1, self.sizes.steps_until(Fraction(self.tokens, sequence_length)))


class LearningRateSection(Section):
    """The stage's own schedule: warm-up to ``peak``, then down to ``floor``.

    The warm-up takes ``warmup_samples``, or ``warmup_share`` of the samples until the floor.
    ``decay_tokens`` is where the floor is reached, counted from the stage's begin; by default where
    the stage ends. ``wsd`` (warm-up, stable, decay) stays at the peak until ``cooldown_tokens``
    before that, and then falls along a straight line or a root (``cooldown``).
    """

    peak: Positive
    floor: NotNegative = 0.0
    warmup_samples: Annotated[int, BeforeValidator(amount), Field(ge=0, le=MOST)] = 0
    warmup_share: Share = 0.0
    decay_tokens: Amount | None = None
    style: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    cooldown_tokens: Amount | None = None
    cooldown: Literal["linear", "sqrt"] = "linear"

    @model_validator(mode="after")
    def _cooldown_is_of_wsd(self) -> Self:
        if (self.style == "wsd") != (self.cooldown_tokens is not None):
            raise ValueError("style wsd and cooldown_tokens go together: give both, or neither")
        return self

    @model_validator(mode="after")
    def _one_warmup(self) -> Self:
        if self.warmup_samples and self.warmup_share:
            raise ValueError("give either warmup_samples or warmup_share")
        return self

    def warmup(self, until_floor: int) -> int:
        """Return the samples of the warm-up, where the floor is reached after so many."""
        return self.warmup_samples or nearest(Fraction(str(self.warmup_share)) * until_floor)

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
