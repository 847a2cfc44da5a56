"""Symbols in place of labels: only the examples tell which stands for what."""

import hashlib
import re
from collections import Counter
from dataclasses import astuple
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("lm_eval")
from answering import evaluated, few_tasks
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_sets import ROWS, mapped, rows, write_rows, write_sets

from flmgrow.errors import BadDataError, UsageError
from flmgrow.evaluation.paper import FLM_101B, GLM_130B, scores
from flmgrow.evaluation.tasks.iq.generators import GENERATORS
from flmgrow.evaluation.tasks.symbolic.mapping import LENT, ROUNDS, VERSION, choose, symbols

SUPERGLUE = ("iq_boolq", "iq_wic", "iq_rte", "iq_wsc")
CLUE = ("iq_afqmc", "iq_csl", "iq_ocnli", "iq_cluewsc")
SYMBOL = re.compile(r"<[A-Za-z0-9!#$%&*?@]{8}>")

seeds = st.integers(-(2**63), 2**63)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def solved(sets: Path) -> dict[str, Any]:
    return evaluated(mapped, "iq_superglue", "iq_clue", data=sets, seed=1)


@pytest.mark.parametrize("task", [*SUPERGLUE, *CLUE, "iq_superglue", "iq_clue"])
def test_who_learns_from_the_examples_scores_one(solved: dict[str, Any], task: str) -> None:
    assert solved["results"][task]["acc,none"] == 1
    assert solved["results"][task]["exact_match,none"] == 1


def test_sizes_shots_and_digests(solved: dict[str, Any]) -> None:
    shots = {task: 6 if task == "iq_ocnli" else 4 for task in (*SUPERGLUE, *CLUE)}
    sizes = {task: solved["n-samples"][task]["effective"] for task in shots}
    assert sizes == {t: 300 if t in ("iq_rte", "iq_ocnli") else 120 for t in shots}
    assert {task: solved["n-shot"][task] for task in shots} == shots
    told = [solved["configs"][task]["metadata"] for task in shots]
    assert all(one["seed"] == 1 and one["version"] == 1 for one in told)
    assert len({one["digest"] for one in told}) == 8


@pytest.mark.parametrize("task", ["iq_rte", "iq_ocnli"])
def test_who_guesses_scores_chance(sets: Path, task: str) -> None:
    random, classes = Random(0), 3 if task == "iq_ocnli" else 2

    def guess(prompt: str) -> str:
        symbol = random.choice(sorted({*SYMBOL.findall(prompt)}))
        return f" {symbol}" if task == "iq_rte" else symbol

    # Asked for each symbol in turn, who draws anew would be right less often.
    found = evaluated(once(guess), task, data=sets, seed=1)["results"][task]
    assert found["acc,none"] == pytest.approx(1 / classes, abs=4 * (0.25 / 300) ** 0.5)


def once(answer: Any) -> Any:
    """The same answer to the same prompt."""
    given: dict[str, str] = {}

    def remembered(prompt: str) -> str:
        if prompt not in given:
            given[prompt] = answer(prompt)
        return given[prompt]

    return remembered


def test_prompts_are_as_written(sets: Path) -> None:
    loaded = few_tasks(1, sets, None).load(["iq_superglue", "iq_clue"])["tasks"]
    for task in loaded.values():
        prompt = task.fewshot_context(task.task_docs[0], task.config.num_fewshot)
        *examples, asked = prompt.split("\n\n")
        shown = [SYMBOL.findall(example)[-1] for example in examples]
        assert {*Counter(shown).values()} == {2}  # of each class as many
        assert not SYMBOL.search(asked)
        space = " " if asked.endswith("Answer:") else ""
        assert all(
            f"{asked[-7:]}{space}{s}"[-10:] in e for s, e in zip(shown, examples, strict=True)
        )
        assert "{" not in prompt


def test_pronouns_are_marked(sets: Path) -> None:
    loaded = few_tasks(1, sets, None).load(["iq_wsc", "iq_cluewsc"])["tasks"]
    english, chinese = (loaded[name].doc_to_text(loaded[name].task_docs[0])
                        for name in ("iq_wsc", "iq_cluewsc"))  # fmt: skip
    assert "Eve when *she*, of" in english
    assert 'Does "*she*" stand for "Ann"?' in english
    assert re.search("小明说..，[*]他[*]走了", chinese)


def test_any_file_will_do(tmp_path: Path) -> None:
    """One file, from which some items are lent as examples; or a training split beside it."""
    content = rows(lambda text, label: {"words": text, "label": "xyz"[label]}, 160, 3)
    path = write_rows(tmp_path / "any.jsonl", content)
    results = evaluated(mapped, "symbolic", data=path, seed=1)
    assert results["results"]["symbolic"]["acc,none"] == 1
    assert results["n-samples"]["symbolic"]["effective"] == 160 - 3 * LENT
    assert results["configs"]["symbolic"]["dataset_kwargs"]["files"] == {"validation": str(path)}
    write_rows(tmp_path / "data/symbolic/validation.jsonl", content)
    write_rows(tmp_path / "data/symbolic/train.jsonl", content[:30])
    results = evaluated(mapped, "symbolic", data=tmp_path / "data", seed=1)
    assert results["results"]["symbolic"]["acc,none"] == 1
    assert results["n-samples"]["symbolic"]["effective"] == 160


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (rows(ROWS["clue/afqmc"], 116, 2), "symbolic: 100 items, wanted more than 100"),
        ([{"text": str(n), "label": n} for n in range(200)], "200 different labels, wanted 2 to"),
        ([{"text": str(n), "label": 1} for n in range(200)], "1 different labels"),
        ([{"text": str(n), "label": n > 2} for n in range(200)], "3 items labelled False to take"),
    ],
)  # fmt: skip
def test_sets_that_will_not_do_are_told(tmp_path: Path, content: Any, told: str) -> None:
    path = write_rows(tmp_path / "set.jsonl", content)
    with pytest.raises(UsageError, match=told):
        evaluated(mapped, "symbolic", data=path)


def test_a_set_without_labels_is_told(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "set.jsonl", [{"text": "a", "truth": 1}] * 200)
    with pytest.raises(BadDataError, match="symbolic: has text, truth, wanted the field label"):
        evaluated(mapped, "symbolic", data=path)


def test_items_without_a_label_are_left_out() -> None:
    labels = [None, "-", -1, 0, 1] * 60
    choice = choose(0, "task", labels, [0, 1] * ROUNDS)
    assert len(choice.tested) == 120
    assert {labels[place] for place in choice.tested} == {0, 1}


@given(seed=seeds, count=st.integers(2, 10))
def test_symbols_are_random_and_different(seed: int, count: int) -> None:
    found = symbols(seed, "task", count)
    assert len({*found}) == count
    assert all(SYMBOL.fullmatch(symbol) for symbol in found)
    assert found[:2] == symbols(seed, "task", 2)
    assert not {*found} & {*symbols(seed + 1, "task", count)}


@settings(max_examples=20, deadline=None)
@given(seed=seeds, labels=st.lists(st.sampled_from("abc"), min_size=160, max_size=400),
       split=st.booleans())  # fmt: skip
def test_examples_are_balanced_and_no_items(seed: int, labels: list[str], split: bool) -> None:
    labels = ["a", "b", "c"] * LENT + labels
    training = list("abc" * 20) if split else None
    choice = choose(seed, "task", labels, training)
    assert len({*choice.tested}) == len(choice.tested) <= 300
    for places in choice.shown:
        shown = [(training or labels)[place] for place in places]
        assert all({*shown[n : n + 3]} == {*"abc"} for n in range(0, 3 * ROUNDS, 3))
        assert len({*places}) == len(places)
    if not split:
        assert not {*choice.tested} & {place for places in choice.shown for place in places}


def test_the_choice_is_the_same_everywhere() -> None:
    """If it fails after a change: raise the version of what is made."""
    trained = (None, [0, 1, 2] * 30)
    made = [astuple(choose(0, "task", [0, 1, 2] * 110, training)) for training in trained]
    digest = hashlib.sha256(repr([made, symbols(0, "task", 3)]).encode()).hexdigest()[:32]
    assert (VERSION, digest) == (
        1,
        "124f1f3754436df753744bdd4dcab8c7",
    )


def test_the_whole_evaluation_is_one_group(sets: Path) -> None:
    loaded = few_tasks(1, sets, None).load(["iq"])
    assert {*loaded["tasks"]} == {*SUPERGLUE, *CLUE, *(f"iq_{name}" for name in GENERATORS)}
    in_tables = {task for model in (FLM_101B, GLM_130B) for task in scores(model)}
    assert {task for task in in_tables if task.startswith("iq_")} == {
        *loaded["tasks"]} - {"iq_counting_zh"}  # fmt: skip
