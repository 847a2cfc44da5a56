"""Opening the sets that a stage is validated on: what is held out, and those that it names.

What is held out of the corpora that are trained on is never trained on. A set of its own corpora
is whatever the stage file names; where its documents are trained on as well, a note says so.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import ceil

from flmgrow.errors import UsageError
from flmgrow.text import Found, Text
from flmgrow.trainer.data.blends import Blend, weights_of
from flmgrow.trainer.data.corpora import Corpus, corpus_of
from flmgrow.trainer.data.corpus_files import Checksums, CorpusFiles, open_corpus_files, samples_in
from flmgrow.trainer.data.mixture import distinct
from flmgrow.trainer.data.samples import Numbered, Samples
from flmgrow.trainer.data.tokenizer import Tokenizer
from flmgrow.trainer.data.validation import ValidationSet
from flmgrow.trainer.stage.data import DataSection, ValidationCorpusSection, ValidationSetSection

Trained = Sequence[tuple[CorpusFiles, range]]
"""Corpora that are trained on, with the documents of them that are."""


def set_of(
    name: str,
    corpora: Sequence[Corpus],
    weights: Sequence[Fraction],
    asked: int | None = None,
    notes: Sequence[str] = (),
) -> ValidationSet:
    """Return ``corpora`` as one set, in proportion to ``weights``."""
    parts = [Numbered(corpus, number) for number, corpus in enumerate(corpora)]
    samples: Samples = parts[0] if len(parts) == 1 else Blend(parts, weights)
    once = min(int(each.per_epoch / weight) for each, weight in zip(corpora, weights, strict=True))
    names = distinct([corpus.name for corpus in corpora])
    return ValidationSet(name, samples, names, once, asked, tuple(notes))


def open_sets(
    data: DataSection, tokenizer: Tokenizer, checksums: Checksums, trained: Trained
) -> list[ValidationSet]:
    """Return the sets that a data section names; ``trained`` is what is trained on.

    Raises:
        UsageError: For what cannot be read or is too short.
        BadDataError: For what cannot be read or is too short.
    """
    return [
        _opened(section, f"data.validation_sets.{number}", data, tokenizer, checksums, trained)
        for number, section in enumerate(data.validation_sets)
    ]


def _opened(
    section: ValidationSetSection,
    key: str,
    data: DataSection,
    tokenizer: Tokenizer,
    checksums: Checksums,
    trained: Trained,
) -> ValidationSet:
    files = [open_corpus_files(each.path, tokenizer, checksums) for each in section.corpora]
    chosen = [
        _documents(file, each, f"{key}.corpora.{number}", data.sequence_length)
        for number, (file, each) in enumerate(zip(files, section.corpora, strict=True))
    ]
    corpora = [
        corpus_of(file, tokenizer, data, documents)
        for file, documents in zip(files, chosen, strict=True)
    ]
    weights = weights_of([str(each.weight) for each in section.corpora])
    notes = list(_trained_on(section.name, zip(files, chosen, strict=True), trained))
    return set_of(section.name, corpora, weights, section.samples, notes)


def _documents(file: CorpusFiles, section: ValidationCorpusSection, key: str, length: int) -> range:
    """Return the documents that are validated on.

    Raises:
        UsageError: For too few.
    """
    count = len(file.index.lengths)
    chosen = range(count - ceil(count * section.share), count)
    tokens = file.tokens_in(chosen)
    if samples_in(tokens, length) < 1:
        raise UsageError(
            Text(
                f"{key}.share {section.share:g} leaves ",
                Found(f"{tokens:,}"),
                f" of {file.tokens:,} tokens",
            ),
            f"make {key}.share larger, or prepare more documents",
            where=file.path,
            wanted=f"more than {length:,} for one sample",
        )
    return chosen


def _trained_on(
    name: str, read: Iterator[tuple[CorpusFiles, range]], trained: Trained
) -> Iterator[str]:
    """Yield a note for each corpus of a set of which documents are trained on, too."""
    for file, documents in read:
        for other, used in trained:
            both = range(max(documents.start, used.start), min(documents.stop, used.stop))
            if (file.tokens, file.index_sum) == (other.tokens, other.index_sum) and both:
                yield (
                    f"validation set {name}: {len(both):,} of its {len(documents):,} documents of "
                    f"{file.name} are trained on, too"
                )
