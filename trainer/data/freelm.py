"""FreeLM's two signals as one sequence of samples: text, and propositions with their truth.

FreeLM trains one model on both. The language signal is next-token prediction. The teacher signal is
a proposition followed, without a space, by one of two emojis as its label, and the loss counts on
the label alone; so both are next tokens, and both may lie in one batch. Propositions come as JSON
lines with ``text`` and ``label`` (true or false). U+1F621 says true here and U+1F608 false; the
paper does not say which is which.

A label is several tokens in most vocabularies: both emojis begin with the same ones, and one
decides (in cl100k_base 76460, then 94 or 230). The label is made into tokens apart from the
proposition, so that it is always the same tokens, whatever the text ends in.

Propositions are packed into rows. Positions restart with each, and attention must stop there:
:func:`flmgrow.trainer.data.samples.attention_mask` is to be passed to the model for rows that are
packed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from flmgrow.errors import BadDataError, UsageError
from flmgrow.model.arrays import IntArray
from flmgrow.storage.strict_json import Json
from flmgrow.text import Found, Text
from flmgrow.trainer.data.blends import Blend
from flmgrow.trainer.data.documents import SourceReading, field_of, read_documents, text_of
from flmgrow.trainer.data.round_trip import missing, named
from flmgrow.trainer.data.samples import SHOWN, Sample, Samples, seed_of
from flmgrow.trainer.data.sources import find_sources
from flmgrow.trainer.data.tally import Tally
from flmgrow.trainer.data.tokenizer import Tokenizer, Tokens

EMOJIS = {True: "\U0001f621", False: "\U0001f608"}


@dataclass(frozen=True)
class Labels:
    """The tokens of both labels: ``shared`` ones first, then the ``deciding`` one of each.

    ``whole`` has all tokens of each label.
    """

    whole: dict[bool, tuple[int, ...]]
    shared: tuple[int, ...]
    deciding: dict[bool, int]

    def classify(self, logits: Any) -> Any:
        """Return whether a proposition is true, from the logits that follow :meth:`prompt`.

        ``logits`` is (..., vocabulary), of numpy or torch; the result is (...).
        """
        return logits[..., self.deciding[True]] > logits[..., self.deciding[False]]

    def prompt(self, proposition: Tokens) -> Tokens:
        """Return what to give the model, so that its next token decides."""
        return np.append(proposition, np.array(self.shared, np.int32))


@dataclass(frozen=True)
class Proposition:
    """A text and whether it is true; ``place`` is its file and line."""

    text: str
    label: bool
    place: str


def labels_of(tokenizer: Tokenizer) -> Labels:
    """Return a tokenizer's labels.

    Raises:
        UsageError: If it does not tell them apart.
    """
    whole = {label: tuple(tokenizer.encode(emoji).tolist()) for label, emoji in EMOJIS.items()}
    one, other = whole[True], whole[False]
    pairs = list(zip(one, other, strict=False))
    apart = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if apart is None:
        raise UsageError("the tokenizer does not tell U+1F621 from U+1F608", "use one of bytes")
    return Labels(whole, one[:apart], {True: one[apart], False: other[apart]})


def read_propositions(paths: Sequence[Path]) -> Iterator[Proposition]:
    """Yield the propositions in ``.jsonl`` files, compressed or not, or folders of them.

    Raises:
        BadDataError: For a line that is none, with file and line.
        UsageError: For other files.
    """
    for source in find_sources(paths).files:
        if not source.lines or source.is_table:
            raise UsageError(
                "wanted .jsonl with a text and a label on each line", where=source.path
            )
        for document in read_documents(source, SourceReading(), lambda _: None):
            text = text_of(document, "text")
            label = field_of(document, document.data.decode(), "label", bool)
            if not text:
                raise BadDataError("a proposition without text", where=document.place)
            yield Proposition(text, label, document.place)


class Teacher:
    """Propositions as samples, endlessly; each proposition is in one row, once an epoch.

    Their tokens lie in memory. Rows are filled in an order that ``seed`` shuffles, and shuffled
    among themselves for each epoch. ``rows`` is how many there are, ``summary`` what they are in a
    few words, ``lost`` counts what the tokenizer does not give back. With ``packed`` False a row
    holds one proposition, and a model needs no mask.

    Raises:
        BadDataError: If there is none, or one that is longer than a row.
    """

    def __init__(
        self,
        propositions: Sequence[Proposition],
        tokenizer: Tokenizer,
        sequence_length: int,
        seed: int,
        *,
        packed: bool = True,
    ) -> None:
        self.labels = labels_of(tokenizer)
        self._room = sequence_length + 1  # a row's tokens, and the one after the last
        self._filler = tokenizer.eod
        self.lost = Tally()
        self._made = [self._tokens(proposition, tokenizer) for proposition in propositions]
        self._labels = [proposition.label for proposition in propositions]
        if not self._made:
            raise BadDataError("no propositions", wanted="at least one")
        self._seed = seed
        self._rows = list(self._filled(packed))
        self._order = lru_cache(maxsize=2)(self._shuffled)
        checksum = xxhash.xxh3_128()
        for tokens in self._made:
            checksum.update(np.append(tokens, np.int32(-1)).tobytes())
        self.identity: Json = {
            "propositions": len(self._made),
            "tokens": checksum.hexdigest(),
            "tokenizer": tokenizer.identity,
            "sequence_length": sequence_length,
            "seed": seed,
            "packed": packed,
        }
        self.earlier: Json = {**self.identity, "tokenizer": tokenizer.earlier}
        self.summary = f"{len(self._made):,} propositions, checksum {checksum.hexdigest()[:SHOWN]}"

    @property
    def rows(self) -> int:
        """How many samples there are before the propositions come again."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        """Return sample ``index``, counted from 0 over all epochs."""
        epoch, place = divmod(index, len(self._rows))
        return self._row(self._rows[self._order(epoch)[place]])

    def _tokens(self, proposition: Proposition, tokenizer: Tokenizer) -> Tokens:
        try:
            text = tokenizer.encode(proposition.text)
        except ValueError as error:
            raise BadDataError(f"not a text: {error}", where=proposition.place) from None
        gone = missing(proposition.text, text, tokenizer)
        if gone.lost:
            first = f"{proposition.place}, {named(gone.first_lost)}"
            self.lost.add("characters do not come back from the tokenizer", first, gone.lost)
        label = np.array(self.labels.whole[proposition.label], np.int32)
        if len(text) + len(label) > self._room:
            raise BadDataError(
                Text(f"{len(text)} tokens and ", Found(f"{len(label)} of its label")),
                "shorten it, or make the sequence length larger: half of it may not be true",
                where=proposition.place,
                wanted=f"at most {self._room}",
            )
        return np.concatenate([text, label])

    def _filled(self, packed: bool) -> Iterator[list[int]]:
        """Yield which propositions each row holds."""
        row: list[int] = []
        room = self._room
        for number in np.random.RandomState(self._seed % 2**32).permutation(len(self._made)):
            size = len(self._made[number])
            if row and (size > room or not packed):
                yield row
                row, room = [], self._room
            row.append(int(number))
            room -= size
        yield row

    def _shuffled(self, epoch: int) -> IntArray:
        order = np.random.RandomState(seed_of(self._seed, epoch)).permutation(len(self._rows))
        return order.astype(np.int64)

    def _row(self, members: Sequence[int]) -> Sample:
        text = np.full(self._room, self._filler, np.int64)
        positions = np.arange(self._room)
        counts = np.zeros(self._room, np.float32)
        end = 0
        for number in members:
            tokens = self._made[number]
            begin, end = end, end + len(tokens)
            text[begin:end] = tokens
            positions[begin:] -= positions[begin]
            counts[end - len(self.labels.whole[self._labels[number]]) : end] = 1
        # Behind a single text the filler counts on, and the model needs no mask: nothing is learned
        # there, and nothing before it sees it.
        if len(members) > 1 and end < self._room:
            positions[end:] -= positions[end]
        row = positions[:-1].astype(np.int64)
        return Sample(text[:-1], text[1:], counts[1:], row, taught=True)


def mixed(language: Samples, teacher: Samples, share: Fraction) -> Blend:
    """Return both signals as one: of any k samples in a row, k * ``share`` are the teacher's.

    That is rounded down or up, so with k * ``share`` of 1 or more no batch is without.

    Raises:
        UsageError: Unless ``share`` is between 0 and 1.
    """
    if not 0 < share < 1:
        raise UsageError(f"a teacher's share of {share}: wanted more than 0 and less than 1")
    return Blend([teacher, language], [share, 1 - share])
