"""What all parts of a stage file have in common: amounts with units, names, paths, no guesswork."""

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from flmgrow.text import Found, Text, Wanted

_AMOUNT = re.compile(r"\s*(\d{1,3}(?:,\d{3})+|\d{1,20}(?:\.\d{1,20})?)\s*([KMBT]?)\s*", re.ASCII)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def amount(value: object) -> object:
    """Return the number that a text such as ``245.37B`` or ``4,608,000`` means, or 1e9.

    What is neither stays as it is.

    Raises:
        ValueError: For what is no whole number.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, str):
        return value
    match = _AMOUNT.fullmatch(value.upper())
    number = Fraction(match[1].replace(",", "")) * _UNITS[match[2]] if match else Fraction(1, 2)
    if number.denominator != 1:
        wanted = Wanted("an amount, such as 245.37B or 4,608,000")
        raise ValueError(Text("found ", Found(f"{value!r:.40}"), wanted))
    return number.numerator


def nearest(number: Fraction) -> int:
    """Return the nearest whole number, the larger of two."""
    return floor(number + Fraction(1, 2))


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


def keys_of(section: type[BaseModel], above: str = "") -> Iterator[str]:
    """Yield the keys that a section and those inside it take, as ``training.freeze.layers``."""
    for name, field in section.model_fields.items():
        yield above + name
        for inner in _sections_in(field.annotation):
            yield from keys_of(inner, f"{above}{name}.")


def _sections_in(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for part in get_args(kind):
        yield from _sections_in(part)


def keys_meant(section: type[BaseModel], errors: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys of ``section`` that may be meant by those of pydantic's ``errors`` which say
    that there is no such key: one of another section with that name, or one beside it that is much
    like it.
    """
    found: dict[str, None] = {}
    for error in errors:
        if error["type"] == "extra_forbidden":
            *above, name = (str(part) for part in error["loc"] if not isinstance(part, int))
            found |= dict.fromkeys(_keys_like(name, above, list(keys_of(section))))
    return list(found)


def _keys_like(name: str, above: list[str], keys: list[str]) -> list[str]:
    split = {key: key.split(".") for key in keys}
    beside = {last: key for key, (*before, last) in split.items() if before == above}
    elsewhere = [key for key, (*_, last) in split.items() if last == name]
    return elsewhere or [beside[near] for near in difflib.get_close_matches(name, beside, 1)]


def located(name: str, folder: Path) -> str:
    """Return ``name`` with the path of the file that it names, if any, seen from ``folder``."""
    kind, _, rest = name.partition(":")
    if kind == "tiktoken" and rest.endswith(".tiktoken"):
        return f"tiktoken:{folder / Path(rest).expanduser()}"
    is_file = name.endswith((".tiktoken", ".json"))
    is_folder = name != "bytes" and os.path.isdir(  # noqa: PTH112 (Path.is_dir raises for names that are too long)
        folder / Path(name).expanduser()
    )
    if kind != "tiktoken" and (is_file or is_folder):
        return str(folder / Path(name).expanduser())
    return name
