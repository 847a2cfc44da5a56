"""Reading YAML strictly: numbers, words and keys mean one thing.

A person writes YAML and means what it says: 3e-4 is a number, ``no`` is a word, 010 is ten. YAML
1.1, which PyYAML reads, disagrees on all three, and takes the last of two equal keys without a
word. Here scalars are those of YAML 1.2's core schema, but decimal only, and a key may stand once.
"""

import re
from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from flmgrow.errors import UsageError
from flmgrow.storage.encodings import encoding_hint
from flmgrow.text import Found, Text

MOST_BYTES = 1 << 20
MOST_ALIKE = 64
MOST_NODES = 1 << 20
"""Values and keys, each as often as it is referred to: thirty lines can say a billion."""
_CORE = {
    "null": (r"~|null|Null|NULL", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "merge": (r"<<", "<"),
}
"""Of each kind, what its scalars look like, and the characters they begin with."""


_BREAKS = "\x85\u2028\u2029\ufeff"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's scalars, and without keys that stand twice."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.counts: dict[yaml.Node, int] = {}

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        """Return the next node, unless what it refers to makes it too large, or endless."""
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        is_alias = self.check_event(yaml.AliasEvent)
        node: yaml.Node | None = super().compose_node(parent, index)
        if node is None:
            return None
        if not is_alias:
            parts = node.value if isinstance(node, yaml.CollectionNode) else ()
            inner = [each for part in parts for each in (part if type(part) is tuple else (part,))]
            self.counts[node] = 1 + sum(self.counts[each] for each in inner)
        elif node not in self.counts:
            raise yaml.composer.ComposerError(None, None, "a value that holds itself", mark)
        if self.counts[node] > MOST_NODES:
            problem = f"more than {MOST_NODES} values, counted as often as they are referred to"
            raise yaml.composer.ComposerError(None, None, problem, mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return a mapping as it stands there, before any merge adds keys to it."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set[Hashable]()
        hashes = Counter[int]()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # told when the mapping is made
            hashes[hash(key)] += 1
            if hashes[hash(key)] > MOST_ALIKE:  # it would be compared with every one of them
                problem = "many keys that were chosen to have the same hash, or are the same"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if key in seen and key_node.tag != "tag:yaml.org,2002:merge":
                problem = f"the key {key!r:.60} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return node

    def construct_decimal(self, node: yaml.ScalarNode) -> int:
        """Return the integer that a scalar's digits mean, a leading zero or not."""
        return int(self.construct_scalar(node), 10)

    def construct_plain(self, node: yaml.ScalarNode) -> str:
        """Return the text of what would merge as a key, but is a value."""
        return str(self.construct_scalar(node))


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which quotes what the loader would take for another kind."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Return the node of a text; breaks of Unicode's own are folded unless they are escaped."""
        style = '"' if any(c in text for c in _BREAKS) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


for _side in (_Loader, _Dumper):
    _side.yaml_implicit_resolvers = {}
    for _kind, (_form, _first) in _CORE.items():
        _form_of_all = re.compile(f"(?:{_form})\\Z")
        _side.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", _form_of_all, list(_first))
    _side.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"\Z"), [""])
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_decimal)
_Loader.add_constructor("tag:yaml.org,2002:merge", _Loader.construct_plain)


_Dumper.add_representer(str, _Dumper.represent_text)


def parse_yaml(content: bytes, where: str) -> object:
    """Return what ``content``, of the file ``where``, holds.

    Raises:
        UsageError: What was asked for cannot be.
    """
    try:
        loader = _Loader(content.decode("utf-8-sig"))
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"is not YAML that can be read: {reason}", encoding_hint(content), where=where
        ) from None


def dump_yaml(data: object) -> str:
    """Return plain data as YAML that :func:`parse_yaml` reads back the same, keys in order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> object:
    """Return what a small YAML file holds.

    Raises:
        UsageError: What was asked for cannot be.
    """
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise UsageError(
                Text("has ", Found(size), " bytes"), where=path, wanted=f"at most {MOST_BYTES}"
            )
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{error.strerror}", where=path) from None
    return parse_yaml(content, str(path))


def dotted(content: object, prefix: str = "") -> dict[str, object]:
    """Return all values of nested mappings by their dotted keys."""
    if not isinstance(content, dict):
        return {prefix.removesuffix("."): content}
    inner = (dotted(value, f"{prefix}{key}.") for key, value in content.items())
    return {key: value for part in inner for key, value in part.items()}
