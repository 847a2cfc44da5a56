"""Putting pydantic's validation errors into words.

What is wrong with a file's content is said in words for people: what was found, and wanted.
pydantic finds it, and speaks to programmers.
"""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

_SHOWN = 5
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring = 2, 3, 2, 60

_WANTED = {
    "model_type": "a mapping",
    "dict_type": "a mapping",
    "list_type": "a list",
    "path_type": "a path",
    "string_type": "a text; quote it",
}


def problems(errors: Sequence[Mapping[str, Any]]) -> str:
    """Return pydantic's findings on one line, the first few of them."""
    parts = [
        f"{'.'.join(map(str, error['loc'])) or 'the whole'}: {_problem(error)}"
        for error in errors[:_SHOWN]
    ]
    return "; ".join(parts) + (f"; and {len(errors) - _SHOWN} more" if errors[_SHOWN:] else "")


def _problem(error: Mapping[str, Any]) -> str:
    kind, message, found = error["type"], str(error["msg"]), error.get("input")
    if kind == "missing":
        return "is not given"
    if kind == "extra_forbidden":
        return "there is no such key"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    shown = "nothing" if found is None else _SHORT.repr(found)
    wanted = _WANTED.get(kind, message.removeprefix("Input should be "))
    if wanted == message:
        return f"found {shown}: {message[:1].lower()}{message[1:]}"
    return f"found {shown}, wanted {wanted}"
