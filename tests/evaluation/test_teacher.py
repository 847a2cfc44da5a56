"""FreeLM's propositions as a task: who knows the truth scores 1, labels are those of training."""

import json
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")
from answering import evaluated

from flmgrow.errors import BadDataError, UsageError
from flmgrow.trainer.data.freelm import EMOJIS


def write_sums(path: Path, count: int = 60) -> Path:
    """Propositions, of which a third is true."""
    sums = ({"text": f"{n} + 1 = {n + 1 + n % 3}", "label": n % 3 == 0} for n in range(count))
    path.write_text("".join(json.dumps(line) + "\n" for line in sums))
    return path


def knows(prompt: str) -> str:
    left, _, right = prompt.partition(" = ")
    a, _, b = left.partition(" + ")
    return EMOJIS[int(a) + int(b) == int(right)]


def says(truth: bool, _: str) -> str:
    return EMOJIS[truth]


def test_who_knows_the_truth_scores_one(tmp_path: Path) -> None:
    path = write_sums(tmp_path / "sums.jsonl")
    results = evaluated(knows, "teacher", data=path)
    assert results["results"]["teacher"]["acc,none"] == 1
    assert results["n-samples"]["teacher"]["effective"] == 60
    metadata = results["configs"]["teacher"]["metadata"]
    assert metadata["chance"] == pytest.approx(2 / 3)
    assert metadata["digest"].startswith("sha256:")
    asked = [sample["arguments"] for sample in results["samples"]["teacher"]]
    assert [*map(tuple, asked[0])] == [("0 + 1 = 1", EMOJIS[False]), ("0 + 1 = 1", EMOJIS[True])]


def test_who_says_one_thing_scores_its_share(tmp_path: Path) -> None:
    path = write_sums(tmp_path / "sums.jsonl")
    for truth, share in ((True, 1 / 3), (False, 2 / 3)):
        results = evaluated(partial(says, truth), "teacher", data=path)
        assert results["results"]["teacher"]["acc,none"] == pytest.approx(share)


def test_what_is_no_proposition_is_told_as_in_training(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a", "label": true}\n{"text": "b", "label": "true"}\n')
    with pytest.raises(BadDataError, match=r"bad.jsonl:2: 'label' is of type str"):
        evaluated(knows, "teacher", data=path)


@pytest.mark.parametrize("task", ["teacher", "symbolic"])
def test_without_a_file_it_says_what_to_give(task: str) -> None:
    with pytest.raises(UsageError, match=f"{task}: no ") as told:
        evaluated(knows, task)
    assert "JSON lines" in str(told.value.hint)
