"""Preparing a corpus: tokens of all its documents, made by several processes.

Making tokens of a corpus takes hours on many cores, and must not depend on how many. The corpus is
read once, from front to back, and cut at bounds of documents into parts of a few megabytes.
Processes make tokens of parts (threads would wait for Python's lock at each document); each part
becomes a finished file, named by its number and a checksum of its text. A run that was killed reads
the corpus again, which is quick, and finds the parts it has made; text that changed meanwhile has
another name and is made anew. In the end the parts become ``data.bin`` and ``data.idx``.

Nothing is lost without a word: what a tokenizer does not give back, and documents that are no text,
are counted by kind with the first place of each, in the manifest and for whoever runs it; above
what :class:`AllowedLoss` allow the corpus is refused.

Memory holds the text and tokens of ``workers`` + 2 parts, whatever the corpus, and a tokenizer in
each process; on the disk parts and result lie side by side until the end, twice the result's size.
"""

import json
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice

from flmgrow import __version__
from flmgrow.errors import BadDataError, printable
from flmgrow.storage.strict_json import Json
from flmgrow.text import Found, Setting, Text
from flmgrow.trainer.data.documents import Document, SourceReading, read_documents
from flmgrow.trainer.data.indexed import index_bytes, index_size, token_dtype
from flmgrow.trainer.data.parts import (
    LOST,
    PARTS,
    CorpusPart,
    PartBlocks,
    PartsFolder,
    Passage,
    Recipe,
    lengths_of,
    make_part,
    part_of,
    read_part,
    write_part,
)
from flmgrow.trainer.data.sources import Sources
from flmgrow.trainer.data.tally import Tally
from flmgrow.trainer.ranks.processes import working

MANIFEST = "flmgrow-data.json"
VERSION = 1
PREFIX = "data"
PART_DOCUMENTS = 1 << 16
ENOUGH = 1 << 24
"""Characters after which a tokenizer that loses too many is refused before the corpus' end."""


@dataclass(frozen=True)
class AllowedLoss:
    """What may be left out: so many bad documents, and such a share of all characters."""

    bad: int = 0
    lost: float = 0.001


def prepare(
    sources: Sources,
    recipe: Recipe,
    place: PartsFolder,
    workers: int,
    progress: Callable[[int], None],
    limits: AllowedLoss | None = None,
) -> Json:
    """Write ``data.bin``, ``data.idx`` and the manifest into ``place``, commit, return the latter.

    ``progress`` gets the bytes of sources read since its last call.

    Raises:
        BadDataError: For more than ``limits`` allow, or if there is no document.
        StorageError: The file system failed.
        FlmgrowError: What else ``place`` raises.
    """
    if MANIFEST not in place.finished:
        for name in (f"{PREFIX}.bin", f"{PREFIX}.idx"):
            place.drop(name)  # of a killed run; whether the text is still the same is not known
        readings = [SourceReading() for _ in sources.files]
        texts = _texts(sources, readings, recipe, progress)
        found = _Found(limits or AllowedLoss())
        parts = _make_parts(texts, recipe, place, workers, found)
        try:
            found.check(0)
        except BadDataError:
            if found.characters < ENOUGH:  # made again in a moment, with another tokenizer perhaps
                _drop_parts(place)
            raise
        if not any(part.documents for part in parts):
            raise BadDataError(
                "no document with text in it or its like", where=sources.files[0].path
            )
        _join(parts, recipe, place)
        manifest = _describe(sources, readings, recipe, parts, place) | found.to_json()
        place.add_small(MANIFEST, json.dumps(manifest, indent=1).encode() + b"\n")
    written: Json = json.loads(place.finished_path(MANIFEST).read_bytes())
    _drop_parts(place)
    if note := place.commit({}):
        print(f"note: {printable(note)}", file=sys.stderr)
    return written


def _drop_parts(place: PartsFolder) -> None:
    for name in [name for name in place.finished if name.startswith(f"{PARTS}/")]:
        place.drop(name)


class _Found:
    """What is known of all parts together, as they come: so many characters, and what is wrong."""

    def __init__(self, limits: AllowedLoss) -> None:
        self._limits = limits
        self.characters = 0
        self._bad, self._missing = Tally(), Tally()

    def add(self, part: CorpusPart) -> None:
        """Count a part.

        Raises:
            BadDataError: Above the limits.
        """
        self.characters += part.characters
        self._bad.merge(part.bad)
        self._missing.merge(part.missing)
        self.check(ENOUGH)

    def check(self, enough: int) -> None:
        """Raise BadDataError for more than is allowed; for lost text after ``enough`` of it."""
        if len(self._bad) > self._limits.bad:
            _, first = next(iter(self._bad))
            limit = Setting("max_bad_lines")
            leave = Text("repair it, or leave out up to N such documents: ", limit, " N")
            if not self._limits.bad:
                raise BadDataError(first.message, first.hint or leave)
            raise BadDataError(
                Text(first.message, f"; more than {self._limits.bad:,} are bad: {self._bad}"), leave
            )
        found = self._missing[LOST]
        lost = found.count
        if self.characters >= enough and lost > self._limits.lost * self.characters:
            raise BadDataError(
                Text(
                    found.message,
                    f", nor do {lost:,} of {self.characters:,} characters (",
                    Found(f"{lost / self.characters:.3%}"),
                    ")",
                ),
                Text(
                    "use a tokenizer that has them, or let them be lost: ",
                    Setting("max_lost", _rounded_up(lost / self.characters)),
                ),
                wanted=f"at most {self._limits.lost:.3%}",
            )

    def to_json(self) -> Json:
        """Return what the manifest says."""
        return {
            "characters": self.characters,
            "missing": self._missing.to_json(),
            "bad_lines": self._bad.to_json(),
        }


def _rounded_up(share: float) -> str:
    """Return a share that is a little larger, in two digits."""
    return f"{min(1.0, share * 1.1):.2g}"


def _texts(
    sources: Sources,
    readings: Sequence[SourceReading],
    recipe: Recipe,
    progress: Callable[[int], None],
) -> Iterator[Passage | BadDataError]:
    """Cut the corpus into parts, each of whole documents and, but for the last, large enough.

    A source that cannot be read on is the last thing given: parts before it may have errors, too.
    """
    gathered: list[Document] = []
    size = number = 0
    try:
        for source, reading in zip(sources.files, readings, strict=True):
            for document in read_documents(source, reading, progress, recipe.key):
                gathered.append(document)
                size += len(document.data)
                if size >= recipe.part_bytes or len(gathered) >= PART_DOCUMENTS:
                    yield Passage(number, gathered)
                    gathered, size, number = [], 0, number + 1
    except BadDataError as error:
        yield error
        return
    if gathered:
        yield Passage(number, gathered)


def _make_parts(
    texts: Iterator[Passage | BadDataError],
    recipe: Recipe,
    place: PartsFolder,
    workers: int,
    found: _Found,
) -> list[CorpusPart]:
    """Make tokens of all parts, a few at a time; of several errors the first in order is raised."""
    parts: list[CorpusPart] = []
    waiting: deque[tuple[str, Callable[[], PartBlocks] | None]] = deque()

    def take() -> None:
        name, made = waiting.popleft()
        if made is None:
            part = read_part(name, place)
            found.add(part)
        else:
            blocks = made()
            part = part_of(name, blocks)
            found.add(part)  # what is refused is not kept
            write_part(name, blocks, place)
        parts.append(part)

    first = list(islice(texts, 2))
    with working(partial(make_part, recipe), workers if len(first) > 1 else 1) as make:
        for text in chain(first, texts):
            if isinstance(text, BadDataError):
                waiting.append(("", partial(_fail, text)))
            elif (name := text.name) in place.finished:
                waiting.append((name, None))
            else:
                waiting.append((name, make(text)))
            if len(waiting) > workers + 1:
                take()
        while waiting:
            take()
    return parts


def _fail(error: BadDataError) -> PartBlocks:
    raise error


def _join(parts: Sequence[CorpusPart], recipe: Recipe, place: PartsFolder) -> None:
    """Write what the parts hold as one corpus; memory holds one part."""
    dtype = token_dtype(recipe.tokenizer.vocab_size)
    documents = sum(part.documents for part in parts)
    tokens = sum(part.tokens for part in parts)
    with place.file(f"{PREFIX}.bin", tokens * dtype.itemsize) as file:
        for part in parts:
            content = place.finished_path(part.name).read_bytes()
            file.write(content[part.tokens_begin :])
    with place.file(f"{PREFIX}.idx", index_size(documents)) as file:
        for block in index_bytes(documents, dtype, lambda: lengths_of(parts, place)):
            file.write(block)


def _describe(
    sources: Sources,
    readings: Sequence[SourceReading],
    recipe: Recipe,
    parts: Sequence[CorpusPart],
    place: PartsFolder,
) -> Json:
    files = [place.finished[f"{PREFIX}.{ending}"] for ending in ("bin", "idx")]
    return {
        "data_version": VERSION,
        "flmgrow": __version__,
        "tokenizer": recipe.tokenizer.identity,
        "key": recipe.key,
        "append_eod": recipe.append_eod,
        "dtype": token_dtype(recipe.tokenizer.vocab_size).name,
        "documents": sum(part.documents for part in parts),
        "documents_without_text": sum(part.empty for part in parts),
        "tokens": sum(part.tokens for part in parts),
        "sources": [
            {"name": source.name, **asdict(reading)}
            for source, reading in zip(sources.files, readings, strict=True)
        ],
        "left_out": {why: len(names) for why, names in sources.reasons.items()},
        "files": [{"path": f.path, "size": f.size, "xxh3_128": f.xxh3_128} for f in files],
    }
