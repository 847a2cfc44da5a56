"""A language model of lm-eval's that answers from the text of a prompt, by a function of it."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from flmgrow.evaluation.tasks import FOLDER
from flmgrow.evaluation.tasks.manager import with_local_data

THEIRS = Path(lm_eval.tasks.__file__).parent

Answer = Callable[[str], str]
"""The text that goes on after a prompt."""


class Answering(LM):  # type: ignore[misc]
    """Goes on as it is told to, and keeps the prompts it has seen."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self._answer = answer
        self.prompts: list[str] = []

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        return [self._until(*request.args) for request in requests]

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        return [self._likes(*request.args) for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> Any:
        raise NotImplementedError

    def _until(self, prompt: str, how: dict[str, Any]) -> str:
        self.prompts.append(prompt)
        text = self._answer(prompt)
        for stop in how["until"]:
            text = text.partition(stop)[0]
        return text

    def _likes(self, prompt: str, continuation: str) -> tuple[float, bool]:
        self.prompts.append(prompt)
        same = continuation == self._answer(prompt)
        return (0.0 if same else -1.0), same


FEW = ("arc", "mmlu/default")


def few_tasks(
    seed: int, data: Path | None, shots: int | None, families: Sequence[str] = FEW
) -> TaskManager:
    """This package's tasks, and few of lm-eval's: to read all of them takes seconds."""
    theirs = () if data is None else families
    manager = TaskManager(
        include_path=[str(FOLDER), *(str(THEIRS / name) for name in theirs)],
        include_defaults=False,
        metadata={"seed": seed},
    )
    return manager if data is None else with_local_data(manager, data, shots)


def evaluated(
    answer: Answer, *tasks: str, data: Path | None = None, seed: int = 0, **how: Any
) -> dict[str, Any]:
    """lm-eval's results of a model that answers so."""
    with warnings.catch_warnings(action="ignore"):
        results: dict[str, Any] = simple_evaluate(
            model=Answering(answer),
            tasks=list(tasks),
            task_manager=few_tasks(seed, data, how.get("num_fewshot")),
            bootstrap_iters=0,
            **how,
        )
    return results
