"""The teacher signal teaches: a tiny model before and after, asked what it was taught and what not.

Comparisons of two numbers are a rule that so small a model finds: it knows those it has never seen.
Sums are not, at this size: it knows by heart what it was taught, and guesses at others.
"""

import json
import runpy
import warnings
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("megatron.core")
import torch
from answering import few_tasks
from lm_eval import simple_evaluate
from repository import ROOT
from stage_runs import make_data
from trained_here import small, trained_in

from flmgrow.evaluation.backends import Computing, language_model
from flmgrow.formats.opening import open_checkpoint
from flmgrow.trainer.data.freelm import labels_of, read_propositions
from flmgrow.trainer.data.tokenizers import open_tokenizer

pytestmark = pytest.mark.slow

STEPS = 200
ASKED = 300
"""Propositions of each kind that are asked, where there are so many."""

MODEL = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 257}


def stage(
    folder: Path, teacher: Mapping[str, Any] | None, steps: int, length: int = 64
) -> dict[str, Any]:
    """A stage on little text, and much of what the teacher says if there is one."""
    content = small(
        folder,
        model=MODEL,
        data={"sequence_length": length},
        training={"steps": steps, "batch": 16, "micro_batch": 16},
        learning_rate={"peak": 5e-3, "warmup_samples": 160},
        checkpoint={"every": steps},
    )
    if teacher is not None:
        content["data"]["teacher"] = dict(teacher)
    return content


def taught(folder: Path, kind: str, count: int, length: int) -> Path:
    """Train a model before and after on ``count`` propositions of a kind in the demo's data.

    ``taught.jsonl`` are those that are asked of what was taught; ``others.jsonl`` was not.
    """
    folder = make_data(folder)
    demo = runpy.run_path(str(ROOT / "examples" / "demo_data.py"))
    lines = [json.dumps(line) + "\n" for line in demo[kind](Random(1))]
    (folder / "all.jsonl").write_text("".join(lines[:count]))
    (folder / "taught.jsonl").write_text("".join(lines[: min(count, ASKED)]))
    others = [line for line in lines[count:] if line not in set(lines[:count])]
    (folder / "others.jsonl").write_text("".join(others[:ASKED]))
    teacher = {"files": [str(folder / "all.jsonl")], "share": 0.9}
    trained_in(folder / "before", stage(folder, None, 20))
    trained_in(folder / "after", stage(folder, teacher, STEPS, length))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught(tmp_path_factory.mktemp("sums"), "propositions", 100, 64)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught(tmp_path_factory.mktemp("comparisons"), "comparisons", 2_000, 128)


def model_of(folder: Path, name: str) -> Any:
    how = Computing(tokenizer=Path("bytes"), dtype="float32")
    return language_model(open_checkpoint(folder / name / "checkpoints"), how)


def accuracy(folder: Path, model: str, sums: str) -> float:
    with warnings.catch_warnings(action="ignore"):
        results: Any = simple_evaluate(
            model=model_of(folder, model),
            tasks=["teacher"],
            task_manager=few_tasks(0, folder / f"{sums}.jsonl", None),
            bootstrap_iters=0,
        )
    return float(results["results"]["teacher"]["acc,none"])


def test_a_rule_is_known_of_what_was_not_taught(compared: Path) -> None:
    """No comparison that is asked of the second file was ever seen."""
    for asked in ("taught", "others"):
        assert accuracy(compared, "after", asked) > 0.95
        assert accuracy(compared, "before", asked) == pytest.approx(0.5, abs=0.1)


def test_what_is_taught_is_known_afterwards(folder: Path) -> None:
    """And not before; of other sums, nothing is known at this size."""
    assert accuracy(folder, "after", "taught") > 0.8
    for model, sums in (("before", "taught"), ("before", "others"), ("after", "others")):
        assert accuracy(folder, model, sums) == pytest.approx(0.5, abs=0.15)


def test_the_answer_is_the_logit_of_the_deciding_token(folder: Path) -> None:
    tokenizer = open_tokenizer("bytes", None)
    labels, model = labels_of(tokenizer), model_of(folder, "after")
    propositions = list(read_propositions([folder / "others.jsonl"]))[:40]
    right = []
    for one in propositions:
        prompt = torch.tensor(labels.prompt(tokenizer.encode(one.text))[None].astype(int))
        with torch.no_grad():
            right.append(bool(labels.classify(model.model(prompt)[0, -1])) == one.label)
    with warnings.catch_warnings(action="ignore"):
        results: Any = simple_evaluate(
            model=model, tasks=["teacher"], bootstrap_iters=0, limit=40,
            task_manager=few_tasks(0, folder / "others.jsonl", None),
        )  # fmt: skip
    assert [sample["acc"] for sample in results["samples"]["teacher"]] == [*map(float, right)]
    assert 0 < sum(right) < 40
