"""Putting pydantic's validation errors into words.

What is wrong with a file's content is said in words for people: what was found, and wanted.
pydantic finds it, and speaks to programmers: its kinds of error and their limits are read here, and
none of its sentences.
"""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from flmgrow.text import Found, Text, Wanted

_SHOWN = 5
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring = 2, 3, 2, 60

WANTED = {
    "model_type": "a mapping",
    "dict_type": "a mapping",
    "list_type": "a list",
    "path_type": "a path",
    "string_type": "a text; quote it",
    "none_required": "None",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "greater than or equal to {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "less than or equal to {le}",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "tuple_type": "a valid tuple",
    "bool_type": "a valid boolean",
    "bool_parsing": "a valid boolean, unable to interpret input",
    "int_type": "a valid integer",
    "int_parsing": "a valid integer, unable to parse string as an integer",
    "int_from_float": "a valid integer, got a number with a fractional part",
    "float_type": "a valid number",
    "float_parsing": "a valid number, unable to parse string as a number",
}
"""What each of pydantic's kinds of error wants, with the limits that it names."""


def problems(errors: Sequence[Mapping[str, Any]]) -> Text:
    """Return pydantic's findings on one line, the first few of them."""
    parts = [Text(_place(error), _problem(error)) for error in errors[:_SHOWN]]
    more = [f"and {len(errors) - _SHOWN} more"] if errors[_SHOWN:] else []
    return Text("; ").join([*parts, *more])


def _place(error: Mapping[str, Any]) -> str:
    """Return where an error is, for the front of its text; what is ours says so itself if it is of
    several places.
    """
    if not error["loc"] and error["type"] == "value_error":
        return ""
    return f"{'.'.join(map(str, error['loc'])) or 'the whole'}: "


def _problem(error: Mapping[str, Any]) -> str:
    kind, found, limits = error["type"], error.get("input"), error.get("ctx", {})
    if kind == "missing":
        return "is not given"
    if kind == "extra_forbidden":
        return "there is no such key"
    if kind == "value_error":
        return _said(limits["error"])
    shown = Found("nothing" if found is None else _SHORT.repr(found))
    if kind not in WANTED:
        message = str(error["msg"])
        return Text("found ", shown, f": {message[:1].lower()}{message[1:]}")
    plain = {name: _number(limit) for name, limit in limits.items()}
    return Text("found ", shown, Wanted(WANTED[kind].format(**plain)))


def _said(error: ValueError) -> str:
    """Return what an error of our own says, with its parts."""
    return error.args[0] if error.args and isinstance(error.args[0], Text) else str(error)


def _number(limit: object) -> object:
    """Return a limit without the end ``.0`` that a whole number has as a float."""
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit
