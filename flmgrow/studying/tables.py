"""A study's outcomes as tables for other programs: a row for each training, and each reading."""

import csv
import io
from collections.abc import Iterable, Sequence

from flmgrow.studying.outcomes import MeasuredStudy

_RUN = ("arm", "seed", "parameters", "tokens", "flops", "seconds", "loss", "decayed", "diverged")
_READING = ("arm", "seed", "step", "tokens", "flops", "loss")


def runs_table(measured: MeasuredStudy) -> str:
    """Return how each training ended (CSV); no tokens, FLOPs and loss of one that diverged."""
    return _csv(_RUN, (
        (each.arm, each.seed, each.parameters,
         *(("", "") if each.diverged else (each.final.tokens, each.final.flops)),
         each.seconds, "" if each.diverged else each.final.loss,
         int(each.decayed), int(each.diverged))
        for each in measured.outcomes
    ))  # fmt: skip


def readings_table(measured: MeasuredStudy) -> str:
    """Return all losses of validation (CSV), those of trainings that diverged, too."""
    return _csv(_READING, (
        (each.arm, each.seed, reading.step, reading.tokens, reading.flops, reading.loss)
        for each in measured.outcomes
        for reading in each.readings
    ))  # fmt: skip


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return file.getvalue()
