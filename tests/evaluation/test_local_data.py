"""Data in a folder stands in for the Hub's: found by name, held against what a task needs."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
from answering import evaluated

from flmgrow.errors import BadDataError, UsageError

ARC = [
    {
        "id": str(n),
        "question": f"What is {n} + 1?",
        "choices": {"text": [str(n), str(n + 1), str(n + 2)], "label": ["A", "B", "C"]},
        "answerKey": "B",
    }
    for n in range(30)
]
MMLU = [{"question": f"{n}?", "choices": list("abcd"), "answer": n % 4} for n in range(9)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def adds(prompt: str) -> str:
    number = prompt.rpartition("What is ")[2].partition(" + 1")[0]
    return f" {int(number) + 1}"


@pytest.mark.parametrize("folder", ["arc_challenge", "ai2_arc/ARC-Challenge"])
def test_a_task_reads_its_folder(tmp_path: Path, folder: str) -> None:
    write(tmp_path / folder / "test.jsonl", ARC[:10])
    write(tmp_path / folder / "train.jsonl.gz", ARC[10:])
    results = evaluated(adds, "arc_challenge", data=tmp_path, num_fewshot=3, seed=5)
    assert results["results"]["arc_challenge"]["acc,none"] == 1
    assert results["n-samples"]["arc_challenge"] == {"original": 10, "effective": 10}
    config = results["configs"]["arc_challenge"]
    assert config["metadata"]["seed"] == 5
    assert config["dataset_kwargs"]["files"]["test"] == str(tmp_path / folder / "test.jsonl")
    assert len(config["dataset_kwargs"]["xxh3_128"]["train"]) == 32
    json.dumps(results["configs"])
    wrong = evaluated(lambda _: " 0", "arc_challenge", data=tmp_path, num_fewshot=3)
    assert wrong["results"]["arc_challenge"]["acc,none"] == 0


def test_a_group_reads_the_folders_of_its_members(tmp_path: Path) -> None:
    write(tmp_path / "mmlu/anatomy/test.jsonl", MMLU)
    write(tmp_path / "mmlu/anatomy/dev.jsonl", MMLU)
    results = evaluated(lambda _: " A", "mmlu_anatomy", data=tmp_path)
    assert results["results"]["mmlu_anatomy"]["acc,none"] == pytest.approx(3 / 9)


def test_a_split_that_is_missing_is_told_where_it_is_needed(tmp_path: Path) -> None:
    write(tmp_path / "arc_challenge/test.jsonl", ARC)
    assert evaluated(adds, "arc_challenge", data=tmp_path, num_fewshot=0)
    with pytest.raises(UsageError, match=r"arc_challenge: no train\.jsonl") as told:
        evaluated(adds, "arc_challenge", data=tmp_path, num_fewshot=3)
    assert told.value.hint == "the task takes its examples from it"
    (tmp_path / "arc_challenge/test.jsonl").rename(tmp_path / "arc_challenge/train.jsonl")
    with pytest.raises(UsageError, match=r"no test\.jsonl"):
        evaluated(adds, "arc_challenge", data=tmp_path, num_fewshot=3)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"id": ', "test.jsonl:31: not JSON"),
        ("[]", "test.jsonl:31: no object"),
        ('{"question": {"a": 1}}', "lines of different kinds"),
    ],
)
def test_lines_that_are_none_are_told(tmp_path: Path, line: str, told: str) -> None:
    path = write(tmp_path / "arc_challenge/test.jsonl", ARC)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(BadDataError, match=told):
        evaluated(adds, "arc_challenge", data=tmp_path, num_fewshot=0)


def test_an_empty_file_and_a_missing_folder_are_told(tmp_path: Path) -> None:
    write(tmp_path / "arc_challenge/test.jsonl", [])
    with pytest.raises(BadDataError, match="holds no line"):
        evaluated(adds, "arc_challenge", data=tmp_path, num_fewshot=0)
    with pytest.raises(UsageError, match="no such file or folder"):
        evaluated(adds, "arc_challenge", data=tmp_path / "nowhere")
