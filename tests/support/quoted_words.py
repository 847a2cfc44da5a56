"""Which words a module quotes: for rules on where a name may stand."""

import ast
import re
from collections.abc import Iterator

FOUND = re.compile(r"(?<!not )found $")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")

OF_OTHERS = {
    "Megatron-LM": """
        --ckpt-convert-format --ckpt-convert-save --ckpt-format --loader --model-type
        --mtp-num-layers --norm-epsilon --saver --use-checkpoint-args --use-megatron-fsdp
    """,
    "torchrun": "--nnodes --nproc-per-node --rdzv-backend --rdzv-endpoint --standalone",
    "srun": "--nodes --ntasks --ntasks-per-node",
    "pip": "--force-reinstall",
    "tensorboard": "--logdir",
    "zstd": "--long",
}
"""Options of other programs that a hint or a command names; they are the same everywhere."""

FOREIGN = {option for words in OF_OTHERS.values() for option in words.split()}


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
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id in ("Setting", "Pass"):
            yield from (name for name in node.args[:1] if isinstance(name, ast.Constant))


def literals(tree: ast.AST) -> Iterator[str]:
    """Every string of a module but docstrings, those of attributes included."""
    prose = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value


def spelled(text: str) -> set[str]:
    """The options that a module's strings spell."""
    return {option for string in literals(ast.parse(text)) for option in OPTION.findall(string)}


HELPERS = {"refuse", "_refuse", "_refused"}
"""Functions that make an error of a sentence."""


def said_in_strings(text: str) -> Iterator[str]:
    """Sentences of a module in which what was found or wanted is a part of a string."""
    tree = ast.parse(text)
    yield from (string for string in literals(tree) if ", wanted " in string)
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            before = [part.value for part in node.values[:-1] if isinstance(part, ast.Constant)]
            if any(FOUND.search(str(string)) for string in before):
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and refuses(node) and hides_what_was_found(node):
            yield ast.unparse(node)


def refuses(call: ast.Call) -> bool:
    """Whether a call makes an error, or raises one."""
    name = ast.unparse(call.func).rpartition(".")[2]
    return name in HELPERS or (name.endswith("Error") and name != "ValueError")


def hides_what_was_found(call: ast.Call) -> bool:
    """Whether something is wanted, and the value that was found is formatted into a string."""
    wanted = any(word.arg == "wanted" for word in call.keywords)
    texts = (
        each for each in call.args if isinstance(each, ast.JoinedStr | ast.Constant | ast.Call)
    )
    return wanted and isinstance(next(texts, None), ast.JoinedStr)
