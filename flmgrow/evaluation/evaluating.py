"""Evaluating checkpoints one after the other, and going on where an evaluation stopped.

Each checkpoint has a folder of results, which appears when it is complete. One that is there
already, as the answer to the same request, is read. While one is made, answers are kept as they
come in the hidden folder beside it. The same command goes on with them, and so does one that asks
for more or less; another checkpoint under the same name is refused. Processes that torchrun started
share the questions; the first one writes.
"""

import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flmgrow.errors import OutputExistsError, UsageError
from flmgrow.evaluation.backends import (
    Computing,
    Noted,
    check_installed,
    identity_of,
    language_model,
)
from flmgrow.evaluation.request import EvaluationRequest
from flmgrow.evaluation.results import (
    REQUEST,
    VERSION,
    EvaluationResult,
    Facts,
    file_name,
    is_scores,
    read_finished,
    result_files,
)
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.history.manifest import masks_of, training_of
from flmgrow.formats.history.training_state import read_training_state
from flmgrow.model.tensors import parameter_count
from flmgrow.storage import durable, folders
from flmgrow.storage.hidden import hidden_folder
from flmgrow.storage.marker import is_marked
from flmgrow.storage.output import OutputFolder
from flmgrow.storage.strict_json import Json
from flmgrow.storage.world import find_world
from flmgrow.text import Pass, Setting, Text

if TYPE_CHECKING:
    from flmgrow.evaluation.answers import Answers
    from flmgrow.evaluation.harness import Tasks

ANSWERS = "answers"
"""The folder in the hidden one that answers are kept in."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A checkpoint to be evaluated: how it is called in tables and files, and how it is opened."""

    name: str
    open: Callable[[], Checkpoint]


def facts_of(name: str, source: Checkpoint) -> Facts:
    """Return what is to be known of a checkpoint beside its scores."""
    training, state = training_of(source), read_training_state(source.folder)
    return Facts(
        name,
        parameter_count(source.config),
        source.iteration,
        None if state is None else state.stage,
        None if training is None else training.tokens,
        None if training is None else training.flops,
        {str(dimension): mask.value for dimension, mask in masks_of(source).items()},
    )


class Evaluation:
    """An evaluation of checkpoints into the folder ``out``, which is made if it is not there.

    ``restart`` drops what an interrupted run left. ``noted`` hears what is to be known.
    """

    def __init__(
        self,
        request: EvaluationRequest,
        how: Computing,
        out: Path,
        *,
        restart: bool = False,
        noted: Noted = lambda _: None,
    ) -> None:
        self.request = request
        self._how = how
        self._out = out
        self._restart = restart
        self._noted = noted
        self._world = find_world(os.environ)

    def run(self, subjects: Sequence[Subject]) -> list[EvaluationResult]:
        """Return the results of checkpoints, in their order.

        Raises:
            OutputExistsError: Where results of another request are, or an evaluation of another
                checkpoint was begun.
            BadDataError: For damaged results; and what loading tasks, opening and computing raise.
        """
        return [self._one(subject) for subject in subjects]

    def _one(self, subject: Subject) -> EvaluationResult:
        folder = self._out / file_name(subject.name)
        with subject.open() as source:
            identity = identity_of(source, self._how)
            wanted = self._wanted(subject.name, identity)
            if not self._is_finished(folder):
                facts = facts_of(subject.name, source)
                self._compute(source, facts, identity, wanted, folder)
        return read_finished(folder, wanted)

    def _is_finished(self, folder: Path) -> bool:
        """Whether a folder of results is there, as the first process sees it."""
        found = folders.is_there(folder) and not is_marked(folder)
        return found if self._world.size == 1 else bool(self._peers.gathered(found)[0])

    def _wanted(self, name: str, identity: Json) -> Json:
        """Return all that decides on the scores of a checkpoint, as its folder says it."""
        return {
            "version": VERSION,
            "checkpoint": {"name": name, **identity},
            **self.request.to_json(),
        }

    def _compute(
        self, source: Checkpoint, facts: Facts, identity: dict[str, str], wanted: Json, folder: Path
    ) -> None:
        from flmgrow.evaluation.harness import evaluate
        from flmgrow.evaluation.keeping import KeptModel
        from flmgrow.evaluation.quiet import quiet

        tasks, peers = self._tasks, self._peers
        kept = hidden_folder(folder) / ANSWERS
        with ExitStack() as stack:
            output = peers.together(lambda: self._begun(folder, stack))
            answers = peers.together(lambda: self._answers(kept, identity))
            with closing(answers), quiet(facts.name):
                model = language_model(source, self._how, self._noted, peers)
                found = evaluate(KeptModel(model, answers, peers), tasks)
            peers.gathered(None)  # all have closed their answers
            peers.together(lambda: self._write(output, found, facts, wanted))

    def _begun(self, folder: Path, stack: ExitStack) -> OutputFolder | None:
        """Return the folder of results, begun or resumed; None on all processes but the first."""
        if not self._world.first:
            return None
        with durable.storage_errors(self._out, "creating"):
            self._out.mkdir(parents=True, exist_ok=True)
        plan = {"evaluation": VERSION}
        output = stack.enter_context(OutputFolder(folder, plan, restart=self._restart))
        for stale in list(output.finished):
            output.drop(stale)  # of a run that was stopped while it wrote
        return output

    def _answers(self, kept: Path, identity: dict[str, str]) -> "Answers":
        from flmgrow.evaluation.answers import Answers

        try:
            return Answers(kept, identity, self._peers.rank)
        except UsageError as error:
            raise OutputExistsError.of(error).with_hint(
                Text(
                    "evaluate as before to finish that, choose another ",
                    Setting("out"),
                    ", or ",
                    Pass("restart", True),
                    " to drop the answers",
                )
            ) from None

    def _write(
        self, output: OutputFolder | None, found: dict[str, Any], facts: Facts, wanted: Json
    ) -> None:
        if output is None:
            return
        found["config"] |= {
            "model": self._how.backend,
            "model_args": {"pretrained": facts.name, "dtype": wanted["checkpoint"]["dtype"]},
            "batch_size": self._how.batch_size or "auto",
            "device": self._how.device,
            "limit": self.request.limit,
        }
        last = {REQUEST: json.dumps(wanted, indent=1).encode()}
        for name, data in result_files(found, facts, wanted):
            if is_scores(name):
                last[name] = data
            else:
                output.add_small(name, data)
        note = output.commit(last)
        if note:
            self._noted(note)

    @cached_property
    def _peers(self) -> Any:
        from flmgrow.evaluation.peers import meet

        return meet()

    @cached_property
    def _tasks(self) -> "Tasks":
        check_installed("lm_eval", "eval")
        from flmgrow.evaluation.harness import load_tasks

        return load_tasks(self.request)
