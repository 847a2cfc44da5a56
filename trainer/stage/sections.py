"""The parts of a stage file: what can be said, in which units, and what holds if nothing is said.

Amounts of text are in tokens, and may be written ``245.37B``.
"""

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from flmgrow.formats.layout.placements import Layout, make_layout
from flmgrow.model.masks import Dimension, Mask, ramped
from flmgrow.trainer.stage.section import (
    MOST,
    Amount,
    Count,
    FilePath,
    NotNegative,
    Positive,
    Section,
    Seed,
    Share,
    amount,
    nearest,
    token_text,
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
        """Return the layout of a model.

        Raises:
            UsageError: Where layers do not fit.
        """
        return make_layout(layers, self.tp, self.pp, self.vpp, self.pipeline_layers)


class _SourceSection(Section):
    """What samples come from. With ``begin: anew`` a stage reads it from its first sample on,
    whatever was read of it before; without, from where the run has left it.
    """

    begin: Literal["anew"] | None = None

    @property
    def anew(self) -> bool:
        """Whether its texts may be read again."""
        return self.begin is not None


class CorpusSection(_SourceSection):
    """A corpus that ``flmgrow data prepare`` made (or Megatron's prefix), and its weight."""

    path: FilePath
    weight: Positive = 1.0


class TeacherSection(_SourceSection):
    """Propositions with their truth (.jsonl), and their share of the samples."""

    files: list[FilePath] = Field(min_length=1)
    share: Annotated[float, Field(gt=0, lt=1)]
    packed: bool = True


class DataSection(Section):
    """What is read. ``validation_share`` of each corpus' documents, the last, is held out.

    ``document_attention`` lets attention stop, and positions restart, at each document of a sample.

    ``checksums`` says whether all tokens are read and summed when a stage begins: ``auto`` does so
    for corpora up to a gigabyte. ``differs`` says that the stage may read other data than its
    checkpoint has: each corpus is taken up where the run has left it.
    """

    tokenizer: str = "bytes"
    eod: Annotated[str, BeforeValidator(token_text)] | None = None
    sequence_length: Count
    document_attention: bool = False
    corpora: list[CorpusSection] = Field(min_length=1)
    teacher: TeacherSection | None = None
    validation_share: Share = 0.0
    checksums: Literal["auto", "always", "never"] = "auto"
    seed: Seed = 1234
    differs: bool = False


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
        return max(1, nearest(Fraction(self.tokens, self.batch * sequence_length)))


class LearningRateSection(Section):
    """The stage's own schedule: warm-up to ``peak``, then down to ``floor``.

    ``decay_tokens`` is where the floor is reached, counted from the stage's begin; by default where
    the stage ends. ``wsd`` (warm-up, stable, decay) stays at the peak until ``cooldown_tokens``
    before that, and then falls along a straight line or a root (``cooldown``).
    """

    peak: Positive
    floor: NotNegative = 0.0
    warmup_samples: Annotated[int, BeforeValidator(amount), Field(ge=0, le=MOST)] = 0
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
    counts steps; ``keep`` is how many are kept (None: all). ``begin`` says whether ``load`` gives
    all that it has, or weights only, as it always is of a Hugging Face folder. ``change_at`` is an
    iteration from whose checkpoint on settings hold that the stage did not begin with.
    ``ignore_arguments`` and ``ignore_fields`` (of a ``config.json``) name what is vouched for
    though flmgrow does not know it, or are patterns; ``set_arguments`` (``num_layers=28``) stand in
    the place of missing or wrong ones, over those that ``args_from`` says: a file beside the
    weights, or another checkpoint of the same model. ``true_vocab_size`` are the real rows of
    ``load`` where its files do not say. ``untie`` says whether a Hugging Face model with a shared
    table keeps the head that is stored beside it. ``other_positions`` lets the stage have another
    ``model.rotary`` or ``model.max_position_embeddings`` than ``load``: another function.
    """

    folder: FilePath = Path("checkpoints")
    load: FilePath | None = None
    begin: Literal["anew", "continue"] | None = None
    change_at: Annotated[int, Field(ge=0, le=MOST)] | None = None
    ignore_arguments: list[str] = Field(default_factory=list)
    ignore_fields: list[str] = Field(default_factory=list)
    set_arguments: list[str] = Field(default_factory=list)
    args_from: FilePath | None = None
    true_vocab_size: Count | None = None
    untie: bool | None = None
    other_positions: bool = False
    every: Count | None = None
    keep: Count | None = None
    format: Literal["megatron", "torch_dist"] = "torch_dist"


class GrowthSection(Section):
    """How the model comes about in memory: that of another stage grows, and this one goes on.

    ``after`` is the other stage's file. Its model grows when it ends, or before, at iteration
    ``at``; ``to`` is a file that says into what, as ``flmgrow expand --to`` takes it. If the run
    diverges soon after (:meth:`GuardSection.watches_growth`), the growth is taken back, and the run
    stops or goes on ``ungrown``: in this stage, with the old model.
    """

    after: FilePath
    to: FilePath
    at: Annotated[int, Field(ge=1, le=MOST)] | None = None
    if_diverged: Literal["stop", "ungrown"] = "stop"


class LogSection(Section):
    """What is told, and where. ``metrics`` gets a line of JSON per step, whatever ``every`` is.

    A validation reads ``validation_samples``; ``validation_batches``, the older way to say it,
    counts batches of the stage. ``validation_first`` adds one before the first step: of a model as
    it was grown. ``peak_tflops`` is that of one device, for the utilisation.
    ``parts`` measures in every step how far it moves what a growth made, and the rest;
    ``by_corpus`` the loss of each corpus' samples.
    """

    every: Count = 10
    metrics: FilePath = Path("metrics.jsonl")
    tensorboard: FilePath | None = None
    validation_every: Count | None = None
    validation_first: bool = False
    validation_samples: Count | None = None
    validation_batches: Count | None = None
    peak_tflops: Positive | None = None
    parts: bool = False
    by_corpus: bool = False

    @property
    def validates(self) -> bool:
        """Whether any validation is asked for."""
        return self.validation_every is not None or self.validation_first

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if self.validation_samples is not None and self.validation_batches is not None:
            raise ValueError("give either validation_samples or validation_batches")
        return self


class GuardSection(Section):
    """The guard of a run: it stops at a loss ``spike`` nats above the mean of ``window`` steps.

    None lets spikes pass. A loss or gradient that is not finite always stops the run. With
    ``action: rollback`` the run goes back to a checkpoint before that window and passes over the
    samples that led to the spike, and stops only after so many ``rollbacks``.
    """

    spike: Positive | None = None
    window: Count = 50
    action: Literal["stop", "rollback"] = "stop"
    rollbacks: Count = 3

    def watches_growth(self, steps: int, *, shut: bool) -> bool:
        """Whether what diverges so many ``steps`` after a growth is taken to do so because of it.

        It is for a window, and as long as any mask is not open (``shut``).
        """
        return shut or steps <= self.window
