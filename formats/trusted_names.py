"""A pickle may name any function at all, and who loads what we write would call it.

Reading calls nothing. But what a checkpoint holds beside its weights is carried on as data, and
would be called by the program that loads the result. So every name in a file must be one that only
makes data: for Python itself, torch and numpy, where anything can be found, from a list; elsewhere
(Megatron-LM, Transformer Engine, a user's own package) a class, as enums and settings are.
"""

import re
import sys

from flmgrow.errors import BadCheckpointError
from flmgrow.formats.inert_values import ITEMSIZES, Global, Opaque, OrderedMap, TensorRecord

_LISTED = sys.stdlib_module_names | {"torch", "numpy", "__builtin__", "copy_reg"}

_DATA = re.compile(
    r"""
    (builtins|__builtin__)\.(bool|bytearray|bytes|complex|dict|float|frozenset|int
     |list|object|range|set|slice|str|tuple)
    | argparse\.Namespace | types\.SimpleNamespace
    | collections\.(OrderedDict|deque|Counter|defaultdict)
    | datetime\.(date|datetime|time|timedelta|timezone) | decimal\.Decimal | fractions\.Fraction
    | uuid\.UUID | pathlib\.(_local\.)?(Pure)?(Posix|Windows)?Path
    | signal\.(Signals|Handlers|SIG\w+) | _?io\.(BytesIO|StringIO) | _codecs\.encode
    | (copyreg|copy_reg)\._reconstructor | random\.Random
    | numpy\.(ndarray|dtype|dtypes\.\w+DType|(bool|u?int|float|complex)\d*_?)
    | numpy\.(_core|core)\.multiarray\.(_reconstruct|scalar)
    | numpy\.(_core|core)\.numeric\._frombuffer | numpy\.random\._pickle\.__\w+_ctor
    | numpy\.random\.\w+\.(PCG64|MT19937|Philox|SFC64)
    | torch\.(Tensor|Size|device|dtype|Generator|_C\.Generator|nn\.parameter\.Parameter|\w+Storage)
    | torch\._utils\._rebuild_\w+ | torch\._tensor\._rebuild_from_type_v2
    | torch\.storage\.\w+Storage
    | torch\.(strided|sparse_\w+|contiguous_format|channels_last|preserve_format)
    | torch\.serialization\._get_layout
    """,
    re.VERBOSE,
)
_CLASS = re.compile(r"(\w+\.)+_*[A-Z]\w*")


def _only_makes_data(name: str) -> bool:
    package, _, rest = name.partition(".")
    if package not in _LISTED:
        return _CLASS.fullmatch(name) is not None
    return _DATA.fullmatch(name) is not None or (package == "torch" and rest in ITEMSIZES)


def refuse_programs(root: object, where: str) -> None:
    """Raise BadCheckpointError if anything in ``root``, the content of file ``where``, names a
    function.
    """
    seen: set[int] = set()
    names: set[Global] = set()
    todo = [root]
    while todo:
        value = todo.pop()
        if isinstance(value, Global):
            names.add(value)
        elif isinstance(value, TensorRecord):
            todo.append(value.attributes)
        elif (
            isinstance(value, dict | list | tuple | set | frozenset | Opaque)
            and id(value) not in seen
        ):
            seen.add(id(value))
            todo.extend(_members(value))
    for name in sorted(names, key=str):
        if not _only_makes_data(str(name)):
            raise BadCheckpointError(
                f"{where}: data.pkl: names {name}, which is not known to be harmless; "
                "nothing was run",
                "loading this file with torch may run it: find out who put it there",
            )


def _members(value: object) -> list[object]:
    if isinstance(value, Opaque):
        return [value.function, value.arguments, value.state, value.items, value.pairs]
    if isinstance(value, dict):
        state = value.state if isinstance(value, OrderedMap) else None
        return [*value.keys(), *value.values(), state]
    assert isinstance(value, list | tuple | set | frozenset)
    return list(value)
