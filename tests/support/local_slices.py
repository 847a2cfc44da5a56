"""A few questions in the form of each data set that the paper evaluates on, as files of a folder.

None of them can be had without a network. What they ask is nonsense; their fields, and so the
harness's own tasks, prompts and metrics, are the real ones.
"""

import json
import math
import warnings
from pathlib import Path
from typing import Any

from answering import few_tasks
from lm_eval import simple_evaluate

SHOTS = {
    "arc_challenge": 3, "hellaswag": 2, "mmlu_anatomy": 2, "truthfulqa_mc1": 0,
    "truthfulqa_mc2": 0, "ceval-valid_law": 2,
}  # fmt: skip
"""The tasks, and the examples that stand in front of each question here."""

FAMILIES = ("arc", "hellaswag", "mmlu/default", "truthfulqa", "ceval")
"""Where the harness keeps these tasks."""

_WORDS = "the other thing then there they were with him when three thin fathers gathered".split()


def _text(seed: int, count: int) -> str:
    return " ".join(_WORDS[(seed * 7 + at * at + at) % len(_WORDS)] for at in range(count))


def _arc(n: int) -> dict[str, Any]:
    choices = {"text": [_text(n + at, 1 + at) for at in range(4)], "label": list("ABCD")}
    return {"id": str(n), "question": _text(n, 6) + "?", "choices": choices,
            "answerKey": "ABCD"[n % 4]}  # fmt: skip


def _hellaswag(n: int) -> dict[str, Any]:
    return {"ind": n, "activity_label": _text(n, 2), "ctx_a": _text(n, 8) + ".",
            "ctx_b": _text(n + 1, 2), "endings": [_text(n + 3 * at, 5 + at) for at in range(4)],
            "label": str(n % 4), "ctx": "", "split": ""}  # fmt: skip


def _mmlu(n: int) -> dict[str, Any]:
    return {"question": _text(n, 5) + "?", "subject": "anatomy", "answer": n % 4,
            "choices": [_text(n + at, 2) for at in range(4)]}  # fmt: skip


def _truthful(n: int) -> dict[str, Any]:
    choices = [_text(n + 2 * at, 3 + at) for at in range(5)]
    return {"question": _text(n, 5) + "?",
            "mc1_targets": {"choices": choices[:4], "labels": [1, 0, 0, 0]},
            "mc2_targets": {"choices": choices, "labels": [1, 1, 0, 0, 0]}}  # fmt: skip


def _ceval(n: int) -> dict[str, Any]:
    answers = dict(zip("ABCD", ("甲", "乙和丙", "丁", _text(n, 1)), strict=True))
    return {"id": n, "question": f"第{n}题，下列哪一项正确？", **answers, "answer": "ABCD"[n % 4],
            "explanation": ""}  # fmt: skip


def _boolq(n: int) -> dict[str, Any]:
    return {"question": _text(n, 6), "passage": _text(n + 1, 20) + ".", "idx": n, "label": n % 2}


_SETS = {
    "iq_boolq": (_boolq, "validation", "train"),
    "arc_challenge": (_arc, "test", "train"),
    "hellaswag": (_hellaswag, "validation", "train"),
    "mmlu_anatomy": (_mmlu, "test", "dev"),
    "truthfulqa_mc1": (_truthful, "validation", ""),
    "truthfulqa_mc2": (_truthful, "validation", ""),
    "ceval-valid_law": (_ceval, "val", "dev"),
}


_LEAST = {"iq_boolq": 101}


def make_slices(folder: Path, count: int = 4) -> Path:
    """Write ``count`` questions for each task, more where it wants more, and a few examples."""
    for task, (row, split, examples) in _SETS.items():
        own = max(count, _LEAST.get(task, 0))
        for name, numbers in ((split, range(own)), (examples, range(own, own + 12))):
            if not name:
                continue
            path = folder / task / f"{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(row(number), ensure_ascii=False) for number in numbers]
            path.write_text("\n".join(lines) + "\n")
    return folder


def evaluated(model: Any, task: str, data: Path, limit: int | None = None) -> dict[str, Any]:
    """The harness's results of a task, and each answer to each question."""
    with warnings.catch_warnings(action="ignore"):
        found = simple_evaluate(
            model=model,
            tasks=[task],
            task_manager=few_tasks(0, data, SHOTS.get(task), FAMILIES),
            num_fewshot=SHOTS.get(task),
            limit=limit,
            bootstrap_iters=0,
        )
    answers = {each["doc_id"]: each["resps"] for each in found["samples"][task]}
    scores = {
        name: value
        for name, value in found["results"][task].items()
        if isinstance(value, float) and "stderr" not in name
    }
    return {"scores": scores, "answers": answers}


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """How far two models' answers to the same questions are apart; texts are equal or not."""
    worst = 0.0
    assert one["answers"].keys() == other["answers"].keys()
    for number, own in one["answers"].items():
        for each, its in zip(own, other["answers"][number], strict=True):
            (mine,), (theirs,) = each, its
            if isinstance(mine, str):
                worst = max(worst, 0.0 if mine == theirs else math.inf)
            else:
                worst = max(worst, abs(mine[0] - theirs[0]), 0.0 if mine[1] == theirs[1] else 1.0)
    return worst
