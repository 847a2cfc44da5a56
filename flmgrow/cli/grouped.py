"""Options that several commands take together, declared once: as the fields of a dataclass.

Typer knows an option as a parameter of a command's function. ``grouped`` lets a parameter of that
function be a whole dataclass: each of its fields that is declared as an option becomes one of the
command's, and the command is called with the value they make.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, get_origin, get_type_hints

_Command = Callable[..., None]


def grouped(command: _Command) -> _Command:
    """Return ``command`` with every dataclass among its parameters replaced by the options in it.

    An option is a field annotated with ``Annotated[..., typer.Option(...)]``; it needs a default.
    Other fields keep theirs.
    """
    signature = inspect.signature(command)
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters = [
        one
        for parameter in signature.parameters.values()
        for one in (
            _options(groups[parameter.name])
            if parameter.name in groups
            else [_keyword(parameter.name, parameter.default, hints[parameter.name])]
        )
    ]

    @functools.wraps(command)
    def called(**given: Any) -> None:
        for name, kind in groups.items():
            own = {option.name: given.pop(option.name) for option in _options(kind)}
            given[name] = kind(**own)
        command(**given)

    called.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in parameters}
    return called


def _options(kind: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        _keyword(one.name, _default(one), hints[one.name])
        for one in fields(kind)
        if get_origin(hints[one.name]) is Annotated
    ]


def _default(option: "Field[Any]") -> object:
    assert option.default is not MISSING, f"{option.name}: an option in a group needs a default"
    return option.default


def _keyword(name: str, default: object, annotation: object) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)
