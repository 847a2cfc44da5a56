"""Generated items: unique, balanced, the same everywhere, and nothing said twice."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iq_solvers import SOLVERS, block

from flmgrow.evaluation.tasks.iq.generators import GENERATORS
from flmgrow.evaluation.tasks.iq.interference import FILLERS, PLACES
from flmgrow.evaluation.tasks.iq.items import Item, Made, make
from flmgrow.evaluation.tasks.iq.marking import counted, exact, numbers, plain
from flmgrow.evaluation.tasks.iq.patterns import ENDS, SLICES
from flmgrow.evaluation.tasks.iq.rules import DIGITS

TASKS = sorted(GENERATORS)
DIGESTS = json.loads((Path(__file__).parent / "iq_digests.json").read_text())
LARGE = ("multi_key",)
COUNT = 36
"""As many items as need every turn to have come equally often, but for the steps of counting."""

seeds = st.integers(-(2**63), 2**63)
ALL_DIGESTS = """
import json, sys
from flmgrow.evaluation.tasks.digest import digest_of
from flmgrow.evaluation.tasks.iq.generators import GENERATORS
from flmgrow.evaluation.tasks.iq.items import documents, make
for name, generator in GENERATORS.items():
    made = make(generator, 0, 50, 2)
    print(json.dumps([name, str(generator.version), digest_of(*documents(made).values())]))
"""


def drawn(name: str, seed: int, count: int = COUNT) -> list[Made]:
    return make(GENERATORS[name], seed, count, 0 if name in LARGE else 8)


def told(made: list[Made]) -> list[Item]:
    return [one for each in made for one in (each.item, *each.examples)]


def test_items_are_the_same_everywhere_and_versions_are_raised() -> None:
    """In a process whose strings hash to other numbers, as on another machine.

    If it fails after a generator was changed: raise its version, and note the digest beside it.
    """
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run(
        [sys.executable, "-c", ALL_DIGESTS],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {name: {version: digest} for name, version, digest in found} == {
        name: {version: versions.get(version)}
        for (name, version, _), versions in ((f, DIGESTS[f[0]]) for f in found)
    }
    assert len(found) == len(GENERATORS)


@pytest.mark.parametrize("name", TASKS)
@settings(max_examples=5, deadline=None)
@given(seed=seeds)
def test_no_prompt_comes_twice(name: str, seed: int) -> None:
    prompts = [item.prompt for item in told(drawn(name, seed))]
    assert len({*prompts}) == len(prompts)


@pytest.mark.parametrize("name", TASKS)
@settings(max_examples=5, deadline=None)
@given(seed=seeds, count=st.integers(1, COUNT), examples=st.integers(0, 8))
def test_an_item_depends_on_nothing_but_seed_and_number(
    name: str, seed: int, count: int, examples: int
) -> None:
    whole, part = make(GENERATORS[name], seed, COUNT, 0), make(GENERATORS[name], seed, count, 0)
    assert part == whole[:count]
    with_examples = make(GENERATORS[name], seed, 3, examples)
    assert [each.item for each in with_examples] == [each.item for each in whole[:3]]


@pytest.mark.parametrize("name", TASKS)
@settings(max_examples=5, deadline=None)
@given(seed=seeds)
def test_every_item_and_example_is_right(name: str, seed: int) -> None:
    if name in ("head_tail", "full_repeating", "head_slicing"):
        made = [(with_others(each, i), one) for each in drawn(name, seed, 9)
                for i, one in enumerate((each.item, *each.examples))]  # fmt: skip
    else:
        made = [(item.prompt, item) for item in told(drawn(name, seed, 9))]
    for prompt, item in made:
        assert SOLVERS[name](prompt).strip() == item.answer


def with_others(made: Made, left_out: int) -> str:
    """One of an item and its examples, after the others with their answers."""
    series = [made.item, *made.examples]
    others = [f"{one.prompt} {one.answer}\n\n" for one in series if one is not series[left_out]]
    return "".join(others) + series[left_out].prompt


@settings(max_examples=5, deadline=None)
@given(seed=seeds)
def test_turns_come_equally_often(seed: int) -> None:
    items = {name: [each.item for each in make(GENERATORS[name], seed, COUNT, 0)] for name in TASKS}
    for name in ("one_fact", "two_facts"):
        assert equal([item.answer for item in items[name]], PLACES)
    keys = [
        (len(re.findall(r"Pass key \d is \d", item.prompt)), item.prompt.rstrip()[-4])
        for item in items["multi_key"]
    ]
    assert Counter(keys) == {(1, "1"): 12, (2, "1"): 6, (2, "2"): 6} | {
        (3, asked): 4 for asked in "123"
    }
    sentences = [item.prompt.count(".") - 2 * count for item, (count, _) in zip(
        items["multi_key"], keys, strict=True)]  # fmt: skip
    assert equal([number - 2 for number in sentences], FILLERS)
    assert equal([len(item.answer) for item in items["head_slicing"]], SLICES)
    heads = [len(i.answer.partition(i.prompt[7:-8])[0]) for i in items["head_tail"]]
    assert equal(heads, ENDS)
    for name in ("counting_en", "counting_zh"):
        assert equal([len(re.findall(r"\d+", item.prompt)[0]) for item in items[name]], DIGITS)
    assert equal([uses(item) for item in items["replace_word"]], (1, 2))


def equal(values: Sequence[object], wanted: Iterable[object]) -> bool:
    """Whether each value that is wanted is there as often as any other."""
    counts = Counter(values)
    return {*counts} == {*wanted} and len({*counts.values()}) == 1


def uses(item: Item) -> int:
    """How often the word that is to be replaced stands in the text."""
    word = item.prompt.split('"')[1]
    return len(re.findall(rf"\b{word}\b", item.prompt.partition("Text: ")[2]))


@pytest.mark.parametrize("name", ["replace_lowercase", "replace_word", "head_tail",
                                  "full_repeating"])  # fmt: skip
@settings(max_examples=5, deadline=None)
@given(seed=seeds)
def test_examples_do_not_hold_the_answer(name: str, seed: int) -> None:
    for each in drawn(name, seed):
        asked = block(each.item.prompt).split("\n")[-2].partition(": ")[2]
        text = "\n\n".join(f"{one.prompt} {one.answer}" for one in each.examples)
        assert each.item.answer not in text
        assert f" {asked}\n" not in text


@settings(max_examples=5, deadline=None)
@given(seed=seeds)
def test_nothing_but_the_word_itself_is_replaced(seed: int) -> None:
    for item in told(drawn("replace_word", seed)):
        word, other = re.findall(r'"(\w+)"', item.prompt)
        text = item.prompt.partition("Text: ")[2]
        assert len(re.findall(word, text)) == len(re.findall(rf"\b{word}\b", text))
        assert other not in text
        assert word not in item.answer


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (" attic", True), ("attic.", True), (" attic\n\nBen went", True), ("the attic", False),
        ("", False), ("attics", False), ("attic cellar", False), ("\nattic", True),
    ],
)  # fmt: skip
def test_an_answer_is_its_first_line(answer: str, right: bool) -> None:
    assert exact({"answer": "attic"}, [answer]) == {"exact_match": float(right)}
    assert plain("床。 ") == "床"


@pytest.mark.parametrize(
    ("answer", "right", "begins"),
    [
        (" 13, 14, 15", 1, 1), ("13，14、15。然后", 1, 1), (" 13, 14, 15. Then", 1, 1),
        (" 13, 14, 15, and so on", 1, 1), (" 13, 14, 15, 16", 0, 1), (" 13, 14", 0, 0),
        (" 13 14 15", 0, 0), ("", 0, 0), ("so: 13, 14, 15", 0, 0), ("13, 14, 155", 0, 0),
    ],
)  # fmt: skip
def test_a_count_is_the_numbers_in_a_row(answer: str, right: int, begins: int) -> None:
    marks = {"exact_match": right, "prefix_match": begins}
    assert counted({"answer": "13, 14, 15"}, [answer]) == marks
    assert numbers("none") == []
