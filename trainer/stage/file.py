"""Reading a stage file.

One file says all that decides on a stage of training, so that it can be read, kept and repeated. A
stage file is YAML. A key that nobody knows is an error and not a default, because a misspelt
learning rate costs weeks. Relative paths are relative to the file's own folder.

Importing this module loads neither torch nor megatron-core: ``flmgrow run`` plans with it.
"""

from collections.abc import Collection
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError, model_validator

from flmgrow.errors import UsageError
from flmgrow.formats.layout.lags import parameters_in
from flmgrow.formats.layout.placements import Layout, Slice, check_divisible
from flmgrow.model.axes import Axis
from flmgrow.model.config import ModelConfig
from flmgrow.model.states import State
from flmgrow.model.tensors import parameter_count
from flmgrow.storage.strict_yaml import read_yaml
from flmgrow.storage.validation import problems
from flmgrow.text import Found, Setting, Text
from flmgrow.trainer.stage.beginning import CheckpointSection, GrowthSection
from flmgrow.trainer.stage.data import DataSection
from flmgrow.trainer.stage.model import ModelSection, with_positions
from flmgrow.trainer.stage.section import Name, Section, keys_meant, located, nearest
from flmgrow.trainer.stage.training import (
    LayoutSection,
    LearningRateSection,
    MaskSection,
    OptimizerSection,
    TrainingSection,
)
from flmgrow.trainer.stage.watching import GuardSection, LogSection

_LENGTH = Setting("sequence_length")
_WEIGHT_BYTES = {"float32": 4, "bfloat16": 2}
_STATE_BYTES = 4
"""Of each state that is kept beside a weight."""

_MEANT = 3
"""The most keys that a hint names for one that there is not."""

XPOS_REACH = 64
"""Scale bases from the centre to the farthest position: (0.4 / 1.4) ** 64 is 1e-35."""


class StageFile(Section):
    """One stage of training. ``name`` tells it from others, and its checkpoints from theirs."""

    name: Name
    model: ModelSection = ModelSection()
    layout: LayoutSection = LayoutSection()
    data: DataSection
    training: TrainingSection
    learning_rate: LearningRateSection
    optimizer: OptimizerSection = OptimizerSection()
    masks: MaskSection = MaskSection()
    checkpoint: CheckpointSection = CheckpointSection()
    log: LogSection = LogSection()
    guard: GuardSection = GuardSection()
    growth: GrowthSection | None = None

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        training, replicas = self.training, self.layout.dp
        for batch in training.sizes.all()[:2]:  # the others are as far apart
            if batch % (training.micro_batch * replicas):
                key = "batch" if training.batch_ramp is None else "batch_ramp"
                raise ValueError(
                    f"training.{key}: a batch of {batch} does not divide into micro-batches of "
                    f"{training.micro_batch} on {replicas} replicas"
                )
        return self

    @model_validator(mode="after")
    def _validation_has_data(self) -> Self:
        asked = {"every": self.log.validation_every, "first": self.log.validation_first}
        known, main = self.data.validation_names, self.log.validation_set
        for name in (name for name, value in asked.items() if value):
            if not known:
                raise ValueError(
                    f"log.validation_{name} needs a data.validation_share above 0, or "
                    "data.validation_sets"
                )
        if main is not None and main not in known:
            raise ValueError(
                f"log.validation_set: {main} is no set of this stage, which has "
                + (", ".join(known) or "none")
            )
        return self

    @model_validator(mode="after")
    def _cooldown_fits(self) -> Self:
        cooldown = self.learning_rate.cooldown_tokens
        whole = self.tokens_after(self.decay_steps)
        if cooldown is not None and cooldown > whole:
            found = f"learning_rate.cooldown_tokens is {cooldown:,}"
            raise ValueError(f"{found}, of {whole:,} tokens until the floor")
        return self

    @model_validator(mode="after")
    def _begins_once(self) -> Self:
        for name in ("load", "begin") if self.growth is not None else ():
            if getattr(self.checkpoint, name) is not None:
                raise ValueError(
                    f"give either growth or checkpoint.{name}: what grew in memory is not loaded"
                )
        return self

    @property
    def validation_set(self) -> str | None:
        """The name of the set whose loss is the stage's validation loss, if it has any set."""
        return self.log.validation_set or next(iter(self.data.validation_names), None)

    @property
    def steps(self) -> int:
        """The number of optimizer steps."""
        return self.training.step_count(self.data.sequence_length)

    @property
    def unfreeze_step(self) -> int | None:
        """The steps that it has taken when what is frozen begins to train; None if it never does.

        A share of its steps is rounded, to one at least.
        """
        at = self.training.unfreeze_at
        return max(1, nearest(Fraction(at) * self.steps)) if isinstance(at, float) else at

    @property
    def tokens_per_step(self) -> int:
        """The tokens in a batch, in that behind a ramp if there is one."""
        return self.training.batch * self.data.sequence_length

    @property
    def last_batch(self) -> int:
        """The samples that the last step reads, fewer than a batch where a ramp does not end."""
        sizes = self.training.sizes
        return sizes.at(sizes.after(self.steps - 1))

    def tokens_after(self, steps: int) -> int:
        """Return the tokens that so many steps read from the stage's begin on."""
        return self.training.sizes.after(steps) * self.data.sequence_length

    @property
    def warmup_samples(self) -> int:
        """The samples until the learning rate has its peak."""
        return self.learning_rate.warmup(self.training.sizes.after(self.decay_steps))

    @property
    def warmup_steps(self) -> int:
        """The steps until then, rounded."""
        return self.training.sizes.steps_until(Fraction(self.warmup_samples))

    @property
    def decay_steps(self) -> int:
        """The steps, counted from the stage's begin, until it has its floor."""
        if self.learning_rate.decay_tokens is None:
            return self.steps
        samples = Fraction(self.learning_rate.decay_tokens, self.data.sequence_length)
        return max(1, self.training.sizes.steps_until(samples))


def positioned(stage: StageFile, config: ModelConfig) -> ModelConfig:
    """Return what a stage trains of a model: with other positions, if it says so."""
    if not stage.checkpoint.other_positions:
        return config
    return with_positions(stage.model, config, stage.data.sequence_length)


def checkpoint_bytes(stage: StageFile, config: ModelConfig, still: Collection[Slice] = ()) -> int:
    """Return about how many bytes a checkpoint of a stage has, optimizer state included; there is
    none of what is ``still``.
    """
    precision, distributed = stage.training.precision, stage.layout.distributed_optimizer
    states = State.beside_weights(precision, distributed=distributed)
    weights, kept = parameter_count(config), len(states) * _STATE_BYTES
    return weights * (_WEIGHT_BYTES[precision] + kept) - parameters_in(still, config) * kept


def read_stage(path: Path) -> StageFile:
    """Return the stage in a YAML file, its paths made absolute; its name is the file's if not told.

    Raises:
        UsageError: The message names file and key of each problem.
    """
    data = read_yaml(path)
    return stage_of({"name": path.stem, **data} if isinstance(data, dict) else data, path)


def stage_of(data: object, path: Path) -> StageFile:
    """Return the stage that ``data`` from the file ``path`` describes, its paths made absolute.

    Raises:
        UsageError: What was asked for cannot be.
    """
    try:
        stage = StageFile.model_validate(data)
    except ValidationError as error:
        meant = keys_meant(StageFile, error.errors())
        hint = f"did you mean {' or '.join(meant)}? " if 1 <= len(meant) <= _MEANT else ""
        hint += "see docs/guides/train.md"
        raise UsageError(problems(error.errors()), hint, where=path) from None
    return _located(stage, path.absolute().parent)


def layout_of(stage: StageFile, config: ModelConfig, padded_vocab: int) -> Layout:
    """Return a stage's layout.

    Raises:
        UsageError: If ``config`` cannot be laid out so, or not be trained on such sequences.
    """
    _check_positions(stage.data.sequence_length, config)
    layout = stage.layout.layout(config.layers)
    check_divisible(layout, {**config.sizes, Axis.VOCAB: padded_vocab})
    if padded_vocab % layout.tp:
        raise UsageError(
            f"{padded_vocab} rows of the vocabulary do not divide by TP{layout.tp}",
            "lay the checkpoint out first: flmgrow reshard, or import for a Hugging Face folder",
        )
    if stage.layout.sequence_parallel and stage.data.sequence_length % layout.tp:
        raise UsageError(
            Text(
                _LENGTH,
                f" {stage.data.sequence_length} does not divide by TP{layout.tp}, as sequence "
                "parallelism needs it",
            )
        )
    training = stage.training
    for batch in training.sizes.all()[:2] if layout.vpp > 1 else ():
        micro_batches = batch // (training.micro_batch * stage.layout.dp)
        if micro_batches % layout.pp:
            raise UsageError(
                f"{micro_batches} micro-batches do not divide by PP{layout.pp}, as a virtual "
                "pipeline needs it"
            )
    return layout


def _check_positions(length: int, config: ModelConfig) -> None:
    if config.positions == "learned" and length > config.max_positions:
        raise UsageError(
            Text(_LENGTH, f" {length}: the model has {config.max_positions} positions")
        )
    rotary = config.rotary
    if config.positions in ("rope", "xpos") and int(config.head_dim * rotary.percent) % 2:
        raise UsageError(
            f"heads of {config.head_dim}: {int(config.head_dim * rotary.percent)} channels cannot "
            "be rotated in pairs",
            "give an even kv_channels, or other rotary.percent",
        )
    farthest = max(abs(position - rotary.xpos_centre) for position in (0, length - 1))
    if config.positions == "xpos" and farthest > XPOS_REACH * rotary.xpos_scale_base:
        raise UsageError(
            Text(
                _LENGTH,
                " ",
                Found(length),
                f": xPos scales a position {farthest} from its centre by more than 32 bits hold",
            ),
            "make rotary.xpos_scale_base larger, or put rotary.xpos_centre into the middle",
            wanted=f"at most {round(XPOS_REACH * rotary.xpos_scale_base)}",
        )


def _located(stage: StageFile, folder: Path) -> StageFile:
    """Return the stage with its paths seen from ``folder``."""

    def seen(value: Any) -> Any:
        if isinstance(value, Path):
            return folder / value
        if isinstance(value, list):
            return [seen(item) for item in value]
        if not isinstance(value, Section):
            return value
        moved = {name: seen(part) for name, part in value}
        changed = {name: part for name, part in moved.items() if part != getattr(value, name)}
        return value.model_copy(update=changed) if changed else value

    result: StageFile = seen(stage)
    data = result.data.model_copy(update={"tokenizer": located(stage.data.tokenizer, folder)})
    return result.model_copy(update={"data": data})
