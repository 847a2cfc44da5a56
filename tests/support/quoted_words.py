"""Which words a module quotes: for rules on where a name may stand."""

import ast
from collections.abc import Iterator


def quoted(text: str) -> Iterator[str]:
    """Every word of every string, but docstrings and other prose, that stands alone or in a list
    that is split.
    """
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Constant):
            if node.attr == "split" and isinstance(node.value.value, str):
                yield from node.value.value.split()
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
