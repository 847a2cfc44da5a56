"""The time that a stage still takes: its steps, and the validations and checkpoints among them."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from flmgrow.trainer.stage.clock import BEGIN, StageProgress, trained_by
from flmgrow.trainer.stage.file import StageFile

VALIDATION, SAVING = "validation", "saving"


class Pace:
    """How long the rest of ``stage``, which ends with step ``last``, takes.

    At step ``first`` it is so far as ``progress`` says. A step takes as long as its samples; what
    comes now and then takes as long as it did last time, and nothing before its first time.
    """

    def __init__(
        self,
        stage: StageFile,
        last: int,
        first: int = 0,
        progress: StageProgress = BEGIN,
    ) -> None:
        self._last = last
        self._trained = trained_by(stage, progress, first)
        validates = stage.log.validation_every
        self._every: Mapping[str, int | None] = {
            VALIDATION: validates,
            SAVING: stage.checkpoint.every or last,
        }
        self._seconds = dict.fromkeys(self._every, 0.0)

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Remember how long what is done inside takes."""
        begin = time.perf_counter()
        yield
        self._seconds[kind] = time.perf_counter() - begin

    def left(self, step: int, seconds: float) -> float:
        """Return the seconds from behind ``step`` on, which took ``seconds`` itself.

        What is due at the step itself is still to come.
        """
        rest = sum(
            self._seconds[kind] * self._due(step, every) for kind, every in self._every.items()
        )
        read = self._trained(step)
        batch = read - self._trained(step - 1)
        return (self._trained(self._last) - read) / batch * seconds + rest

    def _due(self, step: int, every: int | None) -> int:
        """Return how many times something comes from ``step`` on: each so many, and at the end."""
        if every is None:
            return 0
        regular = self._last // every - (step - 1) // every
        return regular + (self._last % every != 0)
