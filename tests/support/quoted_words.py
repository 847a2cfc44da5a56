"""Which words a module quotes: for rules on where a name may stand."""

import ast
from collections.abc import Iterator


def quoted(text: str) -> Iterator[str]:
    """Every word of every string, but docstrings and other prose, that stands alone or in a list
    that is split. Names of flmgrow's own settings are none.
    """
    tree = ast.parse(text)
    own = {id(name) for name in settings(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Constant):
            if node.attr == "split" and isinstance(node.value.value, str):
                yield from node.value.value.split()
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in own:
            yield node.value


def settings(tree: ast.AST) -> Iterator[ast.Constant]:
    """The names of settings that a module's texts speak of, where they are written out."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) not in ("Setting", "Pass"):
            continue
        yield from (name for name in node.args[:1] if isinstance(name, ast.Constant))
