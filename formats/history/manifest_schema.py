"""What a manifest must look like before anything in it is believed.

It may have been edited, damaged or made to deceive. What is checked here holds wherever a manifest
is read; what its numbers mean (masks, the growth) is checked by who uses them. Unknown keys are
left alone: a later version may add some.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.fields import MAX_LAYERS
from flmgrow.storage.validation import problems

_Count = Annotated[int, Field(ge=0, le=1 << 50)]
_Tokens = Annotated[int, Field(ge=0, le=1 << 60)]
_Span = Annotated[list[_Count], Field(min_length=2, max_length=2)]
_Layers = Annotated[
    list[Annotated[int, Field(ge=0, le=MAX_LAYERS)]], Field(min_length=2, max_length=2)
]
_Rows = Annotated[int, Field(ge=1, le=1 << 26)]


class _Checked(BaseModel):
    model_config = ConfigDict(defer_build=True)  # most commands never read a manifest


class _Finding(_Checked):
    name: str
    passed: bool | None
    missing: str | None = None
    detail: str = ""


class _Summary(_Checked):
    equal: bool
    proven: bool | None = None
    missing: list[str] = []
    source: str
    date: str = ""


class _Receipt(_Summary):
    flmgrow: str = ""
    source_digest: str = ""
    checks: list[_Finding] = []


class _Hub(_Checked):
    repository: str
    commit: str


class LagForm(_Checked):
    """Parameters of which Adam has counted less."""

    tensor: str
    layers: list[_Layers] | None
    steps: _Count | None


LagForms = Annotated[list[LagForm], Field(max_length=256)]
"""Of some tensors with some counts: few, so that no file asks for more memory than it is worth."""


class MemberForm(_Checked):
    """One checkpoint of an ancestry."""

    name: str
    parameters: _Count
    iteration: _Count | None
    methods: dict[str, str] = {}
    receipt: _Summary | None = None
    hub: _Hub | None = None
    tokens: _Tokens | None = None
    date: str | None = None


class _Source(_Checked):
    name: str
    hub: _Hub | None = None
    tokens: _Tokens | None = None
    date: str | None = None
    digest: str
    arguments: dict[str, Any] = {}
    parameters: _Count
    model: dict[str, Any] = {}
    layout: dict[str, Any] = {}
    base_output: Annotated[float, Field(allow_inf_nan=False)] | None = None
    iteration: _Count | None
    family: list[MemberForm]
    receipt: _Receipt | None


class _Growth(_Checked):
    methods: dict[str, str]
    preserves_function: bool = False
    seed: int | None = None
    request: dict[str, Any]
    axes: dict[str, list[dict[str, Any]]]
    spreads: dict[str, float] = {}
    draw: _Count = 1


class _Options(_Checked):
    replicated: str = ""
    init_std: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class _Part(_Checked):
    name: str
    start: _Count
    size: _Count
    xxh3_64: str


class _File(_Checked):
    path: str
    size: _Count
    xxh3_128: str
    parts: list[_Part] = []


class _Manifest(_Checked):
    parameters: _Count
    iteration: _Count | None
    padded_vocab: _Rows
    flmgrow: str = ""
    format: str = ""
    model: dict[str, Any] = {}
    layout: dict[str, Any] = {}
    dtype: str = ""
    source: _Source
    growth: _Growth
    masks: dict[str, dict[str, Any]]
    fresh: dict[str, list[_Span]] | None = None
    lags: LagForms | None = None
    optimizer: str
    training: dict[str, Any] | None = None
    options: _Options
    dropped: list[str] = []
    dropped_why: dict[str, str] = {}
    drift: list[str] = []
    notes: list[str] = []
    files: list[_File]
    receipt: _Receipt | None


def check_form(data: object, where: str) -> None:
    """Raise BadCheckpointError, naming the first key that is not as flmgrow writes it, for file
    ``where``.
    """
    try:
        _Manifest.model_validate(data, strict=True)
    except ValidationError as error:
        raise BadCheckpointError(
            problems(error.errors()), "it was altered: restore it from a copy", where=where
        ) from None
