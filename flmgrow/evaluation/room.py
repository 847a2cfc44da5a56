"""Whether a model reads enough for what a task lets it write."""

from collections.abc import Sequence

from lm_eval.api.instance import Instance
from lm_eval.models.utils import normalize_gen_kwargs

from flmgrow.errors import UsageError

GENERATED = 256
"""New tokens of a task that does not say how many; the harness's own number."""


def check_room(requests: Sequence[Instance], reads: int) -> None:
    """Raise UsageError where no token of a prompt would be left of the ``reads`` that a model
    reads, naming the tasks that ask for so many new ones.
    """
    asked = [normalize_gen_kwargs(each.args[1], GENERATED)["max_gen_toks"] for each in requests]
    longest = max(asked, default=0)
    if reads > longest:
        return
    pairs = zip(requests, asked, strict=True)
    names = dict.fromkeys(str(r.task_name) for r, n in pairs if n >= reads and r.task_name)
    raise UsageError(
        f"asks for up to {longest} new tokens, the model reads {reads}",
        "leave the task out, or evaluate a model with a longer context",
        where=f"task {', '.join(names)}" if names else (),
    )
