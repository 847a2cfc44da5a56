"""One process of an evaluation: ``python evaluating_rank.py CHECKPOINT DATA ANSWERS``.

Rank 0 prints the results as JSON. With WRONG in the environment, that rank meets an error alone;
with BACKEND, that one computes.
"""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from answering import few_tasks

from flmgrow.errors import FlmgrowError, UsageError
from flmgrow.evaluation.answers import Answers
from flmgrow.evaluation.backends import Computing, identity_of, language_model
from flmgrow.evaluation.keeping import KeptModel
from flmgrow.evaluation.peers import meet
from flmgrow.formats.opening import open_checkpoint

TASK = "arc_challenge"


def evaluated(checkpoint: Path, data: Path, answers: Path | None = None) -> dict[str, Any] | None:
    """Return the harness's results; None on all ranks but the first."""
    from lm_eval import simple_evaluate

    how = Computing(os.environ.get("BACKEND", "native"), "float32", "cpu")
    peers = meet()
    with open_checkpoint(checkpoint) as source:
        model = language_model(source, how, peers=peers)
        if os.environ.get("WRONG") == str(peers.rank):
            model.tok_encode = wrong
        if answers is not None:
            known = Answers(answers, identity_of(source, how), peers.rank)
            model = KeptModel(model, known, peers)
    with warnings.catch_warnings(action="ignore"):
        found: dict[str, Any] | None = simple_evaluate(
            model=model,
            tasks=[TASK],
            task_manager=few_tasks(0, data, 2),
            num_fewshot=2,
            bootstrap_iters=0,
        )
    return found


def wrong(*_: object, **__: object) -> list[int]:
    raise UsageError("this rank alone cannot")


def main() -> int:
    checkpoint, data, answers = map(Path, sys.argv[1:])
    try:
        found = evaluated(checkpoint, data, answers)
    except FlmgrowError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if found is not None:
        print(json.dumps({name: found[name] for name in ("results", "samples")}, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
