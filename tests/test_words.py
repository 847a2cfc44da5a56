"""What things are called: a setting as its place calls it, a type by a name of its own.

Each place calls settings by its own names, and only the command line knows options. Docstrings name
errors in a section of theirs, and say of arrays what signatures cannot: shapes, by names of axes.
"""

import ast
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import pytest
import typer
from quoted_words import FOREIGN, settings, spelled
from repository import find_modules

from flmgrow import api, errors, foresight, given, models, scores
from flmgrow.cli.app import app
from flmgrow.generation.choosing import Choice
from flmgrow.text import COMMAND_LINE, PYTHON
from flmgrow.trainer.stage.keys import STAGE_FILE

PARTS = ("what", "wanted", "hint", "message")

SEVERAL_TIMES = {
    "Group",
    "Numbers",
    "PathLike",
    "Progress",
    "Rows",
    "Share",
    "Told",
}
"""Types that are written out in several modules, and are the same sort of thing in all."""

ARRAY = re.compile(r"\b(NDArray|ndarray|Tensor|Array|IntArray|FloatArray)\b")
_WORDS = r"(?:\.\.\.|[\w'/*+]+(?: [\w'/*+]+){0,2})"
SHAPE = re.compile(rf"\({_WORDS},(?:\s{_WORDS}(?:,\s{_WORDS})*)?\)|\bshapes?\b")
"""``(b, s, h)``, ``(n,)`` or ``(samples, sequence length)``; or a word on the shape, as "of any".
"""


@cache
def modules() -> Mapping[str, str]:
    """Every module of the library but those of the command line, with its text."""
    return {
        name: path.read_text(encoding="utf-8")
        for name, path in find_modules().items()
        if not f"{name}.".startswith("flmgrow.cli.")
    }


@cache
def options() -> frozenset[str]:
    """Every option that any command has."""
    group: Any = typer.main.get_command(app)
    found: set[str] = set()
    waiting = [group]
    while waiting:
        command = waiting.pop()
        with typer.Context(command) as context:
            for parameter in command.get_params(context):
                found |= {*parameter.opts, *parameter.secondary_opts}
            names = command.list_commands(context) if hasattr(command, "list_commands") else ()
            waiting += [command.get_command(context, name) for name in names]
    return frozenset(option for option in found if option.startswith("--"))


def arguments() -> set[str]:
    """Every argument that a function of the public face takes, or a choice of tokens."""
    kinds = [kind for kind in vars(given).values() if hasattr(kind, "__annotations__")]
    functions: list[Any] = [
        function
        for face in (api, foresight, models, scores)
        for name, function in vars(face).items()
        if inspect.isfunction(function) and function.__module__ == face.__name__ and name[0] != "_"
    ]
    signatures = [set(inspect.signature(each).parameters) for each in [*functions, Choice]]
    return set().union(*signatures, *(kind.__annotations__ for kind in kinds))


@cache
def named() -> frozenset[str]:
    """The settings that texts of the library speak of by name."""
    trees = [ast.parse(text) for text in modules().values()]
    return frozenset(str(name.value) for tree in trees for name in settings(tree))


def test_options_of_others_are_none_of_ours_and_needed() -> None:
    assert len(options()) > 60
    assert not FOREIGN & options()
    assert {option for text in modules().values() for option in spelled(text)} >= FOREIGN


def formatted(text: str) -> set[str]:
    """What f-strings make of flmgrow's own errors where they are caught: parts would be lost."""
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
    found = set()
    for handler in ast.walk(ast.parse(text)):
        if not isinstance(handler, ast.ExceptHandler) or handler.type is None:
            continue
        caught = {each.id for each in ast.walk(handler.type) if isinstance(each, ast.Name)}
        if not caught & kinds:
            continue
        names = {str(handler.name), *(f"{handler.name}.{part}" for part in PARTS)}
        for node in ast.walk(handler):
            if isinstance(node, ast.FormattedValue) and ast.unparse(node.value) in names:
                found.add(ast.unparse(node.value))
    return found


def test_no_text_of_an_error_is_formatted() -> None:
    assert not {name: words for name, text in modules().items() if (words := formatted(text))}


@pytest.mark.parametrize("what", ["error", "error.hint", "error.what", "error.message"])
def test_a_text_that_is_formatted_is_found(what: str) -> None:
    code = "try:\n    pass\nexcept {}:\n    print(f'it: {{{}}}')"
    assert formatted(code.format("(KeyError, UsageError) as error", what)) == {what}
    assert formatted(code.format("KeyError as error", what)) == set()


def test_every_setting_that_is_named_exists() -> None:
    assert len(named()) > 40
    there = options()
    assert not {
        name
        for name in named()
        if COMMAND_LINE.name(name) not in there and not STAGE_FILE.has(name)
    }


def test_python_calls_its_arguments_by_name_and_other_settings_as_commands_do() -> None:
    stages_alone = {name for name in named() if COMMAND_LINE.name(name) not in options()}
    assert {name for name in named() if PYTHON.has(name)} - stages_alone <= arguments()
    assert not PYTHON.ONLY_COMMANDS & arguments()
    assert named() >= PYTHON.ONLY_COMMANDS


def named_types(text: str) -> Iterator[str]:
    """The classes of a module, and its names for types."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign) and not isinstance(node.value, ast.Call):
            names = (each.id for each in node.targets if isinstance(each, ast.Name))
            yield from (name for name in names if re.fullmatch(r"[A-Z][A-Za-z]*[a-z]", name))


def in_two_places(found: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """The public names that several modules have, and these."""
    places: dict[str, list[str]] = {}
    for module, names in found.items():
        for name in names:
            places.setdefault(name, []).append(module)
    return {
        name: modules
        for name, modules in places.items()
        if len(modules) > 1 and not name.startswith("_") and name not in SEVERAL_TIMES
    }


def test_a_type_has_a_name_of_its_own() -> None:
    """But for options: each command has its own of the same name, which no other module sees."""
    assert not in_two_places({name: named_types(text) for name, text in modules().items()})


def test_a_name_for_two_types_is_found() -> None:
    text = "class Plan: pass\nclass _File: pass\nTold = int\nRow = list[int]\nLONG = 3\nT = X()\n"
    found = {"a": named_types(text), "b": named_types(text), "c": ["Column"]}
    assert in_two_places(found) == {"Plan": ["a", "b"], "Row": ["a", "b"]}


def told_in_prose(text: str) -> Iterator[str]:
    """The docstrings of a module that name errors in a sentence, and not under ``Raises:``."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            found = ast.get_docstring(node) or ""
            if re.search(
                r"(^|[.!?:)\"`] |\n\n)Raises [^:]", re.sub(r"(?<!\n)\n *(?!\n)", " ", found)
            ):
                yield f"{getattr(node, 'name', 'the module')}: {found.splitlines()[0]}"


def test_errors_are_named_in_sections() -> None:
    """But for what exports carry: its text is part of what is written, and stays as it is."""
    found = {name: list(told_in_prose(path.read_text(encoding="utf-8")))
             for name, path in find_modules().items() if ".shipped." not in name}  # fmt: skip
    assert not {name: sentences for name, sentences in found.items() if sentences}


@pytest.mark.parametrize(
    ("docstring", "count"),
    [
        ("Return it. Raises OSError.", 1),
        ("Return it.\n\n    Raises OSError if not.\n    ", 1),
        ("Return it, long\n    as it is.\n    Raises OSError.\n    ", 1),
        ("Return it.\n\n    Raises:\n        OSError: If not.\n    ", 0),
        ("Raise OSError if not.", 0),
        ("Return what reading it raises.", 0),
    ],
)
def test_an_error_in_a_sentence_is_found(docstring: str, count: int) -> None:
    text = f'def f() -> None:\n    """{docstring}"""\n'
    assert len(list(told_in_prose(text))) == count


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
