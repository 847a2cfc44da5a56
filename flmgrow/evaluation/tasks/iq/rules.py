"""Rule understanding: go on counting, replace capitals, replace a word.

The paper has numbers to go on with, without an example, in English and Chinese; and texts in which
letters or a word are to be replaced, after four examples. The counting prompt is the paper's; the
others, and the sentences, are made here.
"""

from collections.abc import Iterator

from flmgrow.evaluation.tasks.draws import Draws
from flmgrow.evaluation.tasks.iq.items import Item, Series
from flmgrow.evaluation.tasks.iq.words import THINGS, sentence

DIGITS = (3, 4, 5)
"""The lengths of the numbers to begin with."""
STEPS = tuple(range(10, 26))
"""How far there is to count: every carry of the last digit is on the way."""
GIVEN = 3
"""How many numbers the prompt has."""


def counting_en(series: Series) -> Iterator[Item]:
    """Yield beginnings to go on counting from, in English."""
    for first, last, given, wanted in _counts(series, ", "):
        yield Item(f"Let's count from {first} to {last}: {given},", wanted)


def counting_zh(series: Series) -> Iterator[Item]:
    """Yield beginnings to go on counting from, in Chinese."""
    for first, last, given, wanted in _counts(series, "，"):
        yield Item(f"让我们从{first}数到{last}：{given}，", wanted)


def _counts(series: Series, comma: str) -> Iterator[tuple[int, int, str, str]]:
    """Yield the first and last number, the first ones as text, and those that are wanted."""
    digits, steps = series.turn("digits", DIGITS), series.turn("steps", STEPS)
    while True:
        first = series.between(10 ** (digits - 1), 10**digits - 1 - steps)
        numbers = [*map(str, range(first, first + steps + 1))]
        yield first, first + steps, comma.join(numbers[:GIVEN]), comma.join(numbers[GIVEN:])
        digits, steps = series.choice(DIGITS), series.choice(STEPS)


def replace_lowercase(series: Series) -> Iterator[Item]:
    """Yield texts some of whose words are in capitals."""
    while True:
        words = sentence(series).text.split(" ")
        capitals = {*series.sample(range(len(words)), series.between(2, len(words) - 2))}
        text = " ".join(w.upper() if i in capitals else w for i, w in enumerate(words))
        yield Item(
            f"Replace every capital letter in the text by the same letter in lower case.\n"
            f"Text: {text}\nResult:",
            text.lower(),
        )


def replace_word(series: Series) -> Iterator[Item]:
    """Yield texts with a word to replace, which stands there once or twice, and its replacement."""
    times = series.turn("times", (1, 2))
    while True:
        yield _replacement(series, times)
        times = series.between(1, 2)


def _replacement(draws: Draws, times: int) -> Item:
    word, replacement, other = draws.sample(THINGS, 3)
    things = draws.shuffled([word] * times + [other] * (2 - times))
    text = " ".join(sentence(draws, thing).text for thing in things)
    return Item(
        f'Replace the word "{word}" in the text by the word "{replacement}".\n'
        f"Text: {text}\nResult:",
        text.replace(word, replacement),
    )
