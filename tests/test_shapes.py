"""What a signature cannot say of an array, its docstring does: the shape, by names of axes."""

import ast
import re
from collections.abc import Iterator

import pytest
from repository import find_modules

ARRAY = re.compile(r"\b(NDArray|ndarray|Tensor|Array|IntArray|FloatArray)\b")
_WORDS = r"(?:\.\.\.|[\w'/*+]+(?: [\w'/*+]+){0,2})"
SHAPE = re.compile(rf"\({_WORDS},(?:\s{_WORDS}(?:,\s{_WORDS})*)?\)|\bshapes?\b")
"""``(b, s, h)``, ``(n,)`` or ``(samples, sequence length)``; or a word on the shape, as "of any".
"""


def public_functions(
    tree: ast.Module | ast.ClassDef, at: str
) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield the functions and methods of a module that others may call, by their names."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_":
            name = f"{at}.{node.name}"
            if isinstance(node, ast.ClassDef):
                yield from public_functions(node, name)
            else:
                yield name, node


def without_shapes(text: str, module: str) -> list[str]:
    """The public functions that take or return arrays and do not say of which shape."""
    found = []
    for name, function in public_functions(ast.parse(text), module):
        given = ast.walk(function.args)
        notes = [each.annotation for each in given if isinstance(each, ast.arg)]
        signature = " ".join(ast.unparse(note) for note in (*notes, function.returns) if note)
        if ARRAY.search(signature) and not SHAPE.search(ast.get_docstring(function) or ""):
            found.append(name)
    return found


def test_public_functions_say_the_shapes_of_arrays() -> None:
    texts = {name: path.read_text(encoding="utf-8") for name, path in find_modules().items()}
    assert not [each for name, text in texts.items() for each in without_shapes(text, name)]


@pytest.mark.parametrize(
    ("signature", "docstring", "says"),
    [
        ("x: Tensor", "Return the norm of ``x`` (..., n).", True),
        ("x: Tensor", "Return the norm of ``x`` (samples, sequence length).", True),
        ("x: Tensor", "Return the mean of ``x`` (n,).", True),
        ("x: Tensor", "Return the bytes of ``x``, of any shape.", True),
        ("x: Tensor", "Return the norm of ``x``.", False),
        ("x: Tensor", "Return the norm of ``x`` (of one layer, without the layer axis).", False),
        ("*x: Tensor", "Return the norm.", False),
        ("x: Sequence[Array]", "Return the norm.", False),
        ("x: LogicalTensor", "Return its name.", True),
    ],
)
def test_a_shape_that_is_missing_is_found(signature: str, docstring: str, says: bool) -> None:
    lines = (f"def norm({signature}) -> None:", f'    """{docstring}"""')
    text = "\n".join(("class Model:", *(f"    {line}" for line in lines)))
    assert without_shapes(text, "m") == ([] if says else ["m.Model.norm"])


def test_what_is_private_need_not_say_it() -> None:
    assert without_shapes("def _norm(x: Tensor) -> Tensor:\n    return x", "m") == []
    assert without_shapes("def norm() -> Tensor:\n    return x", "m") == ["m.norm"]
