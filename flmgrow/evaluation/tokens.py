"""The tokenizer that a checkpoint is asked with: the very one that transformers loads of an export.

Scores depend on every token, and on what stands in front of the first. So that they are the same
through flmgrow's own model and through transformers', texts become tokens in one way.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flmgrow.errors import BadDataError
from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.companions import ids_of, read_content
from flmgrow.formats.tokenizer.settings import (
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    made_config,
    parsed,
)
from flmgrow.formats.tokenizer.spoken import Spoken
from flmgrow.generation.speech import ends_of, spoken_as_exported

_FIRST = ("bos_token_id", "eos_token_id")


@dataclass(frozen=True, eq=False)
class HarnessTokenizer:
    """A tokenizer of transformers', the ids that ``ends`` texts, and the one in front of the first.

    ``prefix`` is None where nothing says which id begins or ends a text.
    """

    tokenizer: Any
    ends: frozenset[int]
    prefix: int | None
    notes: tuple[str, ...] = ()


def tokens_of(
    source: Checkpoint, tokenizer: str | os.PathLike[str] | None = None
) -> HarnessTokenizer:
    """Return how a checkpoint is asked.

    ``tokenizer`` (a folder, a file, or ``bytes``) stands in the place of its own.

    Raises:
        UsageError: If there is none.
        BadCheckpointError: For damaged ones.
        BadDataError: For damaged ones.
    """
    found = spoken_as_exported(source, tokenizer)
    loaded = _loaded(found, source)
    ends = ends_of(found) | {one for one in [loaded.eos_token_id] if one is not None}
    ids = [getattr(loaded, name) for name in _FIRST]
    ids += [one for name in _FIRST for one in ids_of(found.ids.get(name))]
    prefix = next((one for one in ids if one is not None), None)
    return HarnessTokenizer(loaded, frozenset(ends), prefix, tuple(found.notes))


def _loaded(found: Spoken, source: Checkpoint) -> Any:
    """Return the tokenizer in the files that an export would write."""
    from transformers import AutoTokenizer, PreTrainedConfig

    files = {name: read_content(content) for name, content in found.files.items()}
    if TOKENIZER_CONFIG not in files:
        longest = source.config.max_positions
        files[TOKENIZER_CONFIG] = made_config(parsed(files[TOKENIZER_JSON]), found.ids, longest)
    with TemporaryDirectory(prefix="flmgrow-") as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        try:
            return AutoTokenizer.from_pretrained(
                folder, config=PreTrainedConfig(), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # whatever the library finds wrong with a file
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BadDataError(
                f"transformers cannot load the tokenizer: {reason}", where=source.folder
            ) from None
