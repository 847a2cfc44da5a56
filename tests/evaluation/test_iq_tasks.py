"""The IQ tasks through lm-eval: who solves them scores 1, who guesses scores chance."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
from sampling import first

pytest.importorskip("lm_eval")
from answering import evaluated, few_tasks
from iq_solvers import SOLVERS, guesser, one_too_far

from flmgrow.errors import UsageError
from flmgrow.evaluation.paper import FLM_101B, scores
from flmgrow.evaluation.tasks.iq.generators import GENERATORS

TASKS = sorted(GENERATORS)
FACTS = ("one_fact", "two_facts")
SHOTS = {
    "iq_counting_en": 0, "iq_counting_zh": 0, "iq_replace_lowercase": 4, "iq_replace_word": 4,
    "iq_head_tail": 5, "iq_full_repeating": 5, "iq_head_slicing": 5, "iq_multi_key": 0,
    "iq_one_fact": 3, "iq_two_facts": 3,
}  # fmt: skip


@cache
def solved(seed: int) -> dict[str, Any]:
    return evaluated(told_apart(SOLVERS), *(f"iq_{name}" for name in TASKS), seed=seed)


def told_apart(answers: Mapping[str, Any]) -> Any:
    """Who answers each task in its own way; tasks are told apart by what a prompt speaks of."""
    marks = {
        "Let's count": "counting_en", "让我们": "counting_zh", "capital": "replace_lowercase",
        "by the word": "replace_word", "Input:": "head_tail", "pass key": "multi_key",
        "Where is the": "two_facts", "Where is": "one_fact",
    }  # fmt: skip

    def answer(prompt: str) -> str:
        return str(next(answers[name] for mark, name in marks.items() if mark in prompt)(prompt))

    return answer


@pytest.mark.parametrize("name", TASKS)
def test_who_solves_them_scores_one(name: str) -> None:
    results = solved(1)
    assert results["results"][f"iq_{name}"]["exact_match,none"] == 1


@pytest.mark.parametrize("name", first(4, TASKS))
def test_who_guesses_scores_chance(name: str) -> None:
    guess, chance = guesser(0)[name]
    assert GENERATORS[name].chance == pytest.approx(chance)
    results = evaluated(guess, f"iq_{name}", seed=1, limit=300 if chance else 20)
    count = results["n-samples"][f"iq_{name}"]["effective"]
    tolerance = 4 * (chance * (1 - chance) / count) ** 0.5
    found = results["results"][f"iq_{name}"]["exact_match,none"]
    assert found == pytest.approx(chance, abs=tolerance)


def test_a_key_may_be_followed_by_what_follows_it_in_the_text() -> None:
    def goes_on(prompt: str) -> str:
        return f"{SOLVERS['multi_key'](prompt)}. Remember it. The old farmer sells the map."

    found = evaluated(goes_on, "iq_multi_key", seed=1, limit=5)["results"]["iq_multi_key"]
    assert found["exact_match,none"] == 1


def test_who_counts_on_and_on_begins_right() -> None:
    found = evaluated(one_too_far, "iq_counting_en", seed=1, limit=5)["results"]["iq_counting_en"]
    assert (found["exact_match,none"], found["prefix_match,none"]) == (0, 1)


@pytest.mark.parametrize("name", FACTS)
@pytest.mark.parametrize("shot", [0, -1])
def test_answers_of_examples_are_no_help(name: str, shot: int) -> None:
    def from_example(prompt: str) -> str:
        return str(re.findall(r"Answer:( \w+)", prompt)[shot])

    found = evaluated(from_example, f"iq_{name}", seed=1)["results"][f"iq_{name}"]
    assert found["exact_match,none"] == pytest.approx(1 / 6, abs=4 * (5 / 36 / 300) ** 0.5)


def test_sizes_and_shots_are_those_of_the_paper() -> None:
    results = solved(1)
    sizes = {name: count["effective"] for name, count in results["n-samples"].items()}
    theirs = scores(FLM_101B)
    assert sizes["iq_counting_en"] + sizes["iq_counting_zh"] == 300
    assert all(sizes[n] == theirs[n].items for n in sizes if n != "iq_counting_zh")
    assert results["n-shot"] == SHOTS


def test_results_tell_seed_version_and_digest() -> None:
    one, other = (
        solved(1),
        evaluated(lambda _: "", *(f"iq_{name}" for name in TASKS), seed=2, limit=1),
    )
    for name in TASKS:
        first, second = (r["configs"][f"iq_{name}"]["metadata"] for r in (one, other))
        assert (first["seed"], second["seed"]) == (1, 2)
        assert first["version"] == one["versions"][f"iq_{name}"] == GENERATORS[name].version
        assert first["digest"] != second["digest"]
        assert re.fullmatch("sha256:[0-9a-f]{64}", first["digest"])


def test_groups_have_the_papers_averages() -> None:
    """Of the three tasks in a table, each counts as much, however many items it has."""
    answers = {**SOLVERS, "counting_en": lambda _: ""}
    results = evaluated(told_apart(answers), "iq_rules", limit=3)["results"]
    assert results["iq_rules"]["exact_match,none"] == pytest.approx(2 / 3)
    assert {"iq_counting_en", "iq_replace_lowercase", "iq_replace_word"} < set(results)


def test_more_shots_than_there_are_examples_are_refused() -> None:
    assert evaluated(SOLVERS["head_tail"], "iq_head_tail", num_fewshot=8, limit=2)
    with pytest.raises(UsageError, match="shots=9: an item has 8 examples at most"):
        evaluated(SOLVERS["head_tail"], "iq_head_tail", num_fewshot=9, limit=2)


@pytest.mark.parametrize("seed", ["7", 7.0, None, True])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    """Or "7" would draw other items than 7 does."""
    with pytest.raises(UsageError, match=r"iq_head_tail: seed is .*, wanted a whole number"):
        few_tasks(seed, None, None).load(["iq_head_tail"])


def test_examples_are_an_items_own() -> None:
    """Prompts of two items share no example, and no test item is one."""
    (task,) = few_tasks(1, None, None).load(["iq_head_tail"])["tasks"].values()
    one, other = (task.fewshot_context(task.task_docs[i], 5) for i in (0, 1))
    assert not {*one.split("\n\n")} & {*other.split("\n\n")}
