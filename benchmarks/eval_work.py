"""Questions in the forms that evaluations ask them, made of plain text, for benchmarks and proofs.

No package brings the data of ARC, HellaSwag, MMLU, TruthfulQA or C-Eval. What a model computes
depends on their form alone: how long contexts are, how many questions share the examples in front
of them, how many choices there are and how long those are.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

Request = tuple[str, str]
"""A context and its continuation."""


class Text:
    """Sentences of the given files, drawn by seed."""

    def __init__(self, paths: Sequence[Path], seed: int = 0) -> None:
        self._words = " ".join(path.read_text(encoding="utf-8") for path in paths).split()
        self._random = random.Random(seed)

    def words(self, least: int, most: int) -> str:
        """Return so many words in a row."""
        count = self._random.randint(least, most)
        start = self._random.randrange(len(self._words) - count)
        return " ".join(self._words[start : start + count])

    def choice(self, count: int) -> int:
        """Return one of so many."""
        return self._random.randrange(count)


def lettered(text: Text, shots: int, subjects: int, items: int) -> Iterator[Request]:
    """Like MMLU and C-Eval: examples that a subject's questions share, a letter as the answer."""

    def question(answered: bool) -> str:
        choices = "".join(f"\n{letter}. {text.words(2, 12)}" for letter in "ABCD")
        answer = f" {'ABCD'[text.choice(4)]}\n\n" if answered else ""
        return f"{text.words(15, 60)}{choices}\nAnswer:{answer}"

    for _ in range(subjects):
        examples = text.words(8, 12) + "\n\n" + "".join(question(True) for _ in range(shots))
        for _ in range(items):
            context = examples + question(False)
            yield from ((context, f" {letter}") for letter in "ABCD")


def endings(
    text: Text, shots: int, items: int, question: tuple[int, int], ending: tuple[int, int]
) -> Iterator[Request]:
    """Like ARC, HellaSwag and TruthfulQA: examples drawn for each question, endings as answers."""
    for _ in range(items):
        examples = [f"{text.words(*question)} {text.words(*ending)}\n\n" for _ in range(shots)]
        context = "".join(examples) + text.words(*question)
        yield from ((context, f" {text.words(*ending)}") for _ in range(4))


def contexts(text: Text, items: int, least: int = 20, most: int = 300) -> Iterator[str]:
    """Contexts of many lengths, to go on with."""
    for _ in range(items):
        yield text.words(least, most)
