"""What a request asks of the harness: its tasks, a part of them by seed, and what is told of bad
ones.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from answering import Answering, few_tasks
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.tasks import TaskManager

from flmgrow.errors import BadDataError, FlmgrowError, UsageError
from flmgrow.evaluation import harness
from flmgrow.evaluation.bits_per_byte import standard_error
from flmgrow.evaluation.harness import evaluate, load_tasks
from flmgrow.evaluation.request import EvaluationRequest, asked_in
from flmgrow.evaluation.tasks import FOLDER, manager

GROUPS = FOLDER / "groups"


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "task_manager", lambda *given, **_: few_tasks(*given))


def make_rows(folder: Path, **counts: int) -> None:
    folder.mkdir(parents=True)
    for split, count in counts.items():
        rows = ({"question": str(number), "answer": str(number)} for number in range(count))
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def make_task(folder: Path, name: str, rows: int, **changes: object) -> Path:
    """A task of ``rows`` questions, whose answers are what is asked."""
    make_rows(folder / f"{name}-data", test=rows)
    content: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}-data" / "test.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}?",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"]},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        **changes,
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def make_group(folder: Path, monkeypatch: pytest.MonkeyPatch, **metadata: object) -> None:
    """A group ``both`` of a task with six questions and one with fifty."""
    make_task(folder, "few", 6)
    make_task(folder, "many", 50)
    content = {"group": "both", "task": ["few", "many"], "metadata": metadata}
    (folder / "both.yaml").write_text(yaml.safe_dump(content))
    known = TaskManager(include_path=str(folder), include_defaults=False)
    monkeypatch.setattr(manager, "task_manager", lambda *_, **__: known)


def asked(*names: object, **how: Any) -> EvaluationRequest:
    return EvaluationRequest(asked_in([str(name) for name in names]), **how)


def right_if(even: bool) -> Answering:
    """Answers right, or only where the question is an even number."""
    return Answering(lambda prompt: prompt[:-1] if not even or not int(prompt[:-1]) % 2 else "no")


def test_a_group_asks_for_a_part_and_has_an_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_group(
        tmp_path,
        monkeypatch,
        shares={"many": 0.2},
        average={"few": "exact_match", "many": "exact_match"},
    )
    numbers = []
    for seed in (0, 0, 1):
        tasks = load_tasks(asked("both", seed=seed))
        found = evaluate(right_if(even=True), tasks)
        assert found["n-samples"]["few"] == {"original": 6, "effective": 6}
        assert found["n-samples"]["many"] == {"original": 50, "effective": 10}
        scores = found["results"]
        few, many = (scores[name] for name in ("few", "many"))
        assert few["exact_match,none"] == 0.5
        assert scores["both"]["average,none"] == (0.5 + many["exact_match,none"]) / 2
        errors = [each["exact_match_stderr,none"] for each in (few, many)]
        wanted = sum(error**2 for error in errors) ** 0.5 / 2
        assert scores["both"]["average_stderr,none"] == pytest.approx(wanted)
        samples = found["samples"]["many"]
        numbers.append([int(sample["doc"]["question"]) for sample in samples])
    assert numbers[0] == numbers[1] != numbers[2]


def test_a_limit_holds_for_parts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_group(tmp_path, monkeypatch, shares={"many": 0.2})
    found = evaluate(right_if(even=False), load_tasks(asked("both", limit=3)))
    counts = {name: each["effective"] for name, each in found["n-samples"].items()}
    assert counts == {"few": 3, "many": 3}


@given(st.integers(1, 400), st.floats(0.01, 1), st.integers(0, 9))
def test_a_sample_is_a_part_of_the_numbers_in_order(count: int, share: float, seed: int) -> None:
    found = harness._sample("x", count, share, seed)
    assert found == sorted(set(found))
    assert set(found) <= set(range(count))
    assert len(found) == max(1, round(share * count))
    assert found == harness._sample("x", count, share, seed)


def test_the_groups_are_the_papers() -> None:
    whole, stages = (yaml.safe_load((GROUPS / f"{name}.yaml").read_text())
                     for name in ("open-llm", "open-llm-stages"))  # fmt: skip
    assert whole["task"] == stages["task"]
    shots = {each.get("task", each.get("group")): each["num_fewshot"] for each in whole["task"]}
    assert shots == {"arc_challenge": 25, "hellaswag": 10, "mmlu": 5, "truthfulqa_mc2": 0}
    assert stages["metadata"]["shares"] == {"hellaswag": 0.2, "mmlu": 0.3}


def refusal(kind: type[FlmgrowError], request: EvaluationRequest) -> str:
    with pytest.raises(kind) as error:
        evaluate(right_if(even=False), load_tasks(request))
    return f"{error.value} | {error.value.hint}"


def test_an_unknown_task_is_told_with_its_neighbours() -> None:
    told = refusal(UsageError, asked("iq_rule"))
    assert "task iq_rule: there is no such task | did you mean iq_rules" in told
    assert "lists them" in refusal(UsageError, asked("zzzzzzzz"))


def test_a_task_in_two_groups_is_refused() -> None:
    request = asked("iq_rules", "iq_replace_word")
    assert "iq_replace_word' stands in both" in refusal(UsageError, request)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"test_split": None}, "must have valid or test docs"),
        ({"doc_to_text": "{{nothing.there}}"}, "'nothing' is undefined"),
        ({"output_type": "guess"}, "invalid output_type 'guess'"),
    ],
)
def test_a_bad_task_is_told_in_one_line(
    changes: dict[str, object], said: str, tmp_path: Path
) -> None:
    file = make_task(tmp_path, "bad", 3, **changes)
    told = refusal(BadDataError, asked(file))
    assert told.startswith(f"task {file}: ")
    assert said in told


def test_the_file_of_a_group_is_refused(tmp_path: Path) -> None:
    file = make_task(tmp_path, "bad", 3, group="x", task=["bad"])
    assert "is a group, which is asked for by its name" in refusal(UsageError, asked(file))


def test_a_file_that_is_no_yaml_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("task: bad\ntest_split: [\n")
    assert "is no YAML, line 3" in refusal(BadDataError, asked(file))


class Mistaken(Answering):
    """Calls code of this package with what it cannot take."""

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
        return standard_error(requests)


def test_a_mistake_of_the_models_own_stays_one(tmp_path: Path) -> None:
    """Only what a task is to blame for is told as its fault."""
    tasks = load_tasks(asked(make_task(tmp_path, "good", 3)))
    with pytest.raises(TypeError):
        evaluate(Mistaken(str), tasks)
