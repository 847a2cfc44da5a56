"""What every tokenizer here can do, and says of itself.

Text becomes numbers in many ways, and data made in one way is noise to a model of another. So a
tokenizer is a small object that encodes, decodes, and says what it is: ``identity`` holds a digest
of the vocabulary itself, so two files of one vocabulary are one tokenizer, and data made with
another is refused.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flmgrow.errors import UsageError
from flmgrow.model.arrays import IntArray
from flmgrow.text import Setting, Text

Tokens = npt.NDArray[np.int32]
Identity = dict[str, object]
SETTING = Setting("tokenizer")
KINDS = "bytes, tiktoken:cl100k_base, FILE.tiktoken or a tokenizer.json"
INSTALL = "pip install 'flmgrow[train]'"


@dataclass(frozen=True, eq=False)
class FirstOfText:
    """The bytes of a text's first token, ``of_ids`` (vocabulary,), where encoding puts a mark
    before the text; it is known by standing behind one of ``apart``, ids that are never text.

    Where that is done only to some texts, a token that is nothing but the ``mark`` is text of its
    own, with the bytes that it has elsewhere, if one of ``own_before`` (vocabulary,) follows.
    """

    of_ids: IntArray
    apart: frozenset[int]
    mark: int | None = None
    own_before: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class ByteLengths:
    """The bytes of text that each id is, (vocabulary,), of one that is no text 0; ``first`` has
    those of a text's first token if they are others.
    """

    of_ids: IntArray
    first: FirstOfText | None = None

    def of(self, tokens: IntArray, before: IntArray) -> IntArray:
        """Return the bytes of each of ``tokens`` (count,), which follow one another; ``before``
        (count,) are those that each stands behind.
        """
        lengths = self.of_ids[tokens]
        if self.first is None:
            return lengths
        begins = np.isin(before, list(self.first.apart))
        if self.first.own_before is not None:
            follows = np.append(self.first.own_before[tokens[1:]], False)[: len(tokens)]
            begins &= ~(follows & (tokens == self.first.mark))
        return np.where(begins, self.first.of_ids[tokens], lengths)


class Tokenizer(Protocol):
    """What the data side asks of a tokenizer; megatron-core's datasets ask for no more."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, the end of a document among them."""

    @property
    def eod(self) -> int:
        """The token that ends documents."""

    @property
    def identity(self) -> Identity:
        """What it is, as JSON; equal for equal tokenizers, wherever their files lie."""

    @property
    def earlier(self) -> Identity:
        """The identity that earlier versions gave it: corpora and checkpoints of theirs have it."""

    @property
    def unique_identifiers(self) -> Identity:
        """The identity, under the name that megatron-core asks for."""

    def encode(self, text: str) -> Tokens:
        """Return the tokens of ``text``, none added.

        Raises:
            ValueError: For half a surrogate, and for what the tokenizer has no way to say.
        """

    @property
    def exact(self) -> bool:
        """Whether every text comes back from its tokens, whatever it is."""

    @property
    def byte_lengths(self) -> ByteLengths | None:
        """The bytes of text that tokens are; None where they do not say that."""

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of ``tokens``, of those for unknown characters nothing.

        What is no UTF-8 becomes U+FFFD.
        """


class Described:
    """What all kinds have in common: an end of documents, and a description."""

    exact = True

    def __init__(
        self, kind: str, vocab_size: int, eod: int, digest: str = "", earlier: str = ""
    ) -> None:
        self.vocab_size = vocab_size
        self.eod = eod
        self.identity: Identity = {"kind": kind, "vocab_size": vocab_size, "eod": eod}
        if digest:
            self.identity["sha256"] = digest
        self.earlier: Identity = {**self.identity, **({"sha256": earlier} if earlier else {})}

    @property
    def unique_identifiers(self) -> Identity:
        """The identity, under the name by which megatron-core tells two datasets apart."""
        return self.identity


def chosen_end(wanted: str | None, names: dict[str, int], usual: int | None, size: int) -> int:
    """Return the id that ends documents: what is ``wanted`` (a name or an id), or the usual.

    Raises:
        UsageError: For a name or an id that the tokenizer does not have, and if there is no usual
            one where none is wanted.
    """
    if wanted is None:
        if usual is None:
            raise UsageError(
                "the tokenizer names no end of document that flmgrow knows",
                Text("choose one by ", Setting("eod")),
            )
        return usual
    if wanted in names:
        return names[wanted]
    if wanted.isdecimal() and int(wanted) < size:
        return int(wanted)
    found = Text(Setting("eod"), f" {wanted}: no such token")
    raise UsageError(found, f"a token's name, or an id below {size}")


def read_file(path: Path) -> bytes:
    """Return the bytes of a tokenizer's file.

    Raises:
        UsageError: If it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        found = Text(SETTING, f" {path}: {error.strerror}")
        raise UsageError(found, f"one of {KINDS}") from None


def import_library(name: str) -> Any:
    """Return the package ``name``.

    Raises:
        UsageError: If it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(Text(SETTING, f": needs the package {name}"), INSTALL) from None
