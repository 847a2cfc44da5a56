"""The records of a run: what one step or validation measured, as JSON has it.

What a run has done must be read by people, by programs, and by the same run when it is resumed.
Every optimizer step becomes a :class:`StepRecord`, every validation a :class:`ValidationRecord`,
and a growth in memory a :class:`MemoryGrowthRecord`. Numbers come back from JSON as they were, to
the last bit, infinities and NaN among them.

Importing this module loads neither torch nor megatron-core: ``flmgrow plot`` reads with it.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal

from pydantic import BeforeValidator

from flmgrow.model.masks import Dimension
from flmgrow.storage.strict_json import Json

_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _number(value: object) -> object:
    """Return the number that JSON has no digits for; anything else as it is."""
    return _WORDS.get(value, value) if isinstance(value, str) else value


Number = Annotated[float, BeforeValidator(_number)]


@dataclass(frozen=True)
class StepRecord:
    """An optimizer step.

    ``step`` counts over all stages, and so do ``samples``, ``tokens`` and ``flops``, which include
    this step's. Losses are in nats per token; the two parts of ``loss`` are None where data is not
    mixed. ``seconds`` is the wall time of the step, ``model_tflops`` is of one device in 1e12 per
    second, ``utilisation`` its share of the device's peak (0 to 1, None without a known peak).
    ``masks`` has the value of each mask that is below 1. ``updates`` has, if parts are logged, the
    norm of the step relative to that of the weights after it, for what the last growth made
    (``fresh``) and for the rest (``old``), and ``updates_by_dimension`` the same of each dimension
    that it grew, among the tensors that have its axes. ``by_corpus`` has, if that is logged, the
    loss of each corpus' samples in the batch, and of the teacher's.
    """

    step: int
    samples: int
    tokens: int
    flops: int
    loss: Number
    language_loss: Number | None
    teacher_loss: Number | None
    grad_norm: Number
    learning_rate: Number
    seconds: Number
    tokens_per_second: Number
    model_tflops: Number
    utilisation: Number | None
    masks: Mapping[Dimension, float]
    stage: str
    updates: Mapping[str, Number] = field(default_factory=dict)
    updates_by_dimension: Mapping[str, Mapping[str, Number]] = field(default_factory=dict)
    by_corpus: Mapping[str, Number] = field(default_factory=dict)
    kind: Literal["step"] = "step"

    def to_json(self) -> Json:
        """Return the record as plain data."""
        return _plain(self)


@dataclass(frozen=True)
class SetLoss:
    """The ``loss`` on one set that is validated on, in nats per token.

    ``bits_per_byte`` is the same in bits per byte of its text, None where tokens do not say which
    bytes they are. ``by_corpus`` has the loss of each corpus' samples, where there are several.
    """

    loss: Number
    bits_per_byte: Number | None = None
    by_corpus: Mapping[str, Number] = field(default_factory=dict)


@dataclass(frozen=True)
class ValidationRecord:
    """The losses on text that is not trained on, after ``step`` steps.

    ``validation_loss`` is in nats per token, that of the stage's main set; ``bits_per_byte`` and
    ``by_corpus`` are that set's (:class:`SetLoss`). ``sets`` has all sets by their names, the main
    one first, where a stage names any.
    """

    step: int
    tokens: int
    flops: int
    validation_loss: Number
    stage: str
    by_corpus: Mapping[str, Number] = field(default_factory=dict)
    bits_per_byte: Number | None = None
    sets: Mapping[str, SetLoss] = field(default_factory=dict)
    kind: Literal["validation"] = "validation"

    def to_json(self) -> Json:
        """Return the record as plain data."""
        return _plain(self)


@dataclass(frozen=True)
class MemoryGrowthRecord:
    """A growth in memory, right before ``step``, the first of the grown model.

    The model of ``stage_before`` grew from ``parameters_before`` to ``parameters``, by the method
    of each dimension, in ``seconds``. The last batch before it had ``loss_before`` with the old
    model as it was then, and ``loss_after`` with the new one, in nats per token (None where no
    step was taken before it by the same processes).
    """

    step: int
    stage: str
    stage_before: str
    parameters_before: int
    parameters: int
    methods: Mapping[str, str]
    seconds: Number
    loss_before: Number | None = None
    loss_after: Number | None = None
    kind: Literal["growth"] = "growth"

    def to_json(self) -> Json:
        """Return the record as plain data."""
        return _plain(self)


Measured = StepRecord | ValidationRecord
"""A record with losses, and what was spent until then."""

Record = Measured | MemoryGrowthRecord


def _plain(record: Record) -> Json:
    fields = asdict(record)
    kind = {"kind": fields.pop("kind")}
    return kind | _worded(fields)


def _worded(fields: Json) -> Json:
    """Return fields, and those in them, with words for numbers that JSON has no digits for."""
    return {
        name: _worded(value) if isinstance(value, dict)
        else _word(value) if isinstance(value, float) else value
        for name, value in fields.items()
    }  # fmt: skip


def _word(value: float) -> float | str:
    """Return a number as JSON can have it."""
    if math.isfinite(value):
        return value
    return next(word for word, meant in _WORDS.items() if repr(meant) == repr(value))
