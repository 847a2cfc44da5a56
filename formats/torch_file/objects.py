"""What the objects that were read from a pickle mean: settings, members of enums, and where among
them tensors are.
"""

from collections.abc import Iterator

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.torch_file.values import Global, Opaque, OrderedMap, TensorRecord, bad_tensor
from flmgrow.text import Found, Text

MAX_DEPTH = 1000

_NAMESPACES = (Global("argparse", "Namespace"), Global("types", "SimpleNamespace"))


def make_namespace(attributes: dict[str, object]) -> Opaque:
    """Return an argparse.Namespace of these attributes (the dict itself, not a copy)."""
    return Opaque("newobj", _NAMESPACES[0], (), attributes)


def namespace(value: object) -> dict[str, object]:
    """Return the attributes of an argparse.Namespace or a types.SimpleNamespace.

    It is the namespace's own dict: what is changed in it is written with the namespace.

    Raises:
        BadCheckpointError: If ``value`` is something else.
    """
    if isinstance(value, Opaque) and value.function in _NAMESPACES:
        if value.state is None:
            value.state = {}
        if type(value.state) is dict and all(type(name) is str for name in value.state):
            return value.state
    found = value.function if isinstance(value, Opaque) else type(value).__name__
    raise BadCheckpointError(
        Text("found ", Found(found)),
        "the checkpoint was not saved by Megatron, or not with its arguments",
        wanted="an argparse.Namespace of settings",
    )


def enum_value(value: object) -> str | int | float | None:
    """Return the plain value of an enum member, or None when ``value`` is not one.

    A member is pickled as a call of its class with its value; so are a few other objects made of
    one number or string. Ask only where an enum is expected.
    """
    if isinstance(value, Opaque) and value.how == "reduce" and len(value.arguments) == 1:
        argument = value.arguments[0]
        if isinstance(argument, str | int | float):
            return argument
    return None


def walk_tensors(root: object) -> Iterator[tuple[tuple[object, ...], TensorRecord]]:
    """Yield the key path and the record of every tensor in ``root``, in the order of the data.

    A container that is met again is not entered again, so that shared and circular data end; a
    tensor is yielded once for each place that holds it in the containers entered. Inside an
    :class:`Opaque` the path names the part ('arguments', 'state', 'items', 'pairs'), then goes on.

    Raises:
        BadCheckpointError: If a tensor lies more than ``MAX_DEPTH`` containers deep.
    """
    entered: set[int] = set()
    todo: list[tuple[_Path, object]] = [(None, root)]
    while todo:
        path, value = todo.pop()
        if isinstance(value, TensorRecord):
            yield _keys(path), value
            if value.attributes is not None:
                todo.append(((path, "attributes"), value.attributes))
        elif id(value) not in entered:
            members = _members(value)
            if members:
                entered.add(id(value))
                todo.extend(((path, key), member) for key, member in reversed(members))


_Path = tuple["_Path", object] | None
"""A key path as a linked list: deep data costs one link per value, not one tuple of all keys."""


def _keys(path: _Path) -> tuple[object, ...]:
    keys: list[object] = []
    while path is not None:
        if len(keys) == MAX_DEPTH:
            raise bad_tensor(f"it lies more than {MAX_DEPTH} containers deep")
        path, key = path
        keys.append(key)
    return tuple(reversed(keys))


def _members(value: object) -> list[tuple[object, object]]:
    """Return the key and value of each thing that ``value`` holds."""
    if isinstance(value, dict):
        members = list(value.items())
        if isinstance(value, OrderedMap) and value.state is not None:
            members.append(("state", value.state))
        return members
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if isinstance(value, Opaque):
        parts = {name: getattr(value, name) for name in ("arguments", "state", "items", "pairs")}
        return [(name, part) for name, part in parts.items() if part is not None]
    return []
