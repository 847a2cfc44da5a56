"""What a run must know of its past, and no weight says: ``flmgrow_training.json``.

It lies in an iteration's folder, beside the weights that flmgrow's trainer saved there: how much
was read and of which data, how far masks are open, which stage this is and when it began, and what
the model grew from, and which files were written beside it (:attr:`TrainingState.files`), so that a
bit that rotted is found. The part that goes on through growth (:attr:`TrainingState.carried`) is
handed on by ``expand`` and ``reshard`` in ``flmgrow.json``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.history.manifest_schema import LagForms, MemberForm
from flmgrow.formats.history.parts import Member
from flmgrow.formats.history.readings import PassedOver, Stretch
from flmgrow.formats.history.training_file import TRAINING
from flmgrow.formats.layout.lags import Lags, lags_from_json, lags_to_json
from flmgrow.model.masks import (
    Dimension,
    Fresh,
    Mask,
    fresh_from_json,
    fresh_to_json,
    mask_from_json,
)
from flmgrow.storage.checksums import FileRecord, is_safe
from flmgrow.storage.content_sum import SUM, is_intact, with_sum
from flmgrow.storage.files import read_if_there
from flmgrow.storage.strict_json import Json
from flmgrow.storage.validation import problems
from flmgrow.text import Found, Text

VERSION = 3
WITHOUT_FILES = 2
"""The version that listed no files."""

WITHOUT_SUM = 1
"""The version that had no sum over its content, either."""

MAX_BYTES = 64 << 20

_Number = Annotated[int, Field(ge=0, le=1 << 62)]
_Batch = Annotated[int, Field(ge=1, le=1 << 62)]
_Loss = Annotated[float, Field(allow_inf_nan=False)]
_Span = Annotated[list[_Number], Field(min_length=2, max_length=2)]


class TokenizerFacts(BaseModel):
    """The tokenizer that a model was trained with, by what it is and not by where it lies.

    ``kind`` is ``bytes``, ``tiktoken:`` and the pattern that cuts text into words, or
    ``huggingface``. ``vocab_size`` is one more than its largest id, ``eod`` the id that ends each
    document in the training data (a model's ``eos_token_id``). ``sha256`` is of its vocabulary and
    rules (:mod:`flmgrow.formats.tokenizer.identity`); bytes have none.
    """

    model_config = ConfigDict(frozen=True, strict=True, defer_build=True)

    kind: str
    vocab_size: Annotated[int, Field(ge=1, le=1 << 62)]
    eod: _Number
    sha256: str = ""


class Carried(BaseModel):
    """What goes on through growth: samples ``consumed`` of the data with a digest, tokens, FLOPs.

    ``data_keys`` are what decides on that data, by a stage file's keys, so that what differs can
    be named. ``flops`` are floating-point operations, as :mod:`flmgrow.model.flops` counts them.
    ``readings`` are the stretches of the run so far in which it read one mixture of corpora, oldest
    first, the last one up to here; none of what earlier versions saved. ``passed_over`` are the
    samples among those consumed that it did not train on, oldest first; ``tokens`` leaves them out.
    ``base_output`` is the output multiplier of the first model, before growth changed it: muP's
    settings of the head follow from both. None if nothing says it. ``losses`` are what the guard
    against spikes compares the next one with, oldest first, and ``loss_batches`` the samples that
    each of them is a mean of, or empty where nothing says it.

    ``tokenizer`` is what ``export`` asks for the id that ends documents, and compares the tokenizer
    with that it is given: it is in ``training_of(checkpoint)``
    (:func:`flmgrow.formats.history.manifest.training_of`), whether flmgrow's trainer saved that
    checkpoint or it was grown or resharded since. None for what earlier versions saved.
    """

    model_config = ConfigDict(frozen=True, strict=True, defer_build=True)

    consumed_samples: _Number = 0
    data: str = ""
    data_keys: dict[str, str | int | float | bool | None] | None = None
    readings: list[Stretch] = []
    passed_over: list[PassedOver] = []
    tokenizer: TokenizerFacts | None = None
    tokens: _Number = 0
    flops: Annotated[int, Field(ge=0, le=1 << 120)] = 0
    base_output: Annotated[float, Field(allow_inf_nan=False)] | None = None
    losses: list[_Loss] = []
    loss_batches: list[_Batch] = []

    @model_validator(mode="after")
    def _losses_have_batches(self) -> Self:
        if self.loss_batches and len(self.loss_batches) != len(self.losses):
            raise ValueError(f"{len(self.losses)} losses of {len(self.loss_batches)} batches")
        return self

    @classmethod
    def parse(cls, data: Json, where: str) -> Self:
        """Return what plain data says.

        Raises:
            BadCheckpointError: For key ``where``.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise BadCheckpointError(problems(error.errors()), where=where) from None

    def to_json(self) -> Json:
        """Return what was said of it as plain data: what was not said is left out."""
        return self.model_dump(exclude_unset=True)


@dataclass(frozen=True, eq=False)
class TrainingState:
    """A run at one iteration. ``stage_begin`` is the iteration at which its stage began.

    Since then it has read ``stage_tokens``; its first step had ``stage_batch`` samples (None, both,
    where an older flmgrow saved it). ``settings`` are what it was trained with, by the stage file's
    keys. ``family`` is the ancestry of the checkpoint that the stage began with, that one last.
    ``files`` are the others in its folder, by their paths in it (none, where an older flmgrow saved
    it).
    ``fresh`` are the indices that the last growth made, on each axis that grew (none, where an
    older flmgrow saved it). ``lags`` say of which parameters Adam has counted less, or has no
    state.
    ``has_sum``: its file has a sum over its content, as all have but those of older versions.
    """

    iteration: int
    stage: str
    stage_begin: int
    carried: Carried = field(default_factory=Carried)
    masks: Mapping[Dimension, Mask] = field(default_factory=dict)
    family: tuple[Member, ...] = ()
    stage_tokens: int | None = None
    stage_batch: int | None = None
    settings: Json = field(default_factory=dict)
    files: tuple[FileRecord, ...] = ()
    has_sum: bool = True
    fresh: Fresh = field(default_factory=dict)
    lags: Lags = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the bytes of its file."""
        content = {
            "training_version": VERSION,
            "iteration": self.iteration,
            "stage": self.stage,
            "stage_begin": self.stage_begin,
            "stage_tokens": self.stage_tokens,
            "stage_batch": self.stage_batch,
            "settings": self.settings,
            "carried": self.carried.model_dump(),
            "masks": {str(dimension): mask.to_json() for dimension, mask in self.masks.items()},
            "fresh": fresh_to_json(self.fresh),
            "lags": lags_to_json(self.lags),
            "family": [member.to_json() for member in self.family],
            "files": [record.to_json() for record in self.files],
        }
        return json.dumps(with_sum(content), indent=1).encode() + b"\n"


class _File(BaseModel):
    path: str
    size: _Number
    xxh3_128: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]

    @field_validator("path")
    @classmethod
    def _lies_inside(cls, path: str) -> str:
        if not is_safe(path):
            raise ValueError("is outside the folder")
        return path


class _Form(BaseModel):
    training_version: int
    iteration: _Number
    stage: str
    stage_begin: _Number
    stage_tokens: _Number | None = None
    stage_batch: _Batch | None = None
    settings: dict[str, Any] = {}
    carried: Carried
    masks: dict[str, dict[str, Any]]
    fresh: dict[str, list[_Span]] = {}
    lags: LagForms = []
    losses: list[_Loss] = []
    family: list[MemberForm]
    files: list[_File] = []


def _with_losses(form: _Form) -> Carried:
    """Return what goes on through growth; an older flmgrow kept the losses beside it."""
    return form.carried.model_copy(update={"losses": form.losses}) if form.losses else form.carried


def read_training_state(folder: Path) -> TrainingState | None:
    """Return the state in an iteration's folder, or None if flmgrow's trainer did not save it.

    Raises:
        BadCheckpointError: If there is one that cannot be read.
    """
    path = folder / TRAINING
    content = read_if_there(path, MAX_BYTES)
    if content is None:
        return None
    try:
        data = json.loads(content)
        found = _Form.model_validate(data, strict=True)
        if found.training_version not in (VERSION, WITHOUT_FILES, WITHOUT_SUM):
            what = Text("version ", Found(found.training_version))
            raise BadCheckpointError(what, wanted=VERSION)
        if found.stage_begin > found.iteration:
            raise ValueError(
                f"the stage begins at {found.stage_begin}, after iteration {found.iteration}"
            )
        masks = {Dimension(name): mask_from_json(name, data) for name, data in found.masks.items()}
        fresh = fresh_from_json(data.get("fresh", {}))
        lags = lags_from_json(data.get("lags", []))
    except ValidationError as error:
        raise BadCheckpointError(problems(error.errors()), where=path) from None
    except BadCheckpointError as error:
        raise error.at(path, "not readable") from None
    except (ValueError, RecursionError) as error:
        raise BadCheckpointError(f"not readable: {error}", where=path) from None
    if (SUM in data or found.training_version != WITHOUT_SUM) and not is_intact(data):
        raise BadCheckpointError(
            "its own sum does not match its content",
            "it was altered: restore it from a copy, or go on from another checkpoint",
            where=path,
        )
    return TrainingState(
        iteration=found.iteration,
        stage=found.stage,
        stage_begin=found.stage_begin,
        carried=_with_losses(found),
        masks=masks,
        family=tuple(map(Member.parse, data["family"])),
        stage_tokens=found.stage_tokens,
        stage_batch=found.stage_batch,
        settings=found.settings,
        files=tuple(FileRecord(each.path, each.size, each.xxh3_128) for each in found.files),
        has_sum=SUM in data,
        fresh=fresh,
        lags=lags,
    )
