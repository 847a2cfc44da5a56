"""Checking that a tokenizer gives back the text it was given.

A tokenizer may lose text without a word, and a model never sees what it lost. Characters without a
token become the unknown one or nothing; rules of normalization take some out. So text is encoded,
decoded, and compared. What does not come back is told apart:

* *lost* are characters that are in the text and in no form in what comes back;
* *changed* are those that come back as others that say the same, because the tokenizer normalizes
  on purpose: in lower case, without accents, in a compatible form (NFKC), with other white space.

Both are counts of characters, wherever they stand: what is moved or added, such as a space at the
start, is neither.
"""

import unicodedata
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

from flmgrow.trainer.data.tokenizer import Tokenizer, Tokens


class LostCharacters(NamedTuple):
    """How many characters of a text are lost and changed, and which is the first of each."""

    lost: int = 0
    changed: int = 0
    first_lost: str = ""
    first_changed: str = ""


def missing(text: str, tokens: Tokens, tokenizer: Tokenizer) -> LostCharacters:
    """Return what of ``text`` does not come back from its ``tokens``."""
    if tokenizer.exact or (back := tokenizer.decode(tokens)) == text:
        return LostCharacters()
    before, after = Counter(text), Counter(back)
    gone = before - after
    without = _senses(before) - _senses(after)
    lost: Counter[str] = Counter()
    for character, count in gone.items():
        sense = _sense(character)
        lost[character] = min(count, max((without[part] for part in sense), default=0))
        without -= Counter(dict.fromkeys(sense, lost[character]))
    lost = +lost
    changed = gone - lost
    first_lost = next((c for c in text if c in lost), "")
    return LostCharacters(
        lost.total(), changed.total(), first_lost, next((c for c in text if c in changed), "")
    )


def named(character: str) -> str:
    """Return a character as messages say it."""
    shown = f" {character}" if character.isprintable() and not character.isspace() else ""
    return f"U+{ord(character):04X}{shown}"


def _senses(characters: Counter[str]) -> Counter[str]:
    """Return what characters say, counted."""
    found: Counter[str] = Counter()
    for character, count in characters.items():
        for part in _sense(character):
            found[part] += count
    return found


@lru_cache(maxsize=1 << 16)
def _sense(character: str) -> str:
    """Return what a character says, without what tokenizers change on purpose."""
    plain = unicodedata.normalize("NFKD", character.casefold()).casefold()
    return "".join(c for c in plain if not (c.isspace() or unicodedata.category(c) == "Mn"))
