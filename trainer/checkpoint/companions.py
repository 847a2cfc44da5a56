"""Putting the tokenizer beside the checkpoints of a run.

A run's checkpoints hold the tokenizer it reads with, so that an export of them needs no other. What
the checkpoint before had goes on if it is of the same tokenizer: its settings and its chat template
are no part of a ``tokenizer.json``. Else it stays behind, as it would speak of other ids.
"""

from pathlib import Path

from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.companions import (
    NO_COMPANIONS,
    Companions,
    Content,
    ids_of,
    read_content,
)
from flmgrow.formats.history.training_state import TokenizerFacts
from flmgrow.formats.tokenizer.identity import digest_of_tokenizer
from flmgrow.formats.tokenizer.settings import TOKENIZER_JSON


def companions_of_run(
    before: Checkpoint | None, tokenizer: str, facts: TokenizerFacts
) -> Companions:
    """Return what a run's checkpoints shall hold beside the weights, in memory.

    ``before`` is what the run begins with, ``tokenizer`` the stage file's name of the tokenizer,
    ``facts`` are what it is.

    Raises:
        BadCheckpointError: For files of ``before`` that are damaged.
    """
    held = NO_COMPANIONS if before is None else before.companions
    same = _is(held.files.get(TOKENIZER_JSON), facts)
    files = {name: read_content(data) for name, data in held.files.items()} if same else {}
    if not same and tokenizer.endswith(".json") and _is(Path(tokenizer), facts):
        files = {TOKENIZER_JSON: Path(tokenizer).read_bytes()}
    known = dict(held.ids) if same else {}
    if facts.eod not in ids_of(known.get("eos_token_id")):
        known["eos_token_id"] = facts.eod
    return Companions(files, known)


def _is(content: Content | None, facts: TokenizerFacts) -> bool:
    """Whether a ``tokenizer.json`` is the one that ``facts`` are of."""
    if content is None or facts.kind != "huggingface":
        return False
    try:
        data = content.read_bytes() if isinstance(content, Path) else content
        return digest_of_tokenizer(data) == facts.sha256
    except (OSError, ValueError):
        return False
