"""Scores of texts and tables of scores: small mathematics, and what a table shows."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flmgrow.errors import BadDataError, UsageError
from flmgrow.evaluation.bits_per_byte import standard_error, texts_in
from flmgrow.evaluation.paper_columns import paper_results
from flmgrow.evaluation.request import EvaluationRequest, asked_in
from flmgrow.evaluation.results import EvaluationResult, Facts
from flmgrow.evaluation.table import MOST_SHOWN, shown_tasks, table
from flmgrow.hub.evaluation import EvaluationScore

documents = st.lists(st.tuples(st.floats(-1e4, -1e-3), st.integers(1, 10**5)), min_size=2)


@given(documents, st.integers(2, 5))
def test_the_error_of_a_ratio(found: list[tuple[float, int]], times: int) -> None:
    """It is that of the mean where documents are equally long, and falls with their number."""
    error = standard_error(found)
    assert error is not None
    more = standard_error(found * times)
    count = len(found)
    factor = math.sqrt((count - 1) / (times * count - 1))
    assert more == pytest.approx(error * factor, rel=1e-6, abs=1e-12)
    equal = [(likelihood, 100) for likelihood, _ in found]
    bits = [-likelihood / math.log(2) / 100 for likelihood, _ in found]
    mean = sum(bits) / count
    variance = sum((each - mean) ** 2 for each in bits) / (count - 1)
    assert standard_error(equal) == pytest.approx(math.sqrt(variance / count), rel=1e-6, abs=1e-9)


def test_one_document_has_no_error() -> None:
    assert standard_error([(-3.0, 5)]) is None


def test_texts_are_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": ""}\n{"text": "two"}\n')
    (tmp_path / "b.jsonl").write_text('{"txt": "one"}\n')
    (tmp_path / "c.txt").write_text("")
    assert texts_in(tmp_path / "a.txt") == ["one\n\ntwo"]
    assert texts_in(tmp_path / "a.jsonl") == ["one", "two"]
    for name in ("b.jsonl", "c.txt"):
        with pytest.raises(BadDataError, match=name):
            texts_in(tmp_path / name)


def test_tasks_are_asked_for_by_name_and_file(tmp_path: Path) -> None:
    text = tmp_path / "wiki.en.txt"
    text.write_text("x")
    found = asked_in([f"iq, bits-per-byte:{text}", "c-eval"])
    assert [each.task for each in found] == ["iq", "bits-per-byte-wiki", "c-eval"]
    said = EvaluationRequest(found).to_json()
    text.write_text("y")
    assert EvaluationRequest(found).to_json() != said
    data = tmp_path / "data" / "arc"
    data.mkdir(parents=True)
    (data / "test.jsonl").write_text("{}")
    said = EvaluationRequest(found, data.parent).to_json()
    moved = shutil.copytree(data.parent, tmp_path / "elsewhere")
    assert EvaluationRequest(found, moved).to_json() == said
    (data / "test.jsonl").write_text("[]")
    assert EvaluationRequest(found, data.parent).to_json() != said
    for words in (["iq,iq"], ["bits-per-byte"], [","], ["bits-per-byte:nowhere.txt"]):
        with pytest.raises(UsageError):
            asked_in(words)


def scored(name: str, *scores: EvaluationScore, **groups: list[str]) -> EvaluationResult:
    return EvaluationResult(name, scores, {score.task: 3 for score in scores}, groups)


def test_a_table_has_a_column_for_each_checkpoint() -> None:
    small = scored(
        "small", EvaluationScore("arc", "acc", 0.25, 0.125), EvaluationScore("arc", "acc_norm", 0.5)
    )
    large = scored("large", EvaluationScore("arc", "acc", 0.75))
    other = scored("paper", EvaluationScore("arc", "", 0.4), EvaluationScore("other", "acc", 1.0))
    small = EvaluationResult(
        small.name, small.scores, small.shots, {}, Facts("small", 10, tokens=1500)
    )
    lines = table([small, large], [other]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["task", "metric", "shots", "small", "large", "paper"]
    assert cells[2:] == [
        ["parameters", "", "", "10", "-", "-"],
        ["tokens read", "", "", "1,500", "-", "-"],
        ["arc", "acc", "3", "0.2500 ± 0.1250", "0.7500", "0.4000"],
        ["arc", "acc_norm", "3", "0.5000", "-", "-"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_what_a_guesser_gets_right_stands_beside_the_scores() -> None:
    """Of the tasks that say it; without any, there is no such column."""
    told = replace(
        scored(
            "small", EvaluationScore("symbolic", "acc", 0.5), EvaluationScore("arc", "acc", 0.25)
        ),
        chances={"symbolic": 0.513},
    )
    lines = table([told, scored("large", EvaluationScore("symbolic", "acc", 0.75))]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["task", "metric", "shots", "chance", "small", "large"]
    assert cells[2:] == [
        ["symbolic", "acc", "3", "0.51", "0.5000", "0.7500"],
        ["arc", "acc", "3", "", "0.2500", "-"],
    ]


def test_tasks_of_a_large_group_are_left_out() -> None:
    names = [f"t{number}" for number in range(MOST_SHOWN + 1)]
    scores = [EvaluationScore(name, "acc", 0.5) for name in names]
    whole = scored("x", *scores, EvaluationScore("all", "acc", 0.5), all=names)
    assert shown_tasks([whole]) == ["all"]
    few = scored("x", *scores, EvaluationScore("all", "acc", 0.5), all=names[:MOST_SHOWN])
    assert shown_tasks([few]) == ["all", *names]
    nameless = scored("x", *scores, all=names)
    assert shown_tasks([nameless]) == names


def test_the_paper_stands_beside() -> None:
    beside = paper_results()
    scores = (
        EvaluationScore("mmlu", "acc", 0.1),
        EvaluationScore("hellaswag", "acc", 0.2),
        EvaluationScore("hellaswag", "acc_norm", 0.3),
        EvaluationScore("iq_wsc", "acc", 0.4),
        EvaluationScore("iq_wsc", "exact_match", 0.4),
    )
    lines = table([scored("x", *scores)], beside)
    rows = {tuple(line.split()[1:4:2]): line.split()[-2] for line in lines.splitlines()}
    assert rows["mmlu", "acc"] == "0.2830"
    assert rows["hellaswag", "acc"] == "-"
    assert rows["hellaswag", "acc_norm"] == "0.6623"
    assert rows["iq_wsc", "acc"] == "-"
    stages = [each.name for each in paper_results(stages=True)]
    assert stages == ["FLM-16B (paper)", "FLM-51B (paper)", "FLM-101B (paper)"]
