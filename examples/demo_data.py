"""Corpora and propositions to train a tiny model on, and others to ask it about.

All is made of what every Python has.

    python examples/demo_data.py FOLDER

English are Python's own documentation topics and docstrings. Chinese is made up: sums in Chinese
numerals, since nothing Chinese of any length comes with Python. Propositions are sums, half of them
wrong, and comparisons of two numbers, which a tiny model can learn as a rule: none comes twice.
What is asked about afterwards, ``new-*.jsonl``, is more of the same. Everything is the same on
every machine with the same Python.
"""

import ast
import json
import random
import sys
import sysconfig
from collections.abc import Iterator
from itertools import islice, permutations
from pathlib import Path
from pydoc_data.topics import topics

DIGITS = "零一二三四五六七八九"
ENGLISH_BYTES = 1_200_000
CHINESE_TEXTS = 1_000
PROPOSITIONS = 2_000
NEW_TEXTS, NEW_PROPOSITIONS = 50, 300
TWO_DIGITS = range(10, 100)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


def english() -> Iterator[str]:
    """Yield documentation, about ENGLISH_BYTES of it."""
    yield from topics.values()
    size = sum(len(text) for text in topics.values())
    for text in docstrings("*.py"):
        if size < ENGLISH_BYTES:
            size += len(text)
            yield text


def docstrings(modules: str) -> Iterator[str]:
    """Yield the documentation in each of Python's own modules that match a pattern."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob(modules)):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documented = (node for node in ast.walk(tree) if isinstance(node, DOCUMENTED))
        if text := "\n\n".join(filter(None, map(ast.get_docstring, documented))):
            yield text


def chinese(chance: random.Random) -> Iterator[str]:
    """Yield texts of sums in words."""
    for _ in range(CHINESE_TEXTS):
        pairs = [(chance.randrange(100), chance.randrange(100)) for _ in range(12)]
        yield "".join(f"{numeral(a)}加{numeral(b)}等于{numeral(a + b)}。" for a, b in pairs)


def numeral(number: int) -> str:
    """Return a number below 1000 as it is read."""
    hundreds, tens, ones = number // 100, number // 10 % 10, number % 10
    text = f"{DIGITS[hundreds]}百" if hundreds else ""
    if tens:
        text += "十" if number < 20 else f"{DIGITS[tens]}十"
    elif hundreds and ones:
        text += DIGITS[0]
    return text + (DIGITS[ones] if ones or not number else "")


def propositions(chance: random.Random) -> Iterator[dict[str, object]]:
    """Yield sums and whether they are right."""
    for _ in range(PROPOSITIONS):
        a, b, right = chance.randrange(50), chance.randrange(50), chance.random() < 0.5
        told = a + b if right else a + b + chance.choice((-2, -1, 1, 2))
        yield {"text": f"{a} + {b} = {told}", "label": right}


def comparisons(chance: random.Random) -> Iterator[dict[str, object]]:
    """Yield comparisons of two different numbers, each once, and whether they are right."""
    pairs = list(permutations(TWO_DIGITS, 2))
    chance.shuffle(pairs)
    for a, b in pairs:
        yield {"text": f"{a} > {b}", "label": a > b}


def main() -> None:
    """Write the files into the folder that is named."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(1)
    compared = comparisons(random.Random(2))
    files = {
        "english.jsonl": ({"text": text} for text in english()),
        "chinese.jsonl": ({"text": text} for text in chinese(chance)),
        "propositions.jsonl": propositions(chance),
        "new-english.jsonl": ({"text": text} for text in docstrings("email/*.py")),
        "new-chinese.jsonl": islice(({"text": text} for text in chinese(chance)), NEW_TEXTS),
        "new-propositions.jsonl": islice(propositions(chance), NEW_PROPOSITIONS),
        "comparisons.jsonl": islice(compared, PROPOSITIONS),
        "new-comparisons.jsonl": islice(compared, NEW_PROPOSITIONS),
    }
    for name, lines in files.items():
        with (folder / name).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


if __name__ == "__main__":
    main()
