"""When an answer is right.

What of an answer the paper counted is not known. Here it is the first line (tasks stop there),
without blanks around it and without a full stop at its end, which must be the wanted one; of a
list of numbers, those that stand there one after the other. So a list that goes on past its end is
wrong, and one that is followed by a sentence is right. As small models count on and on, and the
paper may not have minded, there is a second mark for a list that is right as far as it is wanted.
"""

import re
from collections.abc import Mapping, Sequence

_NUMBERS = re.compile(r"\s*\d+(?:\s*[,，、]\s*\d+)*")


def exact(doc: Mapping[str, str], results: Sequence[str]) -> dict[str, float]:
    """Return whether an answer is the wanted one, as lm-eval takes it."""
    return {"exact_match": float(plain(results[0]) == plain(doc["answer"]))}


def counted(doc: Mapping[str, str], results: Sequence[str]) -> dict[str, float]:
    """Return whether an answer is the wanted list of numbers, and whether it begins with it."""
    found, wanted = numbers(results[0]), numbers(doc["answer"])
    return {
        "exact_match": float(found == wanted),
        "prefix_match": float(found[: len(wanted)] == wanted),
    }


def plain(text: str) -> str:
    """Return the first line of a text as it is compared."""
    return text.strip().partition("\n")[0].strip().removesuffix(".").removesuffix("。").strip()


def numbers(text: str) -> list[int]:
    """Return the numbers that a text begins with."""
    found = _NUMBERS.match(text)
    return [*map(int, re.findall(r"\d+", found[0]))] if found else []
