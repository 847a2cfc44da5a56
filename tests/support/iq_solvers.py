"""Answers to the IQ tasks out of a prompt's text alone: right ones, and guesses."""

import re
from collections.abc import Callable, Mapping
from random import Random

COMMA = "，"
PLACES = ("attic", "cellar", "garden", "kitchen", "library", "office")


def count_on(prompt: str) -> str:
    first, last = map(int, re.findall(r"\d+", prompt)[:2])
    chinese = COMMA in prompt
    numbers = [str(number) for number in range(first + 3, last + 1)]
    return COMMA.join(numbers) if chinese else " " + ", ".join(numbers)


def block(prompt: str) -> str:
    """What is asked, without the examples."""
    return prompt.rpartition("\n\n")[2]


def text_of(prompt: str) -> str:
    return block(prompt).partition("\nText: ")[2].partition("\nResult:")[0]


def lowered(prompt: str) -> str:
    return " " + "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in text_of(prompt))


def replaced(prompt: str) -> str:
    word, other = re.findall(r'"(\w+)"', block(prompt))
    return " " + re.sub(rf"\b{word}\b", other, text_of(prompt))


def shown(prompt: str) -> list[tuple[str, str]]:
    return re.findall(r"Input: (\w+)\nOutput: (\w+)", prompt)


def asked(prompt: str) -> str:
    return prompt.rpartition("Input: ")[2].partition("\n")[0]


def pattern(prompt: str) -> str:
    """What the examples have in common, of the patterns that there are."""
    given, letters = shown(prompt), asked(prompt)
    if all(output == letters * 2 for letters, output in given):
        return f" {letters * 2}"
    if all(letters.startswith(output) for letters, output in given):
        (count,) = {len(output) for _, output in given}
        return f" {letters[:count]}"
    ((head, tail),) = {(*output.split(letters, 1),) for letters, output in given}
    return f" {head}{letters}{tail}"


def key(prompt: str) -> str:
    (number,) = re.findall(r"What is pass key (\d)", prompt)
    (found,) = re.findall(rf"Pass key {number} is (\d+)\.", prompt)
    return f" {found}"


def place(prompt: str) -> str:
    """Where a person or an object is when the story ends."""
    story = block(prompt)
    persons: dict[str, str] = {}
    objects: dict[str, tuple[str, str]] = {}
    for person, verb, what in re.findall(r"(\w+) ([\w ]+?) the (\w+)\.", story):
        if what in PLACES:
            persons[person] = what
        elif verb in ("took", "picked up", "grabbed"):
            objects[what] = ("with", person)
        else:
            objects[what] = ("at", persons[person])
    name = re.findall(r"Where is (?:the )?(\w+)\?", story)[0]
    how, where = objects.get(name, ("with", name))
    return " " + (persons[where] if how == "with" else where)


SOLVERS: Mapping[str, Callable[[str], str]] = {
    "counting_en": count_on,
    "counting_zh": count_on,
    "replace_lowercase": lowered,
    "replace_word": replaced,
    "head_tail": pattern,
    "full_repeating": pattern,
    "head_slicing": pattern,
    "multi_key": key,
    "one_fact": place,
    "two_facts": place,
}


def one_too_far(prompt: str) -> str:
    right = count_on(prompt)
    comma = COMMA if COMMA in prompt else ", "
    return f"{right}{comma}{int(re.findall(r'[0-9]+', right)[-1]) + 1}"


def guesser(seed: int) -> Mapping[str, tuple[Callable[[str], str], float]]:
    """For each task, who knows what answers look like and no more, and how often that is right."""
    chance = Random(seed)

    def any_place(_: str) -> str:
        return f" {chance.choice(PLACES)}"

    def any_key(prompt: str) -> str:
        return f" {chance.choice(re.findall(r'Pass key [0-9] is ([0-9]+)[.]', prompt))}"

    def any_slice(prompt: str) -> str:
        return " " + asked(prompt)[: chance.randint(1, 3)]

    def copy(prompt: str) -> str:
        return " " + (text_of(prompt) or asked(prompt))

    return {
        "counting_en": (one_too_far, 0),
        "counting_zh": (one_too_far, 0),
        "replace_lowercase": (copy, 0),
        "replace_word": (copy, 0),
        "head_tail": (copy, 0),
        "full_repeating": (copy, 0),
        "head_slicing": (any_slice, 1 / 3),
        "multi_key": (any_key, (1 + 1 / 2 + 1 / 3) / 3),
        "one_fact": (any_place, 1 / 6),
        "two_facts": (any_place, 1 / 6),
    }
