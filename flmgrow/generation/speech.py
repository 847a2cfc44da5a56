"""Text to tokens and back, as a checkpoint is to be spoken to.

Which tokenizer that is, and which ids end a text, is found as an export finds it: what speaks here
is what transformers would load. A prompt gets the special tokens that the tokenizer's own template
puts around it, as transformers does.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flmgrow.errors import BadDataError, UsageError
from flmgrow.formats.checkpoint import Checkpoint, HuggingFaceOptions, TargetModel
from flmgrow.formats.companions import GENERATION, ids_of, read_content
from flmgrow.formats.layout.placements import make_layout
from flmgrow.formats.tokenizer.files import NO_TOKENIZER, GivenTokenizer, tokenizer_files
from flmgrow.formats.tokenizer.settings import TOKENIZER_JSON, parsed
from flmgrow.formats.tokenizer.spoken import Spoken, spoken
from flmgrow.text import Pass, Text

_END = "eos_token_id"
_HALF = "\ufffd"


class Speech:
    """A tokenizer, and the ids that end a text.

    Raises:
        BadDataError: For a file that is none.
    """

    def __init__(self, content: bytes, ends: frozenset[int], where: object) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise UsageError(
                "text needs the package tokenizers", "pip install 'flmgrow[train]'"
            ) from None
        try:
            self._tokenizer: Any = Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises Exception itself
            raise BadDataError(f"not a tokenizer.json: {error}", where=where) from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.ends = ends

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a prompt.

        Raises:
            UsageError: For what has none.
        """
        try:
            text.encode()
            ids: list[int] = self._tokenizer.encode(text).ids
        except Exception as error:
            raise UsageError(f"the prompt has no tokens: {error}") from None
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special ones."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def continuation(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """Return the text that ``tokens`` put behind a prompt's.

        Tokens of words have their blanks from what stands before them, so both are read together.
        """
        before, whole = self.decode(prompt), self.decode([*prompt, *tokens])
        return whole[len(before) :] if whole.startswith(before) else self.decode(tokens)


class Stream:
    """The text of a growing list of tokens, told piece by piece, no half characters among them."""

    def __init__(self, speech: Speech, prompt: Sequence[int]) -> None:
        self._speech = speech
        self._prompt = prompt
        self._told = ""

    def more(self, tokens: Sequence[int], last: bool = False) -> str:
        """Return what is new in the text; the ``last`` time, half a character, too."""
        text = self._speech.continuation(self._prompt, tokens)
        if not last:
            text = text.rstrip(_HALF)
        if not text.startswith(self._told):
            return ""
        new, self._told = text[len(self._told) :], text
        return new


def speech_of(
    source: Checkpoint, tokenizer: str | os.PathLike[str] | None = None
) -> tuple[Speech, list[str]]:
    """Return how a checkpoint is spoken to, and what is to be known of it.

    ``tokenizer`` (a folder, a file, or ``bytes``) stands in the place of its own.

    Raises:
        UsageError: If there is none.
        BadCheckpointError: For damaged ones.
        BadDataError: For damaged ones.
    """
    found = spoken_as_exported(source, tokenizer)
    content = read_content(found.files[TOKENIZER_JSON])
    return Speech(content, ends_of(found), source.folder), found.notes


def spoken_as_exported(
    source: Checkpoint, tokenizer: str | os.PathLike[str] | None = None
) -> Spoken:
    """Return the files of the tokenizer and the special ids that an export would write.

    Raises:
        FlmgrowError: As ``speech_of`` does.
    """
    given = NO_TOKENIZER if tokenizer is None else tokenizer_files(Path(tokenizer), source.config)
    found = spoken(source, _as_exported(source, given))
    if TOKENIZER_JSON not in found.files:
        raise UsageError(
            "has no tokenizer.json",
            Text(Pass("tokenizer", ...), ": a tokenizer.json, tiktoken's ranks, or bytes"),
            where=source.folder,
        )
    return found


def _as_exported(source: Checkpoint, given: GivenTokenizer) -> TargetModel:
    options = replace(HuggingFaceOptions(), tokenizer=given.files, token_ids=given.ids)
    layout = make_layout(source.config.layers)
    return TargetModel(source.config, layout, source.config.vocab, huggingface=options)


def ends_of(found: Spoken) -> frozenset[int]:
    """Return the ids that end a text: those of the model, and those of its usual settings."""
    settings = parsed(read_content(found.files[GENERATION])) if GENERATION in found.files else {}
    return frozenset(
        one for said in (found.ids.get(_END), settings.get(_END)) for one in ids_of(said)
    )
