"""The parts that a manifest consists of, as values: receipts, and the members of an ancestry.

A part that was read keeps its plain data, and is written as it was: with keys that a later version
added, and without those that an earlier one did not have. What is known of a part is in its fields.
The form of plain data is checked before (:mod:`flmgrow.formats.history.manifest_schema`).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Protocol, Self, runtime_checkable

from flmgrow.formats.checkpoint import HubOrigin
from flmgrow.storage.strict_json import Json

FUNCTION = "function"
"""What ``verify`` calls its comparison of what two models compute."""

ELEMENTS = "elements"
"""What it calls its derivation of every stored value."""

_TOLD = ("max_logit", "largest_logit", "tolerance", "dtype", "stored_dtypes", "tokens")
"""Numbers of the function that descendants hand on."""


@runtime_checkable
class _Plain(Protocol):
    def to_json(self) -> Mapping[str, object]: ...


def _plain(value: Any) -> Any:
    """Return a value as the data that JSON has for it."""
    if isinstance(value, _Plain):
        return value.to_json()
    if isinstance(value, HubOrigin):
        return asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value


@dataclass(frozen=True, kw_only=True)
class ManifestPart:
    """A mapping in a manifest. ``read`` is the plain data it was read from, None for a new one."""

    read: Json | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> Json:
        """Return it as plain data: as it was read, or, of a new one, all that its fields say."""
        return self._said() if self.read is None else dict(self.read)

    def _said(self) -> Json:
        """Return what the fields say; those that may be left out are left out where None."""
        said = {each.name: getattr(self, each.name) for each in fields(self)}
        needless = {each.name for each in fields(self) if each.default is None}
        return {
            name: _plain(value)
            for name, value in said.items()
            if value is not None or name not in needless
        }

    def changed(self, **fields_: Any) -> Self:
        """Return it with other values in these fields; nothing else is lost that it was read with.

        ``dataclasses.replace`` would leave the plain data behind the change.
        """
        if self.read is None:
            return replace(self, **fields_)
        plain = {name: _plain(value) for name, value in fields_.items()}
        return replace(self, **fields_, read={**self.read, **plain})


def _others(part: type[ManifestPart], data: Json) -> Json:
    """Return what plain data says beside the fields of a part."""
    return {key: data[key] for key in data.keys() - {each.name for each in fields(part)}}


def _texts(found: list[str] | None) -> tuple[str, ...] | None:
    return None if found is None else tuple(found)


@dataclass(frozen=True, kw_only=True)
class CheckFinding(ManifestPart):
    """What one check of ``verify`` found: passed, failed, or neither (``passed`` None).

    ``missing`` says why it is not there. ``numbers`` are what it measured; they lie beside the
    other keys.
    """

    name: str
    passed: bool | None
    missing: str | None
    detail: str
    numbers: Mapping[str, object]

    @classmethod
    def parse(cls, data: Json) -> Self:
        """Return the finding that plain data describes."""
        return cls(
            name=data["name"],
            passed=data["passed"],
            missing=data.get("missing"),
            detail=data.get("detail", ""),
            numbers=_others(cls, data),
            read=data,
        )

    def _said(self) -> Json:
        said = super()._said()
        numbers: Json = said.pop("numbers")
        return said | numbers


@dataclass(frozen=True, kw_only=True)
class Receipt(ManifestPart):
    """What verification found, when it compared a result with ``source``.

    ``equal`` says that no difference was found, ``proven`` that no evidence was ``missing``; both
    of the latter are None where an earlier version, which did not say, wrote it.
    """

    flmgrow: str
    date: str
    source: str
    source_digest: str
    equal: bool
    proven: bool | None
    missing: tuple[str, ...] | None
    checks: tuple[CheckFinding, ...]

    @classmethod
    def parse(cls, data: Json) -> Self:
        """Return the receipt that plain data describes."""
        return cls(
            flmgrow=data.get("flmgrow", ""),
            date=data.get("date", ""),
            source=data["source"],
            source_digest=data.get("source_digest", ""),
            equal=data["equal"],
            proven=data.get("proven"),
            missing=_texts(data.get("missing")),
            checks=tuple(map(CheckFinding.parse, data.get("checks", []))),
            read=data,
        )

    @property
    def summary(self) -> "Summary":
        """What descendants are told of it."""
        function = next((each for each in self.checks if each.name == FUNCTION), None)
        numbers = {} if function is None else function.numbers
        derived = any(each.name == ELEMENTS and each.passed is True for each in self.checks)
        return Summary(
            proven=derived if self.proven is None and self.checks else self.proven,
            date=self.date or None,
            source=self.source,
            equal=self.equal,
            missing=self.missing,
            numbers={key: numbers[key] for key in _TOLD if key in numbers},
        )


@dataclass(frozen=True, kw_only=True)
class Summary(ManifestPart):
    """The verdict of a receipt, with the numbers of the function, as an ancestry tells it."""

    proven: bool | None = None
    date: str | None = None
    source: str
    equal: bool
    missing: tuple[str, ...] | None = None
    numbers: Mapping[str, object]

    @classmethod
    def parse(cls, data: Json) -> Self:
        """Return the summary that plain data describes."""
        return cls(
            proven=data.get("proven"),
            date=data.get("date"),
            source=data["source"],
            equal=data["equal"],
            missing=_texts(data.get("missing")),
            numbers=_others(cls, data),
            read=data,
        )

    def _said(self) -> Json:
        said = super()._said()
        numbers: Json = said.pop("numbers")
        return said | numbers


def hub_origin(data: Json | None) -> HubOrigin | None:
    """Return where on the Hub something was fetched from, as plain data says it."""
    return None if data is None else HubOrigin(data["repository"], data["commit"])


@dataclass(frozen=True, kw_only=True)
class Member(ManifestPart):
    """One checkpoint of an ancestry.

    ``methods`` are those it grew by, None where no manifest describes it; one that is described has
    a ``receipt``, or was not verified. ``tokens`` are those it was trained on.
    """

    name: str
    parameters: int
    iteration: int | None
    methods: Mapping[str, str] | None = None
    receipt: Summary | None = None
    hub: HubOrigin | None = None
    tokens: int | None = None
    date: str | None = None

    @classmethod
    def parse(cls, data: Json) -> Self:
        """Return the member that plain data describes."""
        receipt = data.get("receipt")
        return cls(
            name=data["name"],
            parameters=data["parameters"],
            iteration=data["iteration"],
            methods=data.get("methods"),
            receipt=None if receipt is None else Summary.parse(receipt),
            hub=hub_origin(data.get("hub")),
            tokens=data.get("tokens"),
            date=data.get("date"),
            read=data,
        )

    def _said(self) -> Json:
        said = super()._said()
        return said if self.methods is None else {**said, "receipt": said.get("receipt")}


def verdict_text(receipt: Receipt) -> str:
    """Return what a receipt says, as the end of a sentence whose subject is its checkpoint."""
    if not receipt.equal:
        return f"DIFFERENT from {receipt.source}"
    missing = ", ".join(receipt.missing or ())
    return f"equal to {receipt.source}" + (f", NOT PROVEN: {missing}" if missing else "")
