"""Objects of unknown classes in a checkpoint: kept, left out or refused.

Programs keep objects of their own in a checkpoint, of classes that nobody else knows. An argument
may hold a model's registry entry, functions included, and a fork of Megatron-LM may save a state of
its own beside the weights. Nothing can be said of what such a class does when it is loaded, so such
an object is not written again: it is left out, and the user is told. What only an attack needs, a
name of Python itself, numpy or torch that could run something, is refused, and so is anything
unknown among the weights and the optimizer's states, which cannot be left out.
"""

from collections.abc import Iterator, Mapping

from flmgrow.formats.torch_file.trusted_names import (
    is_foreign,
    refuse_programs,
    shown_name,
    untrusted_names,
)
from flmgrow.formats.torch_file.values import Opaque

_INDISPENSABLE = ("model", "optimizer")


def check_content(root: object, where: str) -> None:
    """Refuse the content of a rank's file, ``where``, that has a program in it.

    Objects that :func:`left_out_objects` lists pass.

    Raises:
        BadCheckpointError: The checkpoint is damaged.
    """
    if not isinstance(root, dict):
        refuse_programs(root, where)
        return
    refuse_programs(list(root), where)
    for label, value in _units(root):
        if label.startswith(_INDISPENSABLE) or not is_left_out(value):
            refuse_programs(value, where)


def is_left_out(value: object) -> bool:
    """Return whether ``value``, an entry or an argument, holds an object of an unknown package."""
    return any(is_foreign(name) for name in untrusted_names(value))


def left_out_objects(content: Mapping[object, object]) -> dict[str, str]:
    """Return which entries and arguments of a rank's content are not written again, and why."""
    found = {}
    for label, value in _units(content):
        names = [] if label.startswith(_INDISPENSABLE) else untrusted_names(value)
        if any(map(is_foreign, names)):
            shown = ", ".join(map(shown_name, names[:3])) + (", ..." if names[3:] else "")
            found[label] = f"names {shown}, which may run anything when it is loaded"
    return found


def without_foreign(arguments: Mapping[str, object]) -> dict[str, object]:
    """Return ``arguments`` without those that :func:`left_out_objects` lists."""
    return {name: value for name, value in arguments.items() if not is_left_out(value)}


def _units(content: Mapping[object, object]) -> Iterator[tuple[str, object]]:
    """Yield what is carried or left out as a whole: each argument, and each other entry."""
    for key, value in content.items():
        arguments = value.state if key == "args" and isinstance(value, Opaque) else None
        if isinstance(value, Opaque) and isinstance(arguments, dict):
            yield "args", (value.function, value.arguments, value.items, value.pairs)
            for name, argument in arguments.items():
                yield f"args.{name}", argument
        else:
            yield str(key), value
